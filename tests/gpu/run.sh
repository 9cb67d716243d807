#!/usr/bin/env bash
# Runs emuV against real programs on a machine with an NVIDIA GPU and prints one table.
#
#   tests/gpu/run.sh [STEP...]     steps: doctor programs meminfo resnet llama movement torture soak overhead demo (default: all)
#
# Needs: the release build in target/release (emuv, libemuv_shim.so; deps/ will do), python3, a C compiler.
# The steps meminfo, resnet, llama, movement, torture, soak and overhead need PyTorch (some also torchvision).
# Settings by environment:
#   OUT=DIR         where the logs and table.txt go (default ./out): one log per step
#   EMUV=FILE       the emuv binary (default target/release/emuv)
#   RUNS=WORDS      how the step programs runs each: plain, emuv, torture (default: all three)
#   SOAK=SECONDS    how long the step soak takes (default 120)
#   SIM=1           a dry run of doctor, programs and demo on the simulated GPU, to test this script
# Exit code: 0 if every row of the table is ok, 1 if not.
set -u
cd "$(dirname "$0")/../.." || exit 1
ROOT=$PWD
OUT=${OUT:-$ROOT/out}
EMUV=${EMUV:-$ROOT/target/release/emuv}
SIM=${SIM:-}
ALL_STEPS=(doctor programs meminfo resnet llama movement torture soak overhead demo)
ITERS=${ITERS:-6}
RUNS=${RUNS:-plain emuv torture}

[ -x "$EMUV" ] || { echo "run.sh: no emuv binary at $EMUV; build it with: cargo build --release" >&2; exit 1; }
mkdir -p "$OUT" || exit 1
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
TABLE=$OUT/table.txt
: > "$TABLE"
LOG=/dev/null
FAILED=0

# --- rows ---------------------------------------------------------------------------------------------------

# row RESULT CHECK DETAIL
row() {
    printf '%-5s %-10s %-46s %s\n' "$1" "$STEP" "$2" "$3" >> "$TABLE"
    [ "$1" = FAIL ] && FAILED=1
    return 0
}

# judge CHECK compare-arguments...: a row by what compare.py says
judge() {
    local check=$1 words code
    shift
    words=$(python3 tests/gpu/compare.py "$@" 2>&1)
    code=$?
    words=$(printf '%s' "$words" | tail -n 1)
    if [ $code -eq 0 ]; then row ok "$check" "$words"; else row FAIL "$check" "$words"; fi
}

# figure CHECK compare-arguments...: a row that only reports a number
figure() {
    local check=$1 words
    shift
    if words=$(python3 tests/gpu/compare.py "$@" 2>&1); then row ok "$check" "$words"; else row FAIL "$check" "$(printf '%s' "$words" | tail -n 1)"; fi
}

# keep NAME TIMEOUT COMMAND...: runs it, its output into $WORK/NAME and the log; returns its exit code
keep() {
    local name=$1 limit=$2 code start=$SECONDS
    shift 2
    echo "== $name: $*" >> "$LOG"
    timeout --kill-after=10 "$limit" "$@" > "$WORK/$name" 2> "$WORK/$name.stderr" < /dev/null
    code=$?
    cat "$WORK/$name" "$WORK/$name.stderr" >> "$LOG"
    echo "== $name: exit code $code after $((SECONDS - start)) s" >> "$LOG"
    return $code
}

# expect CHECK NAME TIMEOUT COMMAND...: keep, and a row by the exit code
expect() {
    local check=$1 name=$2 code detail
    shift
    keep "$@"
    code=$?
    detail=$(tail -n 1 "$WORK/$name" | cut -c 1-90)
    if [ $code -eq 0 ]; then row ok "$check" "$detail"; else row FAIL "$check" "exit code $code: $(tail -n 1 "$WORK/$name.stderr" | cut -c 1-90)"; fi
}

# --- the driver ---------------------------------------------------------------------------------------------

. tests/gpu/driver.sh

# --- steps --------------------------------------------------------------------------------------------------

step_doctor() {
    local code
    keep doctor.json 120 "$EMUV" doctor --json ${SIM:+--sim}
    code=$?
    python3 - "$WORK/doctor.json" >> "$TABLE" << 'PYTHON'
import json, sys
try:
    with open(sys.argv[1]) as file:
        found = json.load(file)
except ValueError as error:
    sys.exit(f"doctor printed no JSON: {error}")
for check in found["checks"]:
    word = "FAIL" if check["status"] == "fail" else check["status"]
    print(f"{word:<5} {'doctor':<10} {check['id']:<46} {check['found'][:90]}")
PYTHON
    if [ $code -eq 0 ]; then row ok "exit code" 0; else row FAIL "exit code" "$code"; fi
}

# program NAME ARGUMENTS...: plain, and under emuV with a part of its memory in RAM: once as chunks move by default
# and once with chunks moved at random all the time. Arguments that differ between plain and emuV are given as
# PLAIN:: or EMUV:: followed by the argument.
program() {
    local name=$1 argument plain=() emuv=()
    shift
    for argument; do
        case $argument in
            PLAIN::*) plain+=("${argument#PLAIN::}") ;;
            EMUV::*) emuv+=("${argument#EMUV::}") ;;
            *) plain+=("$argument") emuv+=("$argument") ;;
        esac
    done
    runs plain && expect "$name, plain" "$name.plain" 120 env EMUV_TEST_EXPECT=plain EMUV_TEST_SLACK_MIB=256 \
        LD_LIBRARY_PATH="$PLAIN_PATH" ${SIM:+EMUV_SIM=vram=1G} "$WORK/$name" "${plain[@]}"
    runs emuv && expect "$name, 256M + 512M RAM" "$name.emuv" 120 env EMUV_TEST_EXPECT=emuv \
        "$EMUV" run --quiet ${SIM:+--sim=vram=1G} --vram 256M --ram 512M -- "$WORK/$name" "${emuv[@]}"
    runs torture && expect "$name, the same, torture" "$name.torture" 120 env EMUV_TEST_EXPECT=emuv \
        "$EMUV" run --quiet ${SIM:+--sim=vram=1G} --vram 256M --ram 512M --policy torture:7 -- "$WORK/$name" "${emuv[@]}"
}

# Whether the programs are to run that way.
runs() {
    case " $RUNS " in *" $1 "*) true ;; *) false ;; esac
}

build_programs() {
    local source name flags
    for source in tests/programs/*.c; do
        name=$(basename "$source" .c)
        flags=()
        grep -q '#define EMUV_PROGRAM_WITHOUT_LINKING' "$source" || flags+=(-L "$WORK/driver" -lcuda)
        [ "$name" = rpath ] && flags+=("-Wl,--disable-new-dtags,-rpath,$WORK/driver")
        # The driver's own dependencies are not there to link with everywhere.
        if ! "${CC:-cc}" -std=gnu11 -O2 -fPIE -pie -o "$WORK/$name" "$source" "${flags[@]}" \
            -Wl,--allow-shlib-undefined -ldl -lpthread >> "$LOG" 2>&1; then
            row FAIL "$name" "does not compile: see the log"
        fi
    done
}

step_programs() {
    export EMUV_TEST_PTX=$ROOT/crates/emuv/kernels/emuv.ptx EMUV_TEST_LIBCUDA=$DRIVER
    build_programs
    program linked
    program rpath
    program dlopened
    program abspath
    program static_style
    program forking 320
    program exec_child
    program ipc PLAIN::0 EMUV::336
    program threads 320 "" 12 250
    program semantics PLAIN::0 EMUV::256
    program spanning 150 "" 100
    program contexts 320
    program pools 320 "" 300
    program own_vmm 320
    program external 96 288
    program hints 16 24 "" 300
    program model 400 "" 2000 240
    program pointer_array 12 32 20
    program device_list 12 32 12
    program mapped_pointers 12 32 40
    program producers 12 32 300
    program cooperative 12 32 12
    program reuse 192 192 200
    program steady 12 32 12 2
    program frozen 12 32 24
    program graphs 12 32 1000
    program global_pointer 12 32 60
    program meminfo
    if [ -n "$SIM" ]; then
        program oom 32 "" PLAIN::900 PLAIN::1024 EMUV::700 EMUV::768
    else
        program oom PLAIN::1024 EMUV::32 "" EMUV::700 EMUV::768
    fi
    program compute 384 20260101
    runs plain && runs emuv && judge "compute: checksums, plain and emuV" same checksums "$WORK/compute.plain" "$WORK/compute.emuv"
    runs plain && runs torture && judge "compute: checksums, plain and torture" same checksums "$WORK/compute.plain" "$WORK/compute.torture"
    keep compute.refused 60 "$EMUV" run --quiet ${SIM:+--sim=vram=1G} --vram 256M --ram 0 -- "$WORK/compute" 384 20260101
    judge "compute: refused without RAM" oom "$WORK/compute.refused"
    [ -n "$SIM" ] && return
    # The same on a scale where it takes many chunks.
    keep large.plain 60 env LD_LIBRARY_PATH="$PLAIN_PATH" "$WORK/compute" 6144 7 512
    keep large.emuv 120 "$EMUV" run --quiet --vram 2G --ram 5G -- "$WORK/compute" 6144 7 512
    judge "compute, 6 GiB on 2 GiB + 5 GiB RAM" same checksums "$WORK/large.plain" "$WORK/large.emuv"
}

step_meminfo() {
    expect "plain" meminfo.plain 90 python3 tests/gpu/meminfo_agree.py --plain
    expect "emuV, all of VRAM + 4G" meminfo.emuv 90 "$EMUV" run --quiet --ram 4G -- python3 tests/gpu/meminfo_agree.py
    expect "emuV, 10.5G + 8G" meminfo.capped 90 "$EMUV" run --quiet --vram 10.5G --ram 8G -- python3 tests/gpu/meminfo_agree.py
    expect "emuV, 10.5G and no RAM" meminfo.noram 90 "$EMUV" run --quiet --vram 10.5G --ram 0 -- python3 tests/gpu/meminfo_agree.py
}

step_resnet() {
    local program=(python3 tests/gpu/resnet50.py --iters "$ITERS")
    keep resnet.plain 120 "${program[@]}"
    keep resnet.plain2 120 "${program[@]}"
    judge "two plain runs agree" same losses,weights_sha256 "$WORK/resnet.plain" "$WORK/resnet.plain2"
    keep resnet.fits 120 "$EMUV" run --ram 8G --report "$WORK/resnet.fits.json" -- "${program[@]}"
    judge "emuV, everything fits" same losses,weights_sha256 "$WORK/resnet.plain" "$WORK/resnet.fits"
    keep resnet.spilled 240 "$EMUV" run --vram 10.5G --ram 8G --report "$WORK/resnet.spilled.json" -- "${program[@]}"
    judge "emuV, 10.5G + 8G RAM" same losses,weights_sha256 "$WORK/resnet.plain" "$WORK/resnet.spilled"
    keep resnet.refused 120 "$EMUV" run --quiet --vram 10.5G --ram 0 -- "${program[@]}"
    judge "10.5G and no RAM: refused" oom "$WORK/resnet.refused"
    figure "seconds per iteration, plain" median seconds "$WORK/resnet.plain" "$WORK/resnet.plain2"
    figure "ratio, everything fits" ratio seconds "$WORK/resnet.plain" "$WORK/resnet.plain2" -- "$WORK/resnet.fits"
    figure "ratio, 10.5G + 8G RAM" ratio seconds "$WORK/resnet.plain" "$WORK/resnet.plain2" -- "$WORK/resnet.spilled"
    cat "$WORK"/resnet.*.json >> "$LOG" 2> /dev/null
}

step_llama() {
    local tokens program
    for tokens in 1 512; do
        program=(python3 tests/gpu/llama_layers.py --tokens "$tokens")
        keep "llama.plain.$tokens" 120 "${program[@]}"
        keep "llama.spilled.$tokens" 240 "$EMUV" run --vram 9G --ram 8G --report "$WORK/llama.$tokens.json" -- "${program[@]}"
        judge "$tokens tokens, 9G + 8G RAM" same outputs_sha256 "$WORK/llama.plain.$tokens" "$WORK/llama.spilled.$tokens"
        figure "$tokens tokens: seconds per forward, plain" median seconds "$WORK/llama.plain.$tokens"
        figure "$tokens tokens: ratio, 9G + 8G RAM" ratio seconds "$WORK/llama.plain.$tokens" -- "$WORK/llama.spilled.$tokens"
    done
    keep llama.refused 120 "$EMUV" run --quiet --vram 9G --ram 0 -- "${program[@]}"
    judge "9G and no RAM: refused" oom "$WORK/llama.refused"
    cat "$WORK"/llama.*.json >> "$LOG" 2> /dev/null
}

# moving NAME RESULTS VRAM MANY FEW PROGRAM...: plain, with data that moves (MANY repetitions, the last half counts) and
# with data that stays where it was put (FEW), and moved at random; the same results in all
moving() {
    local name=$1 results=$2 vram=$3 many=$4 few=$5 check
    shift 5
    check="$name, $vram"
    [ -f "$WORK/$name.plain" ] || keep "$name.plain" 120 python3 "$@" "$few"
    keep "$name.$vram" 180 "$EMUV" run --vram "$vram" --ram 12G --report "$WORK/$name.$vram.json" -- python3 "$@" "$many"
    keep "$name.$vram.static" 180 "$EMUV" run --quiet --vram "$vram" --ram 12G --policy static -- python3 "$@" "$few"
    keep "$name.$vram.torture" 180 "$EMUV" run --quiet --vram "$vram" --ram 12G --policy torture:3 -- python3 "$@" "$few"
    figure "$check: ratio to plain" ratio seconds/2 "$WORK/$name.plain" -- "$WORK/$name.$vram"
    figure "$check: static, ratio to moved" ratio seconds/2 "$WORK/$name.$vram" -- "$WORK/$name.$vram.static"
    judge "$check: static and torture as plain" same "$results" "$WORK/$name.plain" "$WORK/$name.$vram.static" "$WORK/$name.$vram.torture"
    cat "$WORK/$name.$vram.json" >> "$LOG" 2> /dev/null
}

step_movement() {
    moving resnet50 losses,weights_sha256 10.5G 24 4 tests/gpu/resnet50.py --iters
    moving resnet50 losses,weights_sha256 8.5G 24 4 tests/gpu/resnet50.py --iters
    moving layers512 outputs_sha256 9G 30 4 tests/gpu/llama_layers.py --tokens 512 --forwards
    moving layers1 outputs_sha256 9G 12 4 tests/gpu/llama_layers.py --tokens 1 --forwards
}

# Chunks move at random all the time: the same results as plain. (`EMUV_POLICY=torture:N tests/gpu/clients.sh` does the
# same with other people's programs.)
step_torture() {
    local seed
    keep transformer.plain 120 python3 tests/gpu/transformer.py
    keep resnet20.plain 120 python3 tests/gpu/resnet50.py --iters 18
    for seed in 1 2; do
        keep "transformer.$seed" 180 "$EMUV" run --quiet --vram 2G --ram 12G --policy "torture:$seed" -- python3 tests/gpu/transformer.py
        judge "transformer, AdamW, 20 steps, seed $seed" same losses,state_sha256 "$WORK/transformer.plain" "$WORK/transformer.$seed"
    done
    keep resnet20.torture 180 "$EMUV" run --quiet --vram 10.5G --ram 12G --policy torture:4 -- python3 tests/gpu/resnet50.py --iters 18
    judge "ResNet-50, 20 steps" same losses,weights_sha256 "$WORK/resnet20.plain" "$WORK/resnet20.torture"
}

# Long and varied use: the same results throughout, nothing that grows.
step_soak() {
    local seconds=${SOAK:-120}
    keep soak.plain 120 python3 tests/gpu/soak.py --seconds 1
    keep soak.emuv $((seconds + 120)) "$EMUV" run --quiet --vram 600M --ram 12G --report "$WORK/soak.json" -- python3 tests/gpu/soak.py --seconds "$seconds"
    judge "$seconds s: nothing drifts" ok "$WORK/soak.emuv"
    judge "results as plain" same hashes "$WORK/soak.plain" "$WORK/soak.emuv"
    cat "$WORK/soak.json" >> "$LOG" 2> /dev/null
}

# What emuV costs when everything fits: plain and emuV in turn, so that drift hits both.
step_overhead() {
    local round plain_launch=() emuv_launch=() plain_stream=() emuv_stream=() blocks=${SIM:+4}
    export EMUV_TEST_PTX=$ROOT/crates/emuv/kernels/emuv.ptx
    [ -x "$WORK/launch_bench" ] || build_programs
    for round in 1 2 3 4 5; do
        keep "launch.plain.$round" 60 env LD_LIBRARY_PATH="$PLAIN_PATH" ${SIM:+EMUV_SIM=vram=1G} "$WORK/launch_bench"
        keep "launch.emuv.$round" 60 "$EMUV" run --quiet ${SIM:+--sim=vram=1G} --ram 1G -- "$WORK/launch_bench"
        plain_launch+=("$WORK/launch.plain.$round") emuv_launch+=("$WORK/launch.emuv.$round")
    done
    for round in 1 2 3 4 5; do
        keep "stream.plain.$round" 60 env LD_LIBRARY_PATH="$PLAIN_PATH" ${SIM:+EMUV_SIM=vram=1G} "$WORK/stream_bench" 86 "${blocks:-64}"
        keep "stream.emuv.$round" 60 "$EMUV" run --quiet ${SIM:+--sim=vram=1G} --ram 1G -- "$WORK/stream_bench" 86 "${blocks:-64}"
        plain_stream+=("$WORK/stream.plain.$round") emuv_stream+=("$WORK/stream.emuv.$round")
    done
    figure "GB/s that a kernel reads, plain" median median_gb_per_s "${plain_stream[@]}"
    figure "GB/s that a kernel reads, ratio" ratio median_gb_per_s "${plain_stream[@]}" -- "${emuv_stream[@]}"
    figure "ns per launch, plain" median median_ns "${plain_launch[@]}"
    figure "ns per launch, ratio under emuV" ratio median_ns "${plain_launch[@]}" -- "${emuv_launch[@]}"
    [ -n "$SIM" ] && return
    fitting "ResNet-50" losses,weights_sha256 tests/gpu/resnet50.py --iters 10
    fitting "LLaMA layers, 512 tokens" outputs_sha256 tests/gpu/llama_layers.py --tokens 512 --forwards 10
    linear_fitting
}

# The linear layers alone: what is left of the cost when the host is not the limit.
linear_fitting() {
    local round key plain=() emuv=() own=()
    for round in 1 2 3 4 5 6; do
        keep "linear.plain.$round" 90 python3 tests/gpu/linear_fit.py
        keep "linear.emuv.$round" 90 "$EMUV" run --quiet --ram 4G -- python3 tests/gpu/linear_fit.py
        keep "linear.own.$round" 90 "$EMUV" run --quiet --no-framework-hints --ram 4G -- python3 tests/gpu/linear_fit.py
        plain+=("$WORK/linear.plain.$round") emuv+=("$WORK/linear.emuv.$round") own+=("$WORK/linear.own.$round")
    done
    for key in seconds graph_seconds read_seconds; do
        figure "linear layers fitting, $key: ratio" ratio "$key" "${plain[@]}" -- "${emuv[@]}"
        figure "linear layers fitting, $key: ratio, own allocator" ratio "$key" "${plain[@]}" -- "${own[@]}"
    done
}

# fitting WHAT RESULTS PROGRAM...: five runs each, plain and under emuV with room for everything, in turn; under
# emuV with the allocator that it asks PyTorch for, and with PyTorch's own
fitting() {
    local what=$1 results=$2 round plain=() emuv=() own=()
    shift 2
    for round in 1 2 3 4 5; do
        keep "fits.plain.$round" 90 python3 "$@"
        keep "fits.emuv.$round" 90 "$EMUV" run --quiet --ram 4G -- python3 "$@"
        keep "fits.own.$round" 90 "$EMUV" run --quiet --no-framework-hints --ram 4G -- python3 "$@"
        plain+=("$WORK/fits.plain.$round") emuv+=("$WORK/fits.emuv.$round") own+=("$WORK/fits.own.$round")
    done
    figure "$what fitting: ratio" ratio seconds "${plain[@]}" -- "${emuv[@]}"
    figure "$what fitting: ratio, own allocator" ratio seconds "${plain[@]}" -- "${own[@]}"
    judge "$what fitting: same results" same "$results" "${plain[@]}" "${emuv[@]}" "${own[@]}"
}

step_demo() {
    expect "refused, spilled, completed, equal" demo 120 "$EMUV" demo ${SIM:+--sim}
}

# --- main ---------------------------------------------------------------------------------------------------

if [ $# -gt 0 ]; then STEPS=("$@"); else STEPS=("${ALL_STEPS[@]}"); fi
for STEP in "${STEPS[@]}"; do
    case " ${ALL_STEPS[*]} " in
        *" $STEP "*) ;;
        *) echo "run.sh: no step '$STEP'; the steps are: ${ALL_STEPS[*]}" >&2; exit 2 ;;
    esac
done
prepare_driver
PLAIN_PATH=$WORK/driver:$(dirname "$DRIVER")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
for STEP in "${STEPS[@]}"; do
    LOG=$OUT/$STEP.log
    : > "$LOG"
    started=$SECONDS
    echo "run.sh: $STEP ..." >&2
    "step_$STEP"
    echo "run.sh: $STEP took $((SECONDS - started)) s" >&2
done
cat "$TABLE"
exit $FAILED
