//! Checks that need no GPU: the host, its memory and its limits.

use std::{env, fs, path::Path, process::Command};

use emuv_policy::Bytes;
use emuv_state::{HostMemory, Limits};
use rustix::process::{Resource, getrlimit};

use super::check::Check;

/// Processor architecture and C library.
pub fn platform() -> Vec<Check> {
    let architecture = match env::consts::ARCH {
        "x86_64" => Check::ok("architecture", "x86-64"),
        other => Check::fail("architecture", other, "emuV runs on x86-64 only"),
    };
    let version = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    vec![architecture, c_library(version.as_deref().unwrap_or(""), Path::new("/lib/ld-musl-x86_64.so.1").exists())]
}

fn c_library(glibc: &str, has_musl: bool) -> Check {
    if glibc.starts_with("glibc") {
        return Check::ok("libc", glibc);
    }
    let advice = "programs under emuV need glibc: use a Debian, Ubuntu, Fedora, RHEL or SUSE system or image";
    if has_musl {
        return Check::fail("libc", "musl", advice);
    }
    Check::warn("libc", "the C library's version could not be found out", advice)
}

/// Whether this is a container, and what follows from it.
pub fn container() -> Check {
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let kubernetes = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let found = container_kind(&|path| Path::new(path).exists(), &cgroup, kubernetes);
    Check::ok(
        "container",
        match found {
            None => "no".to_owned(),
            Some(kind) => format!(
                "{kind}: emuV must be inside it, next to the program; the container's memory limit bounds --ram"
            ),
        },
    )
}

fn container_kind(exists: &dyn Fn(&str) -> bool, cgroup: &str, kubernetes: bool) -> Option<&'static str> {
    if kubernetes || cgroup.contains("kubepods") {
        Some("Kubernetes")
    } else if exists("/run/.containerenv") {
        Some("Podman")
    } else if exists("/.dockerenv") || cgroup.contains("docker") {
        Some("Docker")
    } else if cgroup.contains("containerd") || cgroup.contains("lxc") {
        Some("a container")
    } else {
        None
    }
}

/// The host's memory; `None` where it cannot be read.
pub fn memory() -> Option<HostMemory> {
    HostMemory::read()
}

/// Free RAM against the floor that is left to the host.
pub fn ram(memory: Option<&HostMemory>) -> Check {
    let Some(memory) = memory else {
        return Check::fail("ram", "/proc/meminfo cannot be read", "mount /proc in this container");
    };
    let floor = Limits::default_floor(memory);
    let budget = Limits::default_ram(memory, floor);
    let found = format!(
        "{} available of {}, {floor} kept for the host, {budget} for emuV unless --ram says otherwise",
        memory.available, memory.total
    );
    if budget < Bytes::gib(1) {
        return Check::warn("ram", found, "close programs or raise the memory limit: emuV has little room to spill to");
    }
    Check::ok("ram", found)
}

/// Whether a control group bounds the memory, which pinned memory counts towards.
pub fn control_group(memory: Option<&HostMemory>) -> Check {
    let meminfo_only = |path: &Path| (path == Path::new("/proc/meminfo")).then(|| fs::read_to_string(path).ok())?;
    match (memory, HostMemory::gather(meminfo_only)) {
        (Some(memory), Some(machine)) => bound(memory.total, machine.total),
        _ => Check::warn("cgroup", "unknown", "mount /proc in this container"),
    }
}

fn bound(limit: Bytes, machine: Bytes) -> Check {
    if limit >= machine {
        return Check::ok("cgroup", "no memory limit");
    }
    let found = format!("memory limited to {limit} of the machine's {machine}");
    if limit < Bytes::gib(4) {
        return Check::warn("cgroup", found, "raise memory.max (containers: --memory) to let more spill");
    }
    Check::ok("cgroup", found)
}

/// How much the test of pinning may take: at most a gibibyte, and never the host's floor.
pub fn pinning_target(memory: Option<&HostMemory>, simulated: bool) -> Bytes {
    let most = if simulated { Bytes::mib(128) } else { Bytes::gib(1) };
    let left = memory.map_or(Bytes::ZERO, |memory| memory.available.saturating_sub(Limits::default_floor(memory)));
    most.min(left)
}

/// `ulimit -l`. What the driver pins is usually not charged to it: only a refusal makes it suspect.
pub fn locked_memory(pinning_worked: bool) -> Check {
    let limit = getrlimit(Resource::Memlock).current;
    let found = limit.map_or_else(|| "unlimited".to_owned(), |bytes| Bytes(bytes).to_string());
    if pinning_worked || limit.is_none() {
        return Check::ok("memlock", found);
    }
    Check::warn(
        "memlock",
        found,
        "pinning failed: try again after `ulimit -l unlimited` (containers: --ulimit memlock=-1)",
    )
}

/// What `emuv install --system` did here, where it did.
pub fn system_wide() -> Option<Check> {
    Some(match crate::install::system_wide()? {
        Ok(library) => Check::ok("system-wide", format!("every CUDA program uses emuV ({library} is preloaded)")),
        Err(why) => Check::fail(
            "system-wide",
            format!("emuV is preloaded into every program, and {why}"),
            "set that right, or undo it by `emuv install --uninstall`",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::check::Status, *};

    #[test]
    fn musl_is_not_supported_and_glibc_is() {
        assert_eq!(c_library("glibc 2.36", true).status, Status::Ok);
        assert_eq!(c_library("", true).status, Status::Fail);
        assert_eq!(c_library("", false).status, Status::Warn);
    }

    #[test]
    fn containers_are_told_by_their_marks() {
        let none = |_: &str| false;
        let docker = |path: &str| path == "/.dockerenv";
        let podman = |path: &str| path == "/run/.containerenv";
        assert_eq!(container_kind(&none, "0::/user.slice", false), None);
        assert_eq!(container_kind(&docker, "0::/", false), Some("Docker"));
        assert_eq!(container_kind(&podman, "0::/", false), Some("Podman"));
        assert_eq!(container_kind(&none, "0::/kubepods/pod1", false), Some("Kubernetes"));
        assert_eq!(container_kind(&docker, "0::/", true), Some("Kubernetes"));
    }

    #[test]
    fn the_test_of_pinning_never_takes_what_the_host_keeps() {
        let memory = |total, available| HostMemory { total: Bytes::gib(total), available: Bytes::gib(available) };
        assert_eq!(pinning_target(Some(&memory(64, 40)), false), Bytes::gib(1));
        assert_eq!(pinning_target(Some(&memory(64, 40)), true), Bytes::mib(128));
        assert_eq!(pinning_target(Some(&memory(8, 2)), false), Bytes::ZERO);
        assert_eq!(pinning_target(None, false), Bytes::ZERO);
    }

    #[test]
    fn a_tight_control_group_is_worth_a_warning() {
        assert_eq!(bound(Bytes::gib(64), Bytes::gib(64)), Check::ok("cgroup", "no memory limit"));
        assert_eq!(bound(Bytes::gib(16), Bytes::gib(64)).status, Status::Ok);
        assert_eq!(bound(Bytes::gib(2), Bytes::gib(64)).status, Status::Warn);
    }

    #[test]
    fn little_ram_is_a_warning() {
        let memory = HostMemory { total: Bytes::gib(8), available: Bytes::gib(2) };
        assert_eq!(ram(Some(&memory)).status, Status::Warn);
        assert_eq!(ram(None).status, Status::Fail);
    }
}
