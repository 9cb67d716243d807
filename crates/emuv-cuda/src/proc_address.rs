//! What `cuGetProcAddress` answers: which exported symbol a base name means at an interface version.

/// One row of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The name that programs ask for, without version or stream suffix.
    pub base: &'static str,
    /// The first interface version (`CUDA_VERSION`, e.g. 12020) with this form.
    pub version: u32,
    /// Whether this is the form for the per-thread default stream.
    pub per_thread: bool,
    /// The symbol that the driver exports for it.
    pub symbol: &'static str,
}

/// Outcome of a look-up, in the terms of `CUdriverProcAddressQueryResult`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The symbol to use.
    Found(&'static Entry),
    /// No function of that name.
    NotFound,
    /// The function came later than the version asked for.
    VersionTooOld,
}

/// Finds the newest form of `base` that is not newer than `version`. With `per_thread`, the per-thread
/// form is preferred and the plain one used where there is no other (as the driver does).
pub fn lookup(base: &str, version: u32, per_thread: bool) -> Lookup {
    let start = entries().partition_point(|entry| entry.base < base);
    let forms = entries()[start..].iter().take_while(|entry| entry.base == base);
    let mut known = false;
    let mut best: Option<&'static Entry> = None;
    for entry in forms.filter(|entry| per_thread || !entry.per_thread) {
        known = true;
        if entry.version > version {
            continue;
        }
        let better = best.is_none_or(|b| (entry.per_thread, entry.version) >= (b.per_thread, b.version));
        if better {
            best = Some(entry);
        }
    }
    match (best, known) {
        (Some(entry), _) => Lookup::Found(entry),
        (None, true) => Lookup::VersionTooOld,
        (None, false) => Lookup::NotFound,
    }
}

/// The whole map, sorted by base name, version and per-thread flag.
pub fn entries() -> &'static [Entry] {
    table::ENTRIES
}

#[rustfmt::skip]
#[path = "gen/proc_address.rs"]
mod table;

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(base: &str, version: u32, per_thread: bool) -> Option<&'static str> {
        match lookup(base, version, per_thread) {
            Lookup::Found(entry) => Some(entry.symbol),
            _ => None,
        }
    }

    #[test]
    fn a_version_picks_the_form_that_was_current_then() {
        assert_eq!(symbol("cuMemAlloc", 2000, false), Some("cuMemAlloc"));
        assert_eq!(symbol("cuMemAlloc", 12_020, false), Some("cuMemAlloc_v2"));
        assert_eq!(symbol("cuCtxCreate", 11_040, false), Some("cuCtxCreate_v3"));
        assert_eq!(symbol("cuCtxCreate", 13_000, false), Some("cuCtxCreate_v4"));
    }

    #[test]
    fn the_per_thread_form_is_used_where_there_is_one() {
        assert_eq!(symbol("cuMemcpyHtoD", 12_000, true), Some("cuMemcpyHtoD_v2_ptds"));
        assert_eq!(symbol("cuLaunchKernel", 12_000, true), Some("cuLaunchKernel_ptsz"));
        assert_eq!(symbol("cuMemAlloc", 12_000, true), Some("cuMemAlloc_v2"));
    }

    #[test]
    fn unknown_and_too_old_are_told_apart() {
        assert_eq!(lookup("cuNoSuchCall", 13_000, false), Lookup::NotFound);
        assert_eq!(lookup("cuMemAllocAsync", 11_000, false), Lookup::VersionTooOld);
        // Programs ask for base names; a symbol's own name is not one.
        assert_eq!(lookup("cuMemAlloc_v2", 13_000, false), Lookup::NotFound);
    }

    #[test]
    fn the_table_is_sorted_and_its_symbols_are_exported() {
        let key = |e: &Entry| (e.base, e.version, e.per_thread);
        assert!(entries().windows(2).all(|pair| key(&pair[0]) < key(&pair[1])));
        for entry in entries() {
            assert!(crate::exports::CUDA.binary_search(&entry.symbol).is_ok(), "{} is not exported", entry.symbol);
        }
    }
}
