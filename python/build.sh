#!/usr/bin/env bash
# Builds the wheel: ./build.sh [FOLDER [PROFILE]]; by default into ../target/wheels, of the release profile.
# Needs cargo, and python3 with venv (for maturin, which is installed into ../target/maturin).
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-../target/wheels} profile=${2:-release}
folder=$profile
[ "$profile" = dev ] && folder=debug
target=${CARGO_TARGET_DIR:-../target}

cargo build --locked --profile "$profile" -p emuv
rm -rf emuv.data
trap 'rm -rf emuv.data' EXIT
mkdir -p emuv.data/data/lib/emuv
for library in libemuv_shim.so libemuv_simgpu.so; do
    # Cargo leaves the libraries of a binary's dependencies in deps.
    built="$target/$folder/deps/$library"
    [ -f "$built" ] || built="$target/$folder/$library"
    install -m 755 "$built" emuv.data/data/lib/emuv/
done
mkdir -p emuv.data/headers && cp ../include/emuv.h emuv.data/headers/

maturin="$target/maturin/bin/maturin"
if [ ! -x "$maturin" ]; then
    python3 -m venv "$target/maturin"
    "$target/maturin/bin/pip" install --quiet "maturin==1.16.0"
fi
"$maturin" build --locked --profile "$profile" --out "$out" --quiet
ls "$out"/emuv-*.whl
