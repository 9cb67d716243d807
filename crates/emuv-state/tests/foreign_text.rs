//! Text that comes from outside (the environment, the kernel's files) is read or refused, never more.

use std::path::Path;

use emuv_policy::Bytes;
use emuv_state::{HostMemory, Limits, LogSetting, env};
use proptest::prelude::*;

const HOST: HostMemory = HostMemory { total: Bytes(64 << 30), available: Bytes(48 << 30) };

proptest! {
    #[test]
    fn any_environment_gives_limits_within_the_host_or_one_line(
        vram in proptest::option::of("[0-9]{0,22}[kKmMgGtT]?|.{0,12}"),
        ram in proptest::option::of("[0-9]{0,22}[kKmMgGtT]?|.{0,12}"),
        floor in proptest::option::of("[0-9]{0,12}[kKmMgG]?|.{0,12}"),
    ) {
        let get = |name: &str| match name {
            env::VRAM => vram.clone(),
            env::RAM => ram.clone(),
            env::RAM_FLOOR => floor.clone(),
            _ => None,
        };
        match Limits::from_env(get, &HOST) {
            Ok(limits) => prop_assert!(limits.ram.saturating_add(limits.ram_floor) <= HOST.total || limits.ram == Bytes::ZERO),
            Err(words) => prop_assert!(!words.contains('\n') || [&vram, &ram, &floor].iter().any(|v| v.as_ref().is_some_and(|v| v.contains('\n')))),
        }
    }

    #[test]
    fn any_log_setting_is_read_or_refused(text in "(off|error|info|debug)?:?.{0,20}") {
        let _ = text.parse::<LogSetting>();
    }

    #[test]
    fn whatever_the_kernels_files_hold_available_is_at_most_total(
        meminfo in "(MemTotal: *[0-9]{1,22} kB\n)?(MemAvailable: *[0-9]{1,22} kB\n)?(MemFree: *[0-9]{1,22} kB\n)?.{0,20}",
        cgroup in "((0::|[0-9]:memory:)/[a-z./]{0,12}\n){0,3}.{0,20}",
        number in "[0-9]{0,22}|max|.{0,8}",
    ) {
        let read = |path: &Path| match path.to_str()? {
            "/proc/meminfo" => Some(meminfo.clone()),
            "/proc/self/cgroup" => Some(cgroup.clone()),
            _ => Some(number.clone()),
        };
        if let Some(host) = HostMemory::gather(read) {
            prop_assert!(host.available <= host.total, "{host:?}");
        }
    }
}
