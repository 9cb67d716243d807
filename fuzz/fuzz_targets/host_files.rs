//! The kernel's files on memory and control groups: whatever they hold, what is available is at most what there is.
#![no_main]

use std::path::{Component, Path};

use arbitrary::Arbitrary;
use emuv_state::HostMemory;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Files<'a> {
    meminfo: &'a str,
    cgroup: &'a str,
    limit: Option<&'a str>,
    current: Option<&'a str>,
    stat: Option<&'a str>,
}

fuzz_target!(|files: Files<'_>| {
    let read = |path: &Path| {
        let text = match path.to_str()? {
            "/proc/meminfo" => Some(files.meminfo),
            "/proc/self/cgroup" => Some(files.cgroup),
            path if path.ends_with("memory.stat") => files.stat,
            path if path.ends_with("memory.current") || path.ends_with("usage_in_bytes") => files.current,
            path => {
                let inside = !Path::new(path).components().any(|part| part == Component::ParentDir);
                assert!(path.starts_with("/sys/fs/cgroup") && inside, "{path:?} is read");
                files.limit
            }
        };
        text.map(str::to_owned)
    };
    if let Some(host) = HostMemory::gather(read) {
        assert!(host.available <= host.total, "{host:?}");
    }
});
