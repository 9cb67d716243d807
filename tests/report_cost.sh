#!/usr/bin/env bash
# What `--report` costs a program: the same programs with and without, in turns, on the simulated GPU (or the real one: --real).
# Prints the median of the ratios of neighbours. Usage: tests/report_cost.sh [--real] [ROUNDS] (from the repository's root, after a build)
set -euo pipefail
cd "$(dirname "$0")/.."
sim=(--sim=vram=256M)
[ "${1:-}" = --real ] && sim=() && shift
rounds=${1:-15}
emuv=${EMUV:-target/debug/emuv}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/driver"
if [ ${#sim[@]} -gt 0 ]; then
    for name in libcuda.so.1 libcuda.so; do
        ln -s "$PWD/$(dirname "$emuv")/deps/libemuv_simgpu.so" "$scratch/driver/$name"
    done
    link=(-L"$scratch/driver" -lcuda)
else
    link=(-l:libcuda.so.1)
fi
cc -std=gnu11 -O1 -o "$scratch/launch_bench" tests/programs/launch_bench.c "${link[@]}" -ldl -lpthread
export EMUV_TEST_PTX=$PWD/crates/emuv/kernels/emuv.ptx EMUV_STATE_DIR=$scratch/state

# Nanoseconds of one run: arguments are "report" or "plain", the field, the program and its arguments.
one() {
    local report=() field=$2
    [ "$1" = report ] && report=(--report "$scratch/report.json")
    "$emuv" run -q "${sim[@]}" --ram 512M "${report[@]}" -- "$scratch/$3" "${@:4}" |
        sed -n "s/.*\"$field\": \([0-9.]*\).*/\1/p" | tail -1
}

compare() {
    local name=$1; shift
    for round in $(seq "$rounds"); do
        # Whoever comes second is not always the same.
        if [ $((round % 2)) = 0 ]; then plain=$(one plain "$@"); report=$(one report "$@"); else report=$(one report "$@"); plain=$(one plain "$@"); fi
        echo "$report $plain"
    done | awk -v name="$name" '{ ratio[NR] = $1 / $2; plain[NR] = $2 } END { n = asort_(ratio, NR); m = asort_(plain, NR);
        printf "%-44s %.4f of the time without (%.4f to %.4f in the middle half), %.0f ns without\n", name, ratio[int((NR + 1) / 2)],
            ratio[int((NR + 3) / 4)], ratio[int((3 * NR + 1) / 4)], plain[int((NR + 1) / 2)] }
        function asort_(a, n,  i, j, t) { for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j - 1] > a[j]; j--) { t = a[j]; a[j] = a[j - 1]; a[j - 1] = t } return n }'
}

# The fastest batch of each run: what others do on the machine meanwhile only adds.
compare "launch, everything fits" least_ns launch_bench 200 201 32
compare "launch, tracked (300 MiB in 256 MiB)" least_ns launch_bench 100 201 32 300
