# What the scripts here share. The lab is a Debian 13 in a directory, with a compiler, a kernel's sources and qemu.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=${EMUV_KERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/emuv-kernel}
lab=$cache/lab

# Not an error of ours: this machine cannot do it. `.ci/run` knows the number.
cannot() {
    echo "left out: $*" >&2
    exit 77
}

# Runs a command in the lab: own mounts, which end with it; the repository, read-only, at /repository.
in_lab() {
    mkdir -p "$lab/repository" "$lab/out"
    lab=$lab repository=$repository unshare --mount bash -c '
        mount --bind "$repository" "$lab/repository"
        mount -o remount,bind,ro "$lab/repository"
        mount -t proc proc "$lab/proc"
        exec chroot "$lab" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"' in_lab "$@"
}

# Arguments of the kernel's make: Debian's own compiler and version, so that what is built fits Debian's kernel.
kernel_make='make -s -C /src O=/build CC=x86_64-linux-gnu-gcc-14 HOSTCC=gcc-14'
