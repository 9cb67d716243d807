#!/usr/bin/env bash
# Programs that nobody starts with `emuv run`, on a machine with an NVIDIA GPU: the library preloaded by hand, and as root also by
# `emuv install --system`, which is undone at the end. Prints one table.
#
# Needs: the release build in target/release, a C compiler. With PyTorch a tensor program runs as well.
#   EMUV=FILE   the emuv binary (default target/release/emuv)
#   INSTALL=1   also install it for the whole machine, and undo that (root)
#   SIM=1       a dry run on the simulated GPU, to test this script
# Exit code: 0 if every row is ok.
set -u
cd "$(dirname "$0")/../.." || exit 1
ROOT=$PWD
EMUV=${EMUV:-$ROOT/target/release/emuv}
SIM=${SIM:-}
[ -x "$EMUV" ] || { echo "system_wide.sh: no emuv binary at $EMUV; build it with: cargo build --release" >&2; exit 1; }
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
. tests/gpu/driver.sh
prepare_driver

SHIM=$(dirname "$EMUV")/deps/libemuv_shim.so
[ -f "$SHIM" ] || SHIM=$(dirname "$EMUV")/libemuv_shim.so
FAILED=0
row() {
    printf '%-5s %-52s %s\n' "$1" "$2" "$3"
    [ "$1" = FAIL ] && FAILED=1
    return 0
}
# expect CHECK COMMAND...: by the exit code; the last line says more
expect() {
    local check=$1 code
    shift
    timeout --kill-after=10 300 "$@" > "$WORK/out" 2> "$WORK/err" < /dev/null
    code=$?
    if [ $code = 0 ]; then row ok "$check" "$(tail -n 1 "$WORK/out" | cut -c 1-70)"; else row FAIL "$check" "exit code $code: $(tail -n 1 "$WORK/err")"; fi
}
total() { "$@" 2> /dev/null | sed -n 's/.*"total": \([0-9]*\).*/\1/p'; }

export EMUV_STATE_DIR=$WORK/state EMUV_CONFIG=$WORK/emuv.toml EMUV_TEST_PTX=$ROOT/crates/emuv/kernels/emuv.ptx EMUV_TEST_SLACK_MIB=64
export EMUV_TEST_LIBCUDA=$DRIVER
mkdir "$WORK/state"
printf 'vram = "1G"\nram = "2G"\n[system]\nexcept = ["alone"]\n' > "$EMUV_CONFIG"
[ -n "$SIM" ] && export EMUV_SIM=vram=2G LD_LIBRARY_PATH=$WORK/driver
for program in linked dlopened abspath meminfo churn threads; do
    gcc -std=gnu11 -O1 -o "$WORK/$program" "tests/programs/$program.c" -L "$WORK/driver" -lcuda -ldl -lpthread || exit 1
done
cp "$WORK/meminfo" "$WORK/alone"

# programs HOW WORDS...: by a preload of their own, or by the machine's
programs() {
    local how=$1 program plain
    shift
    for program in linked dlopened abspath meminfo churn threads; do
        expect "$how: $program uses emuV" env "$@" EMUV_TEST_EXPECT=emuv "$WORK/$program"
    done
    plain=$(total env EMUV_DISABLE=1 "$WORK/meminfo")
    [ "$(total env "$@" "$WORK/meminfo")" = $((3 << 30)) ] && row ok "$how: 1 GiB and 2 GiB are seen" "" || row FAIL "$how: 1 GiB and 2 GiB are seen" "$(total env "$@" "$WORK/meminfo")"
    [ "$(total env "$@" "$WORK/alone")" = "$plain" ] && row ok "$how: an excepted program sees the card" "$plain" || row FAIL "$how: an excepted program sees the card" "$(total env "$@" "$WORK/alone"), not $plain"
    if [ -z "$SIM" ]; then
        expect "$how: nvidia-smi shows 3072 MiB" bash -c 'env "$@" nvidia-smi --query-gpu=memory.total --format=csv,noheader | tee /dev/stderr | grep -q "^3072 MiB"' - "$@"
        if python3 -c 'import torch' 2> /dev/null; then
            expect "$how: PyTorch, 2 GiB of tensors on 1 GiB" env "$@" PYTORCH_ALLOC_CONF=backend:cudaMallocAsync python3 -c '
import torch
held = [torch.full((64 << 20,), float(number), device="cuda") for number in range(8)]
for _ in range(4):
    for one in held:
        one += 1
assert [int(one[-1].item()) for one in held] == list(range(4, 12))
print("right;", torch.cuda.mem_get_info()[1] >> 20, "MiB in all")'
        fi
    fi
    [ -z "$(ls "$EMUV_STATE_DIR")" ] && row ok "$how: nothing is left" "" || row FAIL "$how: nothing is left" "$(ls "$EMUV_STATE_DIR" | head -3)"
}

programs preload "LD_PRELOAD=$SHIM"
if [ -n "${INSTALL:-}" ]; then
    before=$(sha256sum /etc/ld.so.preload 2> /dev/null)
    expect "emuv install --system" "$EMUV" install --system
    programs installed X=
    expect "emuv install --uninstall" "$EMUV" install --uninstall
    [ "$(sha256sum /etc/ld.so.preload 2> /dev/null)" = "$before" ] && row ok "undone to the byte" "" || row FAIL "undone to the byte" "$(cat /etc/ld.so.preload)"
fi
exit $FAILED
