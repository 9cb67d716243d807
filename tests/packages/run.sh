#!/usr/bin/env bash
# Installs the packages in a clean Debian root, runs programs with them on the simulated GPU, removes them, and looks whether
# anything is left. As root, with debootstrap, gcc and a Debian mirror; minutes, so it is not part of .ci/run.
#   tests/packages/run.sh [--debug] [--base DIR]
# --debug packages an unoptimised build. --base: a root made by debootstrap, which is copied (default: made in target/packages).
set -euo pipefail
cd "$(dirname "$0")/../.."
debug=() base=$PWD/target/packages/base
while [ $# -gt 0 ]; do
    case $1 in
        --debug) debug=(--debug) ;;
        --base) base=$2; shift ;;
        *) echo "usage: tests/packages/run.sh [--debug] [--base DIR]" >&2; exit 2 ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || { echo "tests/packages/run.sh: only root can change into another root" >&2; exit 2; }

passed=0
step() { printf '\n== %s\n' "$*"; }
ok() { passed=$((passed + 1)); echo "ok: $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
same() { if [ "$2" = "$3" ]; then ok "$1"; else fail "$1: '$2', expected '$3'"; fi; }
# $1 says what; the rest is a command that must end well.
check() { local what=$1; shift; if "$@"; then ok "$what"; else fail "$what"; fi; }

step "the packages, twice"
cargo xtask dist "${debug[@]}"
before=$(cd target/dist && sha256sum emuv*)
cargo xtask dist "${debug[@]}" >/dev/null
same "the same bytes both times" "$(cd target/dist && sha256sum emuv*)" "$before"

step "a clean root"
if [ ! -x "$base/bin/true" ]; then
    mkdir -p "$base"
    debootstrap --variant=minbase stable "$base" >"$base.log" 2>&1 || { tail "$base.log" >&2; exit 1; }
fi
work=$(mktemp -d)
root=$work/root
leave() {
    umount -l "$root/proc" "$root/dev" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap leave EXIT
cp -a "$base" "$root"
mount -t proc proc "$root/proc"
mount --rbind --make-rslave /dev "$root/dev"
run() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }
files() {
    (cd "$root" && find . \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./var/lib/dpkg -o -path ./var/log -o -path ./var/cache \
        -o -path ./var/lib/rpm -o -path ./root/.rpmdb -o -path ./usr/lib/sysimage -o -path './etc/*-' \) -prune -o \( -type f -o -type l -o -type d \) -print | sort)
}
# What the system's own tools rewrite: accounts, and their copies.
accounts() { (cd "$root" && cat etc/passwd etc/group etc/shadow etc/gshadow); }

mkdir "$work/programs" "$work/link"
built=$([ ${#debug[@]} = 0 ] && echo release || echo debug)
ln -s "$PWD/target/$built/libemuv_simgpu.so" "$work/link/libcuda.so"
for program in meminfo churn linked abspath; do
    gcc -std=gnu11 -O1 -o "$work/programs/$program" "tests/programs/$program.c" -L "$work/link" -lcuda -ldl -lpthread
done

# $1: what installs, $2: what upgrades, $3: what removes; then nothing is to be left.
check_package() {
    local install=$1 upgrade=$2 remove=$3 files_before accounts_before
    files_before=$(files) accounts_before=$(accounts)
    $install
    ok "installed"
    same "the version" "$(run emuv --version)" "emuv $(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)"
    run emuv demo --json >"$work/demo.json"
    check "the demo runs, simulated" grep -q simulated "$work/demo.json"
    mkdir "$root/programs"
    cp "$work"/programs/* crates/emuv/kernels/emuv.ptx "$root/programs"
    check "a C program runs under emuv run" \
        run env EMUV_TEST_PTX=/programs/emuv.ptx emuv run --quiet --sim=vram=256M --ram 512M -- /programs/churn

    step "for every program"
    run emuv install --system >"$work/said" 2>&1 && fail "installed without a driver"
    check "refused without a driver" grep -q "no NVIDIA driver" "$work/said"
    local lib=$root/usr/lib/x86_64-linux-gnu
    mkdir -p "$lib"
    for name in libcuda.so.1 libcuda.so libnvidia-ml.so.1; do ln -s /usr/lib/emuv/libemuv_simgpu.so "$lib/$name"; done
    run ldconfig
    printf 'ram = "512M"\n[system]\nexcept = ["alone"]\n' >"$root/etc/emuv/emuv.toml"
    cp "$root/programs/meminfo" "$root/programs/alone"
    cp "$root/programs/meminfo" "$root/programs/setuid"
    chmod 4755 "$root/programs/setuid"
    total() { run env EMUV_SIM=vram=256M EMUV_TEST_PTX=/programs/emuv.ptx "$@" 2>"$work/said" | sed -n 's/.*"total": \([0-9]*\).*/\1/p'; }
    same "before: the card's own memory" "$(total /programs/meminfo)" $((256 << 20))
    printf '# of this machine\n/lib/x86_64-linux-gnu/libm.so.6' >"$root/etc/ld.so.preload"
    local list
    list=$(cat "$root/etc/ld.so.preload")
    run emuv install --system --dry-run
    same "a dry run changes nothing" "$(cat "$root/etc/ld.so.preload")" "$list"
    run emuv install --system
    same "a CUDA program uses emuV" "$(total env EMUV_TEST_EXPECT=emuv /programs/meminfo)" $((768 << 20))
    same "one that opens the driver by its path, too" \
        "$(run env EMUV_SIM=vram=256M EMUV_TEST_EXPECT=emuv EMUV_TEST_LIBCUDA=/usr/lib/x86_64-linux-gnu/libcuda.so.1 /programs/abspath)" \
        "abspath: ok, total $((768 << 20))"
    same "an excepted one meets the driver" "$(total /programs/alone)" $((256 << 20))
    same "a setuid one too, whatever its caller says" \
        "$(total env EMUV_RAM=1G setpriv --reuid 65534 --clear-groups /programs/setuid)" $((256 << 20))
    same "emuv run counts as without it" \
        "$(total emuv run --sim=vram=256M --ram 64M -- /programs/meminfo)" $((320 << 20))
    run emuv install
    same "nothing is said by programs without a GPU" "$(run sh -c 'ls / | wc -l; date' 2>&1 >/dev/null)" ""
    printf 'ram = "512M"\n[system]\nenabled = false\n' >"$root/etc/emuv/emuv.toml"
    same "switched off by the file" "$(total /programs/meminfo)" $((256 << 20))
    run emuv install --uninstall
    same "undone to the byte" "$(cat "$root/etc/ld.so.preload")" "$list"
    rm "$root/etc/ld.so.preload"
    run emuv install --system

    step "a library that cannot be loaded"
    mv "$root/usr/lib/emuv/libemuv_shim.so" "$work/shim"
    run emuv install --uninstall 2>/dev/null
    echo "no library" >"$root/usr/lib/emuv/libemuv_shim.so"
    run emuv install --system 2>"$work/said" && fail "a broken library was installed"
    check "refused" grep -q "programs would not start with it: /bin/true" "$work/said"
    check "and nothing was written" [ ! -e "$root/etc/ld.so.preload" ]
    mv "$work/shim" "$root/usr/lib/emuv/libemuv_shim.so"
    run emuv install --system >/dev/null

    step "an upgrade"
    printf 'ram = "128M"\n' >"$root/etc/emuv/emuv.toml"
    $upgrade
    same "every program still uses emuV, by the user's settings" "$(total /programs/meminfo)" $((384 << 20))

    step "removed"
    $remove
    check "taken off the loader's list first" [ ! -e "$root/etc/ld.so.preload" ]
    rm -r "$root/programs" "$lib"/libcuda.so.1 "$lib"/libcuda.so "$lib"/libnvidia-ml.so.1
    run ldconfig
    files >"$work/after"
    check "the same files as before" diff <(echo "$files_before") "$work/after"
    same "the same accounts as before" "$(accounts)" "$accounts_before"
}

step "the .deb"
cp target/dist/emuv_*.deb "$root/emuv.deb"
install_deb() { run dpkg -i /emuv.deb >/dev/null; }
upgrade_deb() { run dpkg --force-confold -i /emuv.deb >/dev/null; }
remove_deb() {
    run dpkg --remove emuv >/dev/null
    check "removed, settings kept" [ -e "$root/etc/emuv/emuv.toml" ]
    run dpkg --purge emuv >/dev/null
}
check_package install_deb upgrade_deb remove_deb
rm "$root/emuv.deb"

step "the .rpm"
cp /etc/resolv.conf "$root/etc/resolv.conf"
if run sh -c 'apt-get update -q && apt-get install -y -q --no-install-recommends rpm' >"$work/apt" 2>&1; then
    cp target/dist/emuv-*.rpm "$root/emuv.rpm"
    install_rpm() { run rpm -i --nodeps --noplugins /emuv.rpm; }
    upgrade_rpm() { run rpm -U --nodeps --noplugins --replacepkgs /emuv.rpm; }
    # The settings were changed: rpm keeps them under another name.
    remove_rpm() { run rpm -e --noplugins emuv 2>/dev/null; rm -f "$root/etc/emuv/emuv.toml.rpmsave"; rmdir "$root/etc/emuv" 2>/dev/null || true; }
    check_package install_rpm upgrade_rpm remove_rpm
else
    echo "skipped: rpm cannot be installed in the root here"
fi

step "the tarball"
mkdir "$work/anywhere"
tar -xzf target/dist/emuv-*-x86_64-linux.tar.gz -C "$work/anywhere"
export EMUV_TEST_PTX=$PWD/crates/emuv/kernels/emuv.ptx EMUV_STATE_DIR=$work/state
check "runs where it was unpacked" \
    "$work"/anywhere/*/bin/emuv run --quiet --sim=vram=256M --ram 512M -- "$work/programs/churn"

echo
echo "$passed passed, 0 failed"
