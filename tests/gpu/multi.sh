#!/usr/bin/env bash
# Runs emuV on a machine with two NVIDIA GPUs (or more: the first two are used) and prints one table. At most 8 minutes.
#
#   tests/gpu/multi.sh [STEP...]     steps: info visible programs plain fitting slices peers nccl budgets (default: all, in this order)
#
# Needs: the release build in target/release (emuv, libemuv_shim.so), python3, a C compiler; PyTorch with NCCL for the
# steps from peers on.
# Settings by environment:
#   OUT=DIR         where the logs (multi-STEP.log) and multi.txt go (default ./out); each row is written as it is found
#   EMUV=FILE       the emuv binary (default target/release/emuv)
#   SCALE=N         time limits in percent of the usual ones (default 100)
#   MOST=SECONDS    when no more is begun, and what runs is ended (default 560)
#   JOBS=N          runs at a time where only results count (default 4)
#   SIM=1           a dry run of info, visible and programs on two simulated GPUs, to test this script
# Exit code: 0 if every row of the table is ok, 1 if not.
set -u
cd "$(dirname "$0")/../.." || exit 1
ROOT=$PWD
OUT=${OUT:-$ROOT/out}
EMUV=${EMUV:-$ROOT/target/release/emuv}
SCALE=${SCALE:-100}
MOST=${MOST:-560}
JOBS=${JOBS:-4}
SIM=${SIM:-}
# What is timed runs alone, before the steps in which several run side by side.
ALL_STEPS=(info visible programs plain fitting slices peers nccl budgets)

EMUV=$(readlink -f "$EMUV")
[ -x "$EMUV" ] || { echo "multi.sh: no emuv binary at $EMUV; build it with: cargo build --release" >&2; exit 1; }
mkdir -p "$OUT" || exit 1
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
TABLE=$OUT/multi.txt
: > "$TABLE"
LOG=/dev/null
BEGAN=$SECONDS
unset CUDA_VISIBLE_DEVICES PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING
export EMUV_STATE_DIR=$WORK/state PYTHONDONTWRITEBYTECODE=1
# NVLink multicast stays off; all ranks are on this host.
export NCCL_NVLS_ENABLE=0 NCCL_SOCKET_IFNAME=lo CUBLAS_WORKSPACE_CONFIG=:4096:8
mkdir -m 700 "$EMUV_STATE_DIR"
SIM_OPTION=${SIM:+--sim=gpus=2,vram=1G}

# --- rows ---------------------------------------------------------------------------------------------------

# row RESULT CHECK DETAIL: also shown at once, with the time since the beginning
row() {
    printf '%-5s %-9s %-52s %s\n' "$1" "$STEP" "$2" "$3" | tee -a "$TABLE" | sed "s/^/[$((SECONDS - BEGAN)) s] /" >&2
    [ "$1" = FAIL ] && : > "$WORK/failed"
    return 0
}

# judge CHECK compare-arguments...: a row by what compare.py says
judge() {
    local check=$1 words
    shift
    if words=$(python3 tests/gpu/compare.py "$@" 2>&1); then row ok "$check" "$words"; else row FAIL "$check" "$(printf '%s' "$words" | tail -n 1)"; fi
}

# figure CHECK compare-arguments...: a row that only reports a number
figure() {
    local check=$1 words
    shift
    if words=$(python3 tests/gpu/compare.py "$@" 2>&1); then row ok "$check" "$words"; else row "-" "$check" "$(printf '%s' "$words" | tail -n 1)"; fi
}

# keep NAME TIMEOUT COMMAND...: runs it, its output into $WORK/NAME and the log; returns its exit code
keep() {
    local name=$1 limit=$(($2 * SCALE / 100)) code start=$SECONDS left=$((MOST - SECONDS + BEGAN))
    shift 2
    if [ $left -lt 5 ]; then
        echo "the time is up: not run" > "$WORK/$name.stderr"
        : > "$WORK/$name"
        return 124
    fi
    [ $limit -gt $left ] && limit=$left
    timeout --kill-after=5 "$limit" "$@" > "$WORK/$name" 2> "$WORK/$name.stderr" < /dev/null
    code=$?
    {
        echo "== $name: $*"
        cat "$WORK/$name" "$WORK/$name.stderr"
        echo "== $name: exit code $code after $((SECONDS - start)) s of $limit"
    } >> "$LOG"
    return $code
}

# expect CHECK NAME TIMEOUT COMMAND...: keep, and a row by the exit code
expect() {
    local check=$1 name=$2 code
    shift
    keep "$@"
    code=$?
    if [ $code -eq 0 ]; then
        row ok "$check" "$(tail -n 1 "$WORK/$name" | cut -c 1-90)"
    else
        row FAIL "$check" "exit code $code: $(grep -v '^$' "$WORK/$name.stderr" | tail -n 1 | cut -c 1-110)"
    fi
    return $code
}

# beside COMMAND...: in the background, at most JOBS at a time; `wait` ends it
beside() {
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
    "$@" &
}

# value KEY NAME: one value of what a run printed
value() {
    python3 -c 'import json, sys
lines = [line for line in open(sys.argv[2], errors="replace") if line.startswith("{")]
found = json.loads(lines[-1]).get(sys.argv[1]) if lines else None
print("" if found is None else found)' "$1" "$WORK/$2" 2> /dev/null
}

# --- the driver ---------------------------------------------------------------------------------------------

. tests/gpu/driver.sh

# The driver under both names, and the two programs of this script.
prepare() {
    local name
    prepare_driver
    # What stands before a command that is to use the driver alone.
    PLAIN=(env EMUV_TEST_EXPECT=plain EMUV_TEST_SLACK_MIB=256 ${SIM:+EMUV_SIM=gpus=2,vram=1G}
        "LD_LIBRARY_PATH=$WORK/driver:$(dirname "$DRIVER")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
    export EMUV_TEST_PTX=$ROOT/crates/emuv/kernels/emuv.ptx EMUV_TEST_LIBCUDA=$DRIVER
    for name in visible peers twins ipc; do
        "${CC:-cc}" -std=gnu11 -O2 -fPIE -pie -o "$WORK/$name" "tests/programs/$name.c" -L "$WORK/driver" -lcuda \
            -Wl,--allow-shlib-undefined -ldl -lpthread > "$WORK/cc" 2>&1 || { cat "$WORK/cc" >&2; exit 1; }
    done
}

# --- steps --------------------------------------------------------------------------------------------------

step_info() {
    if [ -z "$SIM" ]; then
        keep smi 20 nvidia-smi -L
        keep topology 20 nvidia-smi topo -m
        keep p2p 20 nvidia-smi topo -p2p r
        row - "GPUs" "$(sed 's/ (UUID.*//' "$WORK/smi" | paste -sd ';')"
    fi
    keep info 30 "$EMUV" info ${SIM:+--sim="gpus=2,vram=1G"}
    expect "emuv doctor" doctor 100 "$EMUV" doctor ${SIM:+--sim="gpus=2,vram=1G"}
}

# seen NAME WHAT: the devices that the program saw
seen() {
    value uuids "$1"
}

# visible_as CHECK NAME VALUE: the same devices under emuV as plain, each with a budget of its own; the report's
# accounting is by UUID (device i of the list holds (i + 1) x 48 MiB)
visible_as() {
    local check=$1 name=$2 list=$3 words
    keep "$name.plain" 30 "${PLAIN[@]}" CUDA_VISIBLE_DEVICES="$list" "$WORK/visible"
    expect "$check" "$name.emuv" 40 env CUDA_VISIBLE_DEVICES="$list" EMUV_TEST_EXPECT=emuv "$EMUV" run --quiet $SIM_OPTION \
        --vram 512M --ram 1G --report "$WORK/$name.json" -- "$WORK/visible" || return
    words=$(python3 - "$WORK/$name.plain" "$WORK/$name.emuv" "$WORK/$name.json" << 'PYTHON'
import json, sys
plain, emuv = (json.loads([line for line in open(path) if line.startswith("{")][-1]) for path in sys.argv[1:3])
if plain != emuv:
    sys.exit(f"plain {plain}, emuV {emuv}")
with open(sys.argv[3]) as file:
    report = json.load(file)
held = {}
for process in report["processes"]:
    for device in process["devices"]:
        held[device["uuid"]] = max(held.get(device["uuid"], 0), device["vram"]["peak_bytes"] + device["ram"]["peak_bytes"])
for index, uuid in enumerate(emuv["uuids"]):
    least = (index + 1) * 48 << 20
    # What the driver takes for a context may be charged as well.
    if not least <= held.pop(uuid, 0) < least + (400 << 20):
        sys.exit(f"the report does not show {least} bytes on {uuid}: {report['processes']}")
if any(held.values()):
    sys.exit(f"the report shows memory elsewhere: {held}")
print(f"{len(emuv['uuids'])} devices, error {emuv['error']}")
PYTHON
    ) && row ok "$check: as plain, accounted by UUID" "$words" || row FAIL "$check: as plain, accounted by UUID" "$words"
}

step_visible() {
    local first second uuids
    keep all 30 "${PLAIN[@]}" "$WORK/visible"
    uuids=$(seen all)
    first=$(printf '%s' "$uuids" | grep -o 'GPU-[0-9a-f-]*' | sed -n 1p)
    second=$(printf '%s' "$uuids" | grep -o 'GPU-[0-9a-f-]*' | sed -n 2p)
    if [ -z "$second" ]; then row FAIL "two GPUs" "$uuids $(tail -n 1 "$WORK/all.stderr")"; return; fi
    expect "unset" unset 40 env EMUV_TEST_EXPECT=emuv "$EMUV" run --quiet $SIM_OPTION --vram 512M --ram 1G -- "$WORK/visible"
    judge "unset: as plain" same uuids "$WORK/all" "$WORK/unset"
    beside visible_as "0" v0 0
    beside visible_as "1" v1 1
    beside visible_as "1,0" v10 1,0
    beside visible_as "0,1,7" v017 0,1,7
    beside visible_as "1,-1,0" v1m 1,-1,0
    beside visible_as "0,0" v00 0,0
    beside visible_as "empty" vempty ""
    beside visible_as "-1" vminus -1
    beside visible_as "first UUID" vfirst "$first"
    beside visible_as "second UUID, first UUID" vboth "$second,$first"
    beside visible_as "beginning of the second UUID" vprefix "${second:0:14}"
    beside visible_as "UUID and number" vmixed "$second,0"
    beside visible_as "an unknown UUID" vunknown GPU-00000000-0000-0000-0000-000000000000
    beside visible_as "a MIG name" vmig MIG-00000000-0000-0000-0000-000000000000
    wait
    keep bygpu 30 "$EMUV" run --quiet $SIM_OPTION --gpu 1 --vram 512M --ram 1G -- "$WORK/visible"
    if [ "$(seen bygpu)" = "['$second']" ]; then row ok "--gpu 1" "$second"; else row FAIL "--gpu 1" "$(seen bygpu)"; fi
    keep nogpu 30 "$EMUV" run --quiet $SIM_OPTION --gpu 7 -- "$WORK/visible"
    if [ $? -eq 2 ]; then row ok "--gpu 7 is refused" "$(cut -c 1-100 "$WORK/nogpu.stderr")"; else row FAIL "--gpu 7 is refused" "$(cat "$WORK/nogpu.stderr")"; fi
}

# program CHECK NAME COMMAND... -- emuv-arguments...: a program that needs two devices, under emuV
program() {
    local check=$1 name=$2 command=()
    shift 2
    while [ "$1" != -- ]; do command+=("$1") && shift; done
    shift
    expect "$check" "$name" 90 env EMUV_TEST_EXPECT=emuv EMUV_TEST_PEER_DEVICE=1 "$EMUV" run --quiet $SIM_OPTION \
        --report "$WORK/$name.json" "$@" -- "${command[@]}"
    cat "$WORK/$name.json" >> "$LOG" 2> /dev/null
}

step_programs() {
    local policy vram=256M peers=("$WORK/peers" 14 24 100 11)
    # The simulated GPUs are slow.
    if [ -n "$SIM" ]; then vram=64M peers=("$WORK/peers" 6 16 12 11); fi
    # These look at how much of the card is free: alone.
    expect "two devices, plain" peers.plain 60 "${PLAIN[@]}" "${peers[@]}"
    expect "the same code on two devices, plain" twins.plain 60 "${PLAIN[@]}" "$WORK/twins" 12 32 12
    if keep ipc.plain 60 "${PLAIN[@]}" EMUV_TEST_PEER_DEVICE=1 "$WORK/ipc" 0; then row ok "IPC from GPU to GPU, plain" "$(tail -n 1 "$WORK/ipc.plain")"
    elif grep -q "cuIpcGetMemHandle" "$WORK/ipc.plain.stderr"; then row - "IPC from GPU to GPU, plain" "this host's driver gives no handles for it"
    else row FAIL "IPC from GPU to GPU, plain" "$(tail -n 1 "$WORK/ipc.plain.stderr" | cut -c 1-110)"; fi
    program "two devices, everything fits" peers.fits "${peers[@]}" -- --ram 1G
    program "IPC from GPU to GPU, everything fits" ipc.fits "$WORK/ipc" 0 -- --ram 1G
    for policy in dynamic static torture:7 torture:8; do
        beside program "two devices, $vram + 1G, $policy" "peers.$policy" "${peers[@]}" -- --vram $vram --ram 1G --policy "$policy"
        beside program "the same code on two devices, $vram + 1G, $policy" "twins.$policy" "$WORK/twins" 12 32 12 -- --vram $vram --ram 1G --policy "$policy"
        beside program "IPC from GPU to GPU, 256M + 512M, $policy" "ipc.$policy" "$WORK/ipc" 336 -- --vram 256M --ram 512M --policy "$policy"
    done
    wait
}

# ranks NAME TIMEOUT TASKS [emuv-arguments...]: plain without any
ranks() {
    local name=$1 limit=$2 tasks=$3 command
    shift 3
    command=(python3 tests/gpu/multi_ranks.py "$tasks" --visible "${VISIBLE:-all}" --steps "${RANK_STEPS:-8}" --dir "$OUT/ranks-$name")
    if [ $# -eq 0 ]; then keep "$name" "$limit" "${command[@]}"; else
        keep "$name" "$limit" "$EMUV" run --quiet --report "$WORK/$name.json" "$@" -- "${command[@]}"
        cat "$WORK/$name.json" >> "$LOG" 2> /dev/null
    fi
}

# tight KEY NAME: 80 % of what a plain run needed, for --vram
tight() {
    local peak
    peak=$(value "$1" "$2")
    echo "$((${peak:-4000000000} * 8 / 10 / 1048576))M"
}

# as_plain TASK PLAIN RUN DETAIL: rows on results and time
as_plain() {
    local skipped
    skipped=$(value "skipped_$1" "$2")
    if [ -n "$skipped" ]; then row - "$1, $4" "$skipped"; return; fi
    if [ -n "$(value "results_$1" "$3")" ]; then
        judge "$1, $4: results as plain" same "results_$1" "$WORK/$2" "$WORK/$3"
        figure "$1, $4: time, ratio" ratio "seconds_$1" "$WORK/$2" -- "$WORK/$3"
    else
        row FAIL "$1, $4" "$(value error "$3") $(grep -v '^$' "$WORK/$3.stderr" | tail -n 1 | cut -c 1-110)"
    fi
}

# What everything else is compared with: PyTorch's own allocator, all of the memory.
step_plain() {
    local what
    ranks all.ranks 110 allreduce,captured,beside,ddp,fsdp,tensor
    row - "seconds of start, versions" "$(value start_seconds all.ranks) $(value versions all.ranks)"
    [ -z "$(value error all.ranks)" ] || row FAIL "the ranks" "$(value error all.ranks)"
    keep copies.plain 60 python3 tests/gpu/multi_peers.py copies
    for what in pipeline replicas; do
        beside keep $what.plain 60 python3 tests/gpu/multi_peers.py $what
    done
    PYTORCH_ALLOC_CONF=backend:native beside ranks registered.plain 60 registered,beside
    wait
    for what in copies pipeline replicas; do
        judge "$what" ok "$WORK/$what.plain"
    done
    judge registered ok "$WORK/registered.plain"
}

# What emuV costs when everything fits, in turn: plain, plain with the allocator that emuV has PyTorch use (so that what that
# costs is not taken for emuV's), emuV, emuV with PyTorch's own allocator.
step_fitting() {
    local round size kind plain=() async=() emuv=() own=()
    for round in $(seq "${ROUNDS:-3}"); do
        RANK_STEPS=15 ranks "fit.plain.$round" 60 allreduce,wide
        PYTORCH_ALLOC_CONF=backend:cudaMallocAsync RANK_STEPS=15 ranks "fit.async.$round" 60 allreduce,wide
        RANK_STEPS=15 ranks "fit.emuv.$round" 60 allreduce,wide --ram 8G
        RANK_STEPS=15 ranks "fit.own.$round" 60 allreduce,wide --ram 8G --no-framework-hints
        plain+=("$WORK/fit.plain.$round") async+=("$WORK/fit.async.$round")
        emuv+=("$WORK/fit.emuv.$round") own+=("$WORK/fit.own.$round")
    done
    keep copies.fits 60 "$EMUV" run --quiet --ram 8G -- python3 tests/gpu/multi_peers.py copies
    judge "allreduce, wide: results as plain" same results_allreduce,results_wide "${plain[@]}" "${async[@]}" "${emuv[@]}" "${own[@]}"
    for kind in allreduce_8 allreduce_65536 allreduce_1048576 allreduce_33554432 allreduce_268435456 wide; do
        figure "$kind: time, ratio" ratio "seconds_$kind" "${plain[@]}" -- "${emuv[@]}"
        figure "$kind: time, ratio, the same allocator" ratio "seconds_$kind" "${async[@]}" -- "${emuv[@]}"
        figure "$kind: time, ratio, PyTorch's own allocator" ratio "seconds_$kind" "${plain[@]}" -- "${own[@]}"
    done
    figure "all-reduce, GB/s, plain" median gb_per_s_allreduce "${plain[@]}"
    figure "all-reduce, GB/s, emuV" median gb_per_s_allreduce "${emuv[@]}"
    judge "copies between GPUs: results as plain" same results "$WORK/copies.plain" "$WORK/copies.fits"
    figure "copies between GPUs: GB/s, plain" median gb_per_s "$WORK/copies.plain"
    figure "copies between GPUs: GB/s, emuV" median gb_per_s "$WORK/copies.fits"
}

# A slice of each GPU and a slice of both: what programs see, and a model of two ranks in the one of both at 80 %.
step_slices() {
    local vram name
    vram=$(tight peak_bytes_tensor all.ranks)
    keep create.0 20 "$EMUV" vgpu create first --gpu 0 --vram 3G --ram 4G
    keep create.1 20 "$EMUV" vgpu create second --gpu 1 --vram 4G --ram 4G
    expect "a slice of both GPUs, $vram on each" create.pair 20 "$EMUV" vgpu create pair --gpu 0,1 --vram "$vram" --ram 16G
    keep all 30 "${PLAIN[@]}" "$WORK/visible"
    for name in first second pair; do
        keep "seen.$name" 30 env EMUV_TEST_EXPECT=emuv "$EMUV" run --quiet --vgpu "$name" -- "$WORK/visible"
    done
    judge "the slice of both sees both" same uuids "$WORK/all" "$WORK/seen.pair"
    if [ "$(seen all)" = "$(seen seen.first | sed 's/]$//'), $(seen seen.second | sed 's/^\[//')" ]; then
        row ok "each of the others sees its own" "$(seen seen.first) $(seen seen.second)"
    else row FAIL "each of the others sees its own" "$(seen seen.first) $(seen seen.second)"; fi
    for name in first second; do
        beside keep "busy.$name" 60 "$EMUV" run --quiet --vgpu "$name" -- python3 tests/gpu/multi_ranks.py ddp:6 --ranks 1
    done
    keep tensor.pair 110 "$EMUV" run --quiet --vgpu pair -- python3 tests/gpu/multi_ranks.py tensor:8
    wait
    keep list 20 "$EMUV" vgpu list
    as_plain tensor all.ranks tensor.pair "in the slice of both, beside the others"
    judge "the programs in the two slices: the same results" same results_ddp "$WORK/busy.first" "$WORK/busy.second"
    for name in first second pair; do expect "delete $name" "delete.$name" 20 "$EMUV" vgpu delete "$name"; done
}

# one_process WHAT RUN CHECK emuv-arguments...: one process with two GPUs
one_process() {
    local what=$1 name=$1.$2 check=$3
    shift 3
    keep "$name" 90 "$EMUV" run --quiet --report "$WORK/$name.json" "$@" -- python3 tests/gpu/multi_peers.py "$what"
    cat "$WORK/$name.json" >> "$LOG" 2> /dev/null
    judge "$what, $check: results as plain" same results "$WORK/$what.plain" "$WORK/$name"
    figure "$what, $check: time, ratio (not alone)" ratio seconds "$WORK/$what.plain" -- "$WORK/$name"
}

step_peers() {
    local what vram
    for what in copies pipeline replicas; do
        vram=$(tight peak_bytes $what.plain)
        beside one_process $what tight "80 % ($vram)" --vram "$vram" --ram 12G
    done
    vram=$(tight peak_bytes copies.plain)
    beside one_process copies torture "80 % ($vram), torture" --vram "$vram" --ram 12G --policy torture:5
    beside one_process pipeline fits "fits" --ram 8G
    beside one_process replicas fits "fits" --ram 8G
    wait
}

# What NCCL has registered lies still while other data moves.
step_nccl() {
    local vram task
    vram=$(tight peak_bytes_beside all.ranks)
    beside ranks nccl.tight 90 allreduce,captured,beside --vram "$vram" --ram 12G
    beside ranks nccl.torture 90 captured,beside --vram "$vram" --ram 12G --policy torture:5
    # Registered buffers need PyTorch's own allocator: emuV leaves it alone where it is chosen.
    PYTORCH_ALLOC_CONF=backend:native beside ranks registered.tight 90 registered,beside --vram "$vram" --ram 12G
    wait
    for task in allreduce captured beside; do as_plain $task all.ranks nccl.tight "$vram"; done
    for task in captured beside; do as_plain $task all.ranks nccl.torture "$vram, torture"; done
    for task in registered beside; do as_plain $task registered.plain registered.tight "$vram, own allocator"; done
}

# Models at 80 % of what they need, one after the other: ranks of two programs on one GPU take turns, and each waits for
# the other rank of its own.
step_budgets() {
    local task steps vram
    for task in tensor:20 ddp:12 fsdp:6; do
        steps=${task#*:} task=${task%:*}
        vram=$(tight "peak_bytes_$task" all.ranks)
        ranks "$task.plain" 40 "$task:$steps"
        VISIBLE=$([ "$task" = tensor ] && echo own || echo all) ranks "$task.tight" 110 "$task:$steps" --vram "$vram" --ram 16G
        as_plain "$task" "$task.plain" "$task.tight" "80 % ($vram)"
        figure "$task, 80 % ($vram): time, ratio, second half of the steps" ratio "late_$task" "$WORK/$task.plain" -- "$WORK/$task.tight"
    done
}

# --- main ---------------------------------------------------------------------------------------------------

if [ $# -gt 0 ]; then STEPS=("$@"); elif [ -n "$SIM" ]; then STEPS=(info visible programs); else STEPS=("${ALL_STEPS[@]}"); fi
for STEP in "${STEPS[@]}"; do
    case " ${ALL_STEPS[*]} " in
        *" $STEP "*) ;;
        *) echo "multi.sh: no step '$STEP'; the steps are: ${ALL_STEPS[*]}" >&2; exit 2 ;;
    esac
done
STEP=start
prepare
for STEP in "${STEPS[@]}"; do
    LOG=$OUT/multi-$STEP.log
    : > "$LOG"
    "step_$STEP"
    row - "took" "$((SECONDS - BEGAN)) s since the beginning"
done
echo
cat "$TABLE"
[ ! -e "$WORK/failed" ]
