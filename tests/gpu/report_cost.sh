#!/usr/bin/env bash
# What `--report` costs a launch: the launch benchmark with and without, in turns. Prints the median of the ratios of neighbours.
#
#   tests/gpu/report_cost.sh [ROUNDS]     (default 21)
#
# Needs: the release build in target/release (emuv, libemuv_shim.so; deps/ will do), a C compiler.
# Settings by environment: EMUV=FILE the emuv binary; SIM=1 on the simulated GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
EMUV=${EMUV:-target/release/emuv}
SIM=${SIM:-}
rounds=${1:-21}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
. tests/gpu/driver.sh
prepare_driver
sim=()
[ -n "$SIM" ] && sim=(--sim=vram=1G)
cc -std=gnu11 -O1 -o "$WORK/launch_bench" tests/programs/launch_bench.c -L"$WORK/driver" -lcuda -ldl -lpthread
export EMUV_TEST_PTX=$PWD/crates/emuv/kernels/emuv.ptx EMUV_STATE_DIR=$WORK/state

# Nanoseconds of a launch, with and without ("report", "plain"): the fastest batch, as whatever else the machine does only adds.
one() {
    local report=()
    [ "$1" = report ] && report=(--report "$WORK/report.json")
    "$EMUV" run -q "${sim[@]}" --vram 256M --ram 512M "${report[@]}" -- "$WORK/launch_bench" "${@:2}" |
        sed -n 's/.*"least_ns": \([0-9.]*\).*/\1/p' | tail -1
}

compare() {
    local name=$1 round plain report
    shift
    for round in $(seq "$rounds"); do
        # Whoever comes second is not always the same.
        [ $((round % 2)) = 0 ] || plain=$(one plain "$@")
        report=$(one report "$@")
        [ $((round % 2)) = 1 ] || plain=$(one plain "$@")
        echo "$report $plain"
    done | awk '{ print $1 / $2, $2 }' | sort -n | awk -v name="$name" '
        { ratio[NR] = $1; ns += $2 }
        END { printf "%-40s %.4f of the time without (middle half: %.4f to %.4f); %.0f ns without\n",
            name, ratio[int((NR + 1) / 2)], ratio[int((NR + 3) / 4)], ratio[int((3 * NR + 1) / 4)], ns / NR }'
}

compare "launch, everything fits" 200 201 32
compare "launch, tracked (300 MiB in 256 MiB)" 100 201 32 300
