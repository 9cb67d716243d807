#!/usr/bin/env bash
# Slices on a real GPU: four of them with a program each, at once, and what a slice costs. Prints what it found; exit code 0
# if every program's output is that of its run alone.
#
#   tests/gpu/slices.sh            needs: emuv built (EMUV=path/to/emuv, default target/release/emuv), python3 with torch,
#                                  a GPU with 40 GiB, 16 GiB of RAM; gcc for the last part
#   VRAM=6G RAM=2G PEAK=7G         shares of each slice, and about how much each program needs
set -euo pipefail
cd "$(dirname "$0")/../.."
EMUV=${EMUV:-target/release/emuv}
VRAM=${VRAM:-6G} RAM=${RAM:-2G} PEAK=${PEAK:-7G} ITERATIONS=${ITERATIONS:-20}
WORK=$(mktemp -d)
export EMUV_STATE_DIR=$WORK/state
cleanup() { rm -rf "$WORK"; }
trap cleanup EXIT
mkdir "$EMUV_STATE_DIR"

# The article's four: fine-tuning, training of a CNN, a UNet's sampling, inference of a language model.
PROGRAMS=(lora resnet50 unet decode-16)
digests() { python3 -c 'import json,sys; print(json.loads(sys.stdin.readlines()[-1]).get("digests"))' <"$1"; }

for name in "${PROGRAMS[@]}"; do "$EMUV" vgpu create "$name" --vram "$VRAM" --ram "$RAM"; done
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
sleep 20
"$EMUV" vgpu list
"$EMUV" run -q --vgpu "${PROGRAMS[0]}" -- nvidia-smi || true
for pid in "${pids[@]}"; do wait "$pid"; done
echo "all: $((SECONDS - begin)) s"
"$EMUV" vgpu list

wrong=0
for name in "${PROGRAMS[@]}"; do
    if [ "$(digests "$WORK/$name.solo")" = "$(digests "$WORK/$name.together")" ]; then
        echo "$name: the same output"
    else
        echo "$name: NOT the same output"
        wrong=1
    fi
done

echo "== one that shrinks and grows while it runs"
"$EMUV" run -q --vgpu lora -- python3 crates/emuv/workloads/workload.py lora --peak 5G --iterations 400 --seconds 60 >"$WORK/resized" &
pid=$!
sleep 25
"$EMUV" vgpu resize lora --vram 4G
for _ in 1 2 3 4 5; do "$EMUV" vgpu list | grep '^lora'; sleep 1; done
"$EMUV" vgpu resize lora --vram "$VRAM"
wait "$pid" || wrong=1
tail -1 "$WORK/resized" | cut -c1-200

echo "== what a slice costs an allocation"
cc -std=gnu11 -O2 -o "$WORK/alloc_bench" tests/programs/alloc_bench.c -L"$(dirname "$(ldconfig -p | awk '/libcuda.so.1/ {print $NF; exit}')")" -l:libcuda.so.1 -ldl -lpthread
export EMUV_TEST_PTX=crates/emuv/kernels/emuv.ptx
for round in 1 2 3; do
    echo "round $round: run, then in a slice"
    "$EMUV" run -q --ram "$RAM" --vram "$VRAM" -- "$WORK/alloc_bench"
    "$EMUV" run -q --vgpu lora -- "$WORK/alloc_bench"
done
"$EMUV" doctor | grep -i slices || true
exit $wrong
