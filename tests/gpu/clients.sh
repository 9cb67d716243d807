#!/usr/bin/env bash
# Runs other people's programs and test suites twice, plain and under emuV with most of their memory in RAM, and
# compares the two check by check, bit by bit. For a machine with an NVIDIA GPU.
#
#   tests/gpu/clients.sh [NAME...]     a step, or the beginning of several: torch jax cupy ... (default: all)
#
# Needs: emuV's release build, python3. Steps whose framework or compiler is missing are skipped and say so.
# Settings by environment:
#   OUT=DIR       where the logs (clients-STEP-{plain,emuv}.log) and clients.txt go (default ./out)
#   EMUV=FILE     the emuv binary (default target/release/emuv)
#   SEED=N        the campaign's seed (default: random; it is printed)
#   JOBS=N        steps at a time (default 3); a step's two runs always follow one another
#   SCALE=N       time limits in percent of the usual ones (default 100)
#   PLAIN=failed  numba: under emuV first, then plain only what did not pass (half the time)
#   EMUV_POLICY=torture:N   chunks move at random all the time in the runs under emuV
# Exit code: 0 if every step that ran is ok, 1 if not, 2 for a wrong argument.
set -u
cd "$(dirname "$0")/../.." || exit 1
ROOT=$PWD
OUT=${OUT:-$ROOT/out}
EMUV=${EMUV:-$ROOT/target/release/emuv}
SEED=${SEED:-$((RANDOM * 32768 + RANDOM))}
JOBS=${JOBS:-3}
SCALE=${SCALE:-100}
PLAIN=${PLAIN:-}
CLIENTS=$ROOT/tests/gpu/clients
# Those that take longest first.
STEPS=(numba torch-native torch-expandable torch-async transformers jax-prealloc jax-growth jax-async cupy triton
    cudart-static cudart-shared cublas vmm sanitizer)
# Looks at what the others left behind, so alone and last.
LAST_STEP=leak

EMUV=$(readlink -f "$EMUV")
[ -x "$EMUV" ] || { echo "clients.sh: no emuv binary at $EMUV; build it with: cargo build --release" >&2; exit 1; }
mkdir -p "$OUT" || exit 1
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
export EMUV_STATE_DIR=$WORK/state
mkdir -m 700 "$EMUV_STATE_DIR" "$WORK/rows" "$WORK/caches"

# The same for both runs of each step: nothing inherited that chooses an allocator, and caches of this campaign.
unset PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING CUPY_GPU_MEMORY_LIMIT
unset XLA_PYTHON_CLIENT_ALLOCATOR XLA_PYTHON_CLIENT_PREALLOCATE XLA_PYTHON_CLIENT_MEM_FRACTION XLA_CLIENT_MEM_FRACTION
export PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=$WORK/caches/triton TORCHINDUCTOR_CACHE_DIR=$WORK/caches/inductor
export CUPY_CACHE_DIR=$WORK/caches/cupy

# --- one step -----------------------------------------------------------------------------------------------
# A step sets these and calls compare; it runs in a subshell of its own.
LIMIT_S=60       # for each of the two runs
VRAM=256M
RAM=4G
HOLD_MIB=256     # what the client takes first and keeps: all of the VRAM budget
ENDS_EMPTY=      # set if the program frees all that it takes
PLAIN_ENV=()
EMUV_ENV=()

# run_one plain|emuv [VARIABLE=VALUE...] COMMAND...: standard output, with the results, apart; all of it in the log
run_one() {
    local kind=$1 log=$OUT/clients-$STEP-$1.log code start=$SECONDS
    shift
    echo "== $*" > "$log"
    timeout --kill-after=10 $((LIMIT_S * SCALE / 100)) env CLIENT_HOLD_MIB="$HOLD_MIB" "$@" \
        > "$WORK/$STEP-$kind.out" 2>> "$log" < /dev/null
    code=$?
    echo $((SECONDS - start)) > "$WORK/$STEP-$kind.seconds"
    { cat "$WORK/$STEP-$kind.out"; echo "== exit code $code after $((SECONDS - start)) s"; } >> "$log"
}

# compare COMMAND...: the command plain, then under emuV, and the row of the table
compare() {
    local report=$WORK/$STEP.report.json
    run_one plain "${PLAIN_ENV[@]}" LD_LIBRARY_PATH="$PLAIN_PATH" "$@"
    run_one emuv "${EMUV_ENV[@]}" "$EMUV" run --quiet --vram "$VRAM" --ram "$RAM" --report "$report" -- "$@"
    judge "$report"
}

# judge REPORT [OPTION...]: the row of the table
judge() {
    local report=$1
    shift
    cat "$report" >> "$OUT/clients-$STEP-emuv.log" 2> /dev/null
    python3 "$CLIENTS/verdict.py" --client "$STEP" --plain "$WORK/$STEP-plain.out" --emuv "$WORK/$STEP-emuv.out" \
        --report "$report" --seconds "$(cat "$WORK/$STEP-plain.seconds")" "$(cat "$WORK/$STEP-emuv.seconds")" \
        ${ENDS_EMPTY:+--ends-empty} "$@" > "$WORK/rows/$STEP" 2> "$WORK/rows/$STEP.details" || touch "$WORK/failed"
}

# row VERDICT WORDS: of a step that compares nothing
row() {
    printf '%-18s %-8s %s\n' "$STEP" "$1" "$2" >> "$WORK/rows/$STEP"
    [ "$1" = FAIL ] && touch "$WORK/failed"
    return 0
}

# needs MODULE...: ends the step if one is not installed
needs() {
    local module
    for module; do
        python3 -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" 2> /dev/null ||
            { row skip "$module is not installed"; exit 0; }
    done
}

needs_tool() {
    command -v "$1" > /dev/null || { row skip "there is no $1"; exit 0; }
}

torch_checks() {
    needs torch
    LIMIT_S=100
    compare python3 "$CLIENTS/torch_checks.py" --seed "$SEED"
}

step_torch-native() {
    PLAIN_ENV=(PYTORCH_ALLOC_CONF=backend:native) EMUV_ENV=("${PLAIN_ENV[@]}")
    torch_checks
}

step_torch-expandable() {
    PLAIN_ENV=(PYTORCH_ALLOC_CONF=expandable_segments:True) EMUV_ENV=("${PLAIN_ENV[@]}")
    torch_checks
}

# Under emuV the allocator is emuV's own choice.
step_torch-async() {
    PLAIN_ENV=(PYTORCH_ALLOC_CONF=backend:cudaMallocAsync)
    torch_checks
}

jax_checks() {
    needs jax
    LIMIT_S=150
    compare python3 "$CLIENTS/jax_checks.py" --seed "$SEED"
}

# A share of a whole card or of emuV's pool: about 4 GiB each.
step_jax-prealloc() {
    PLAIN_ENV=(XLA_PYTHON_CLIENT_PREALLOCATE=true XLA_PYTHON_CLIENT_MEM_FRACTION=.03)
    EMUV_ENV=(XLA_PYTHON_CLIENT_PREALLOCATE=true XLA_PYTHON_CLIENT_MEM_FRACTION=.9)
    jax_checks
}

step_jax-growth() {
    PLAIN_ENV=(XLA_PYTHON_CLIENT_PREALLOCATE=false) EMUV_ENV=("${PLAIN_ENV[@]}")
    jax_checks
}

# Under emuV the allocator is emuV's own choice.
step_jax-async() {
    PLAIN_ENV=(XLA_PYTHON_CLIENT_ALLOCATOR=cuda_async XLA_PYTHON_CLIENT_MEM_FRACTION=.03)
    jax_checks
}

step_cupy() {
    needs cupy
    LIMIT_S=100
    compare python3 "$CLIENTS/cupy_checks.py" --seed "$SEED"
}

step_triton() {
    needs triton torch
    compare python3 "$CLIENTS/triton_checks.py" --seed "$SEED"
}

step_transformers() {
    needs transformers torch
    LIMIT_S=120 VRAM=512M RAM=10G PLAIN_ENV=(PYTORCH_ALLOC_CONF=backend:cudaMallocAsync)
    compare python3 "$CLIENTS/transformers_checks.py" --seed "$SEED"
}

# The tests that ship inside the package.
step_numba() {
    needs numba_cuda pytest
    local workers=$(($(nproc) * 3 / 4)) folder arguments report=$WORK/numba.report.json failed
    folder=$(python3 -c 'import numba_cuda, os; print(os.path.dirname(numba_cuda.__file__))') || folder=$WORK
    arguments=(-q -p numba_plugin -p no:cacheprovider --rootdir "$folder" --import-mode importlib
        --continue-on-collection-errors)
    python3 -c 'import xdist' 2> /dev/null && [ "$workers" -gt 1 ] && arguments+=(-n "$workers" --dist loadscope)
    python3 -c 'import pytest_timeout' 2> /dev/null && arguments+=(--timeout 60)
    LIMIT_S=280 VRAM=64M HOLD_MIB=64 RAM=2G
    cd "$WORK" || exit 1
    export PYTHONPATH=$CLIENTS:$CLIENTS/numba_site${PYTHONPATH:+:$PYTHONPATH}
    if [ "$PLAIN" != failed ]; then
        compare python3 -m pytest "${arguments[@]}" --pyargs numba.cuda.tests
        return
    fi
    run_one emuv "$EMUV" run --quiet --vram "$VRAM" --ram "$RAM" --report "$report" -- \
        python3 -m pytest "${arguments[@]}" --pyargs numba.cuda.tests
    # By module names: by their paths they would be imported a second time, as another package.
    mapfile -t failed < <(awk '$1 == "FAIL" { sub(/\.py/, "", $2); split($2, part, "::"); path = part[1]
        gsub("/", ".", part[1]); print part[1] substr($2, length(path) + 1) }' "$WORK/numba-emuv.out")
    run_one plain LD_LIBRARY_PATH="$PLAIN_PATH" python3 -m pytest "${arguments[@]}" --pyargs "${failed[@]}"
    judge "$report" --plain-was-partial
}

# build NAME COMMAND...: ends the step if that does not build
build() {
    local name=$1 log=$OUT/clients-$STEP-build.log
    shift
    "$@" -o "$WORK/$name" > "$log" 2>&1 || { row FAIL "$name does not build: see $(basename "$log")"; exit 0; }
}

build_cudart() {
    local toolkit
    needs_tool nvcc
    toolkit=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
    build "$STEP" nvcc -O2 -arch=native -cudart "$1" -Xlinker "-rpath,$toolkit/lib64" "$CLIENTS/cudart.cu"
    VRAM=64M HOLD_MIB=64 RAM=1G ENDS_EMPTY=1
}

step_cudart-static() {
    build_cudart static
    compare "$WORK/$STEP" --seed "$SEED"
}

step_cudart-shared() {
    build_cudart shared
    compare "$WORK/$STEP" --seed "$SEED"
}

step_cublas() {
    needs_tool nvcc
    build "$STEP" nvcc -O2 -arch=native "$CLIENTS/cublas.cu" -lcublas
    VRAM=96M HOLD_MIB=96 RAM=1G
    compare "$WORK/$STEP" --seed "$SEED"
}

step_vmm() {
    needs_tool nvcc
    build "$STEP" nvcc -O2 -L "$WORK/driver" "$CLIENTS/vmm.c" -lcuda -Xlinker --allow-shlib-undefined
    VRAM=64M HOLD_MIB=64 RAM=1G ENDS_EMPTY=1
    compare "$WORK/$STEP" --seed "$SEED"
}

# The memory checker has an interposer of its own; the checks must also be the same with both in place.
step_sanitizer() {
    needs_tool compute-sanitizer
    build_cudart static
    compare compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 "$WORK/$STEP" --seed "$SEED"
    local kind
    for kind in plain emuv; do
        row note "memcheck, $kind: $(grep -h 'ERROR SUMMARY' "$WORK/$STEP-$kind.out" || echo 'no summary')"
    done
}

# cycles DEADLINE COUNT FILE: starts and stops a program; one line per success
cycles() {
    local cycle
    for ((cycle = 0; cycle < $2; cycle++)); do
        [ "$SECONDS" -lt "$1" ] || return
        "$EMUV" run --quiet --vram 64M --ram 64M -- "$WORK/init_only" > /dev/null 2>> "$OUT/clients-leak.log" &&
            echo done >> "$3"
    done
}

# Names of what starting and stopping could leave.
remains() {
    find /tmp /dev/shm "$EMUV_STATE_DIR" -mindepth 1 -maxdepth 1 2> /dev/null | sort
}

step_leak() {
    local loops=8 cycle_total=1000 limit_s=$((90 * SCALE / 100)) start=$SECONDS loop jobs=() finished tried left
    left=$(find "$EMUV_STATE_DIR" -mindepth 1 -maxdepth 1 -printf '%f ')
    if [ -z "$left" ]; then row ok "nothing of the other steps is left in the state directory"
    else row FAIL "left in the state directory by the other steps: $left"; fi
    needs_tool "${CC:-cc}"
    : > "$OUT/clients-leak.log"
    build init_only "${CC:-cc}" "$CLIENTS/init_only.c" -L "$WORK/driver" -lcuda -Wl,--allow-shlib-undefined
    # What the driver itself leaves, it leaves now.
    LD_LIBRARY_PATH=$PLAIN_PATH "$WORK/init_only" || { row FAIL "cuInit fails without emuV"; exit 0; }
    : > "$WORK/cycles"
    remains > "$WORK/before"
    for ((loop = 0; loop < loops; loop++)); do
        cycles $((start + limit_s)) $((cycle_total / loops)) "$WORK/cycles" &
        jobs+=($!)
    done
    wait "${jobs[@]}"
    remains > "$WORK/after"
    finished=$(wc -l < "$WORK/cycles")
    tried="$finished starts and stops of $cycle_total, $loops at a time, in $((SECONDS - start)) s"
    left=$(comm -13 "$WORK/before" "$WORK/after" | tr '\n' ' ')
    if [ "$finished" -eq 0 ]; then row FAIL "no start succeeded: $(tail -n 1 "$OUT/clients-leak.log")"
    elif [ -s "$OUT/clients-leak.log" ]; then row FAIL "$tried; complaints: see clients-leak.log"
    elif [ -n "$left" ]; then row FAIL "$tried; left behind: $left"
    else row ok "$tried; nothing left in the state directory, /tmp, /dev/shm"; fi
}

# --- the campaign -------------------------------------------------------------------------------------------

. tests/gpu/driver.sh

# chosen STEP: whether the arguments ask for it
chosen() {
    local name
    [ ${#NAMES[@]} -eq 0 ] && return 0
    for name in "${NAMES[@]}"; do
        [ "$1" = "$name" ] || [ "${1%%-*}" = "$name" ] && return 0
    done
    return 1
}

start_step() {
    STEP=$1
    echo "clients.sh: $STEP ..." >&2
    "step_$STEP"
}

NAMES=("$@")
ALL=("${STEPS[@]}" "$LAST_STEP")
for name in ${NAMES[@]+"${NAMES[@]}"}; do
    case " ${ALL[*]} " in
        *" $name "* | *" $name-"*) ;;
        *) echo "clients.sh: no step '$name'; the steps are: ${ALL[*]}" >&2; exit 2 ;;
    esac
done
SIM= prepare_driver
PLAIN_PATH=$(dirname "$DRIVER")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
echo "clients.sh: seed $SEED, $JOBS steps at a time" >&2
for step in "${STEPS[@]}"; do
    chosen "$step" || continue
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
    (start_step "$step") &
done
wait
if chosen "$LAST_STEP"; then (start_step "$LAST_STEP"); fi

{
    echo "seed $SEED, $SECONDS s in all"
    python3 "$CLIENTS/verdict.py" --header
    for step in "${ALL[@]}"; do cat "$WORK/rows/$step" 2> /dev/null; done
    for step in "${ALL[@]}"; do cat "$WORK/rows/$step.details" 2> /dev/null; done
} | tee "$OUT/clients.txt"
[ ! -e "$WORK/failed" ]
