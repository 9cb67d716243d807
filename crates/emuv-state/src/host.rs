//! How much memory the host has for this process: `/proc/meminfo`, bounded by the control groups it is in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use emuv_policy::Bytes;

/// The host's memory, as far as this process may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it: what the machine has, or the control group's limit where that is smaller.
    pub total: Bytes,
    /// What can be had now without swapping.
    pub available: Bytes,
}

impl HostMemory {
    /// Reads it from the running system. `None` where `/proc` is not there or not readable.
    pub fn read() -> Option<Self> {
        Self::gather(|path| fs::read_to_string(path).ok())
    }

    /// The same with the files given by `read`, which returns `None` for a file that does not exist.
    pub fn gather(read: impl Fn(&Path) -> Option<String>) -> Option<Self> {
        let meminfo = read(Path::new("/proc/meminfo"))?;
        let mut memory = Self::from_meminfo(&meminfo)?;
        let membership = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        for group in groups(&membership) {
            if let Some((limit, left)) = group.limit_and_left(&read) {
                memory.total = memory.total.min(limit);
                memory.available = memory.available.min(left);
            }
        }
        Some(memory)
    }

    /// Reads the text of `/proc/meminfo`.
    fn from_meminfo(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024).map(Bytes)
        };
        let total = field("MemTotal")?;
        // Kernels before 3.14 have no MemAvailable; free memory is the safe answer there.
        let available = field("MemAvailable").or_else(|| field("MemFree"))?;
        Some(Self { total, available: available.min(total) })
    }
}

/// One control group that may bound this process's memory.
struct Group {
    folder: PathBuf,
    files: &'static Files,
}

/// What the two versions of the interface call the same things.
struct Files {
    limit: &'static str,
    current: &'static str,
    reclaimable: &'static str,
}

const V2: Files = Files { limit: "memory.max", current: "memory.current", reclaimable: "inactive_file" };
const V1: Files =
    Files { limit: "memory.limit_in_bytes", current: "memory.usage_in_bytes", reclaimable: "total_inactive_file" };

impl Group {
    /// The limit, and what is left of it when the file cache that is easy to drop counts as free.
    fn limit_and_left(&self, read: impl Fn(&Path) -> Option<String>) -> Option<(Bytes, Bytes)> {
        let number = |name: &str| read(&self.folder.join(name))?.trim().parse::<u64>().ok();
        // "max" is no number: no limit. Version 1 says "none" with a number beyond any machine, which the
        // caller's minimum takes care of.
        let limit = Bytes(number(self.files.limit)?);
        let current = Bytes(number(self.files.current).unwrap_or(0));
        let stat = read(&self.folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat
            .lines()
            .find_map(|line| line.strip_prefix(self.files.reclaimable)?.strip_prefix(' ')?.trim().parse().ok());
        let used = current.saturating_sub(Bytes(reclaimable.unwrap_or(0)));
        Some((limit, limit.saturating_sub(used)))
    }
}

/// The groups named by `/proc/self/cgroup`, each with all its ancestors: any of them may be the tightest.
fn groups(membership: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (root, files) = if controllers.is_empty() {
            ("/sys/fs/cgroup", &V2)
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", &V1)
        } else {
            continue;
        };
        // Inside a container the path may be the host's and not exist here; its ancestors, and at last the
        // mount's root, are what is visible then.
        let relative = Path::new(path.trim_start_matches('/'));
        if relative.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            groups.push(Group { folder: PathBuf::from(root), files });
            continue;
        }
        groups.extend(relative.ancestors().map(|part| Group { folder: Path::new(root).join(part), files }));
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const MEMINFO: &str = "MemTotal:       32000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n";
    const KB: u64 = 1024;

    fn host(files: &[(&str, &str)]) -> Option<HostMemory> {
        let files: HashMap<_, _> = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        HostMemory::gather(|path| files.get(path).cloned())
    }

    fn memory(total: u64, available: u64) -> Option<HostMemory> {
        Some(HostMemory { total: Bytes(total), available: Bytes(available) })
    }

    #[test]
    fn without_control_groups_the_machine_is_the_limit() {
        assert_eq!(host(&[("/proc/meminfo", MEMINFO)]), memory(32_000_000 * KB, 20_000_000 * KB));
    }

    #[test]
    fn a_group_of_version_2_bounds_both_and_its_file_cache_counts_as_free() {
        let found = host(&[
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/user.slice/job\n"),
            ("/sys/fs/cgroup/user.slice/job/memory.max", "8000000000\n"),
            ("/sys/fs/cgroup/user.slice/job/memory.current", "3000000000\n"),
            ("/sys/fs/cgroup/user.slice/job/memory.stat", "anon 2\ninactive_file 1000000000\nactive_file 5\n"),
        ]);
        assert_eq!(found, memory(8_000_000_000, 6_000_000_000));
    }

    #[test]
    fn the_tightest_ancestor_counts() {
        let found = host(&[
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "4000000000\n"),
            ("/sys/fs/cgroup/a/memory.current", "500000000\n"),
        ]);
        assert_eq!(found, memory(4_000_000_000, 3_500_000_000));
    }

    #[test]
    fn in_a_container_that_shows_the_hosts_path_the_visible_root_counts() {
        let found = host(&[
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/../../kubepods/pod7\n"),
            ("/sys/fs/cgroup/memory.max", "2000000000\n"),
        ]);
        assert_eq!(found, memory(2_000_000_000, 2_000_000_000));
    }

    #[test]
    fn a_group_of_version_1_is_read_too_and_no_limit_is_no_limit() {
        let v1 = "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n";
        let base = "/sys/fs/cgroup/memory/x/memory";
        let limited = host(&[
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", v1),
            (&format!("{base}.limit_in_bytes"), "1000000000\n"),
            (&format!("{base}.usage_in_bytes"), "1200000000\n"),
        ]);
        assert_eq!(limited, memory(1_000_000_000, 0));
        let open = host(&[
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", v1),
            (&format!("{base}.limit_in_bytes"), "9223372036854771712\n"),
        ]);
        assert_eq!(open, memory(32_000_000 * KB, 20_000_000 * KB));
    }

    #[test]
    fn nonsense_is_no_answer() {
        assert_eq!(host(&[]), None);
        assert_eq!(host(&[("/proc/meminfo", "MemTotal: lots\n")]), None);
    }

    #[test]
    fn this_machine_has_memory() {
        let here = HostMemory::read().expect("/proc/meminfo is readable on Linux");
        assert!(here.total.0 > 0 && here.available <= here.total, "{here:?}");
    }
}
