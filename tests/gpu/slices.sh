#!/usr/bin/env bash
# Slices on a real GPU: four of them with a program each, at once, and what a slice costs. Prints what it found; exit code 0
# if every program's output is that of its run alone.
#
#   tests/gpu/slices.sh [STEP...]  steps: four resize allocations weights sets (default: all)
#                                  needs: emuv built (EMUV=path/to/emuv, default target/release/emuv), python3 with torch,
#                                  a GPU with 40 GiB, 16 GiB of RAM; gcc for the last part
#   VRAM=6G RAM=2G PEAK=7G         shares of each slice, and about how much each program needs
#   LOOK_AFTER=12                  seconds after which the four are looked at
#   SET_PERCENT=60 LARGE_RAM=SIZE  sets of the last two, in percent of the VRAM, and RAM for each (default: as much as the set)
#   HELD=FILE                      where to write, each second, what each slice holds while the programs that count run
#   LARGE_SECONDS=40               how long one of them runs alone; both at once run BOTH_SECONDS (default: twice as long)
set -euo pipefail
cd "$(dirname "$0")/../.."
EMUV=${EMUV:-target/release/emuv}
VRAM=${VRAM:-6G} RAM=${RAM:-2G} PEAK=${PEAK:-7G} ITERATIONS=${ITERATIONS:-20} LARGE_SECONDS=${LARGE_SECONDS:-40}
BOTH_SECONDS=${BOTH_SECONDS:-$((2 * LARGE_SECONDS))} LOOK_AFTER=${LOOK_AFTER:-12}
WORK=$(mktemp -d)
export EMUV_STATE_DIR=$WORK/state
cleanup() { rm -rf "$WORK"; }
trap cleanup EXIT
mkdir "$EMUV_STATE_DIR"
export EMUV_TEST_PTX=crates/emuv/kernels/emuv.ptx

# The article's four: fine-tuning, training of a CNN, a UNet's sampling, inference of a language model.
PROGRAMS=(lora resnet50 unet decode-16)
digests() { python3 -c 'import json,sys; print(json.loads(sys.stdin.readlines()[-1]).get("digests"))' <"$1"; }

wrong=0
for name in "${PROGRAMS[@]}"; do "$EMUV" vgpu create "$name" --vram "$VRAM" --ram "$RAM"; done

step_four() {
    "$EMUV" vgpu list

    echo "== one after the other"
    begin=$SECONDS
    for name in "${PROGRAMS[@]}"; do
        start=$SECONDS
        "$EMUV" run -q --vgpu "$name" -- python3 crates/emuv/workloads/workload.py "$name" --peak "$PEAK" \
            --iterations "$ITERATIONS" --seconds 600 >"$WORK/$name.solo"
        echo "$name: $((SECONDS - start)) s"
    done
    echo "all: $((SECONDS - begin)) s"

    echo "== at once"
    begin=$SECONDS
    pids=()
    for name in "${PROGRAMS[@]}"; do
        "$EMUV" run -q --vgpu "$name" -- python3 crates/emuv/workloads/workload.py "$name" --peak "$PEAK" \
            --iterations "$ITERATIONS" --seconds 600 >"$WORK/$name.together" &
        pids+=($!)
    done
    sleep "$LOOK_AFTER"
    "$EMUV" vgpu list
    "$EMUV" run -q --vgpu "${PROGRAMS[0]}" -- nvidia-smi || true
    for index in "${!pids[@]}"; do
        code=0
        wait "${pids[index]}" || code=$?
        [ "$code" -eq 0 ] && continue
        echo "${PROGRAMS[index]}: exit code $code: $(tail -n 3 "$WORK/${PROGRAMS[index]}.together")"
        wrong=1
    done
    echo "all: $((SECONDS - begin)) s"
    "$EMUV" vgpu list

    for name in "${PROGRAMS[@]}"; do
        if [ "$(digests "$WORK/$name.solo")" = "$(digests "$WORK/$name.together")" ]; then
            echo "$name: the same output"
        else
            echo "$name: NOT the same output"
            wrong=1
        fi
    done
}

step_resize() {
    echo "== one that shrinks and grows while it runs"
    "$EMUV" run -q --vgpu lora -- python3 crates/emuv/workloads/workload.py lora --peak 5G --iterations 400 --seconds 60 >"$WORK/resized" &
    pid=$!
    sleep 25
    "$EMUV" vgpu resize lora --vram 4G
    for _ in 1 2 3 4 5; do "$EMUV" vgpu list | grep '^lora'; sleep 1; done
    "$EMUV" vgpu resize lora --vram "$VRAM"
    wait "$pid" || wrong=1
    tail -1 "$WORK/resized" | cut -c1-200
}

step_allocations() {
    echo "== what a slice costs an allocation"
    cc -std=gnu11 -O2 -o "$WORK/alloc_bench" tests/programs/alloc_bench.c -L"$(dirname "$(ldconfig -p | awk '/libcuda.so.1/ {print $NF; exit}')")" -l:libcuda.so.1 -ldl -lpthread
    for round in 1 2 3; do
        echo "round $round: run, then in a slice"
        "$EMUV" run -q --ram "$RAM" --vram "$VRAM" -- "$WORK/alloc_bench"
        "$EMUV" run -q --vgpu lora -- "$WORK/alloc_bench"
    done
}

# Programs that only count: rounds over a buffer that is worked on all the time.
cc -std=gnu11 -O2 -o "$WORK/busy" tests/programs/busy.c -L"$(dirname "$(ldconfig -p | awk '/libcuda.so.1/ {print $NF; exit}')")" -l:libcuda.so.1 -ldl -lpthread
rounds() { sed -n 's/.*ok, \([0-9]*\) rounds.*/\1/p' "$1"; }
# The rounds that are known to be done, of each program.
done_rounds() { od -A n -v -t u8 -w32 "$WORK/accounts" | awk '{ printf "%s ", $3 }'; }

# together NAME SECONDS MiB FLAGS...: a program in each of the slices t-1, t-2, ..., made with one word of flags each.
together() {
    local name=$1 seconds=$2 mib=$3 number=0 pids=() flags
    shift 3
    truncate -s 0 "$WORK/accounts" && truncate -s $((32 * $#)) "$WORK/accounts"
    : >"$WORK/by-second"
    for flags in "$@"; do
        number=$((number + 1))
        # shellcheck disable=SC2086 # Several flags in a word.
        "$EMUV" vgpu create "t-$number" $flags >/dev/null
        "$EMUV" run -q --vgpu "t-$number" -- "$WORK/busy" "$WORK/accounts" $((number - 1)) "$BUFFERS" "$mib" 8 "$seconds" >"$WORK/t-$number" &
        pids+=($!)
    done
    for _ in $(seq $((seconds - 2))); do
        sleep 1
        done_rounds >>"$WORK/by-second" && echo >>"$WORK/by-second"
        [ -z "${HELD:-}" ] || { echo "$name $SECONDS" && "$EMUV" vgpu list | grep '^t-'; } >>"$HELD"
    done
    for number in $(seq $#); do "$EMUV" vgpu show "t-$number" | grep 'GPU time'; done
    for pid in "${pids[@]}"; do wait "$pid" || wrong=1; done
    echo "$name: rounds $(for number in $(seq $#); do rounds "$WORK/t-$number"; done | tr '\n' ' ')"
    # What it costs to make pinned RAM comes once, at the beginning.
    awk '{ for (i = 1; i <= NF; i++) at[NR, i] = $i } END { half = int(NR / 2)
        for (i = 1; i <= NF; i++) { rate = (at[NR, i] - at[half, i]) / (NR - half); sum += rate; printf "%.1f ", rate }
        printf "(%.1f together) rounds a second in the second half\n", sum }' "$WORK/by-second"
    for number in $(seq $#); do "$EMUV" vgpu delete "t-$number"; done
}

step_weights() {
    echo "== the GPU's time by weight (shares of time to be within 5 points of 25/75, 17/33/50, at most 20)"
    BUFFERS=4
    SMALL="--vram 2G --ram 1G"
    together "alone" 12 256 "$SMALL"
    together "equal, no turns" 12 256 "$SMALL" "$SMALL"
    together "1:3" 22 256 "$SMALL --weight 100" "$SMALL --weight 300"
    together "1:2:3" 22 256 "$SMALL --weight 100" "$SMALL --weight 200" "$SMALL --weight 300"
    together "a cap of 20 %" 22 256 "$SMALL --cap 20"
}

step_sets() {
    echo "== two sets that do not fit together: at once, and one after the other (rounds of both at once to be at least 91 %)"
    vram_mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)
    BUFFERS=$((vram_mib * ${SET_PERCENT:-60} / 100 / 256))
    LARGE="--vram $((vram_mib - 2048))M --ram ${LARGE_RAM:-$((vram_mib * 62 / 100))M} --overcommit"
    together "alone" "$LARGE_SECONDS" 256 "$LARGE"
    together "both" "$BOTH_SECONDS" 256 "$LARGE" "$LARGE"
}

[ $# -gt 0 ] || set -- four resize allocations weights sets
for step; do "step_$step"; done

"$EMUV" doctor | grep -i slices || true
exit $wrong
