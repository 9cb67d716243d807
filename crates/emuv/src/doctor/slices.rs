//! What keeps programs to their slices of a GPU (`emuv vgpu`).

use emuv_cuda::{Driver, types::CUdevice};
use emuv_state::slices::{Entry, KernelModule, Registry};

use super::{check::Check, device};
use crate::{
    libs::RealLibraries,
    vgpu::enforce::{Groups, Keeper},
};

/// Who keeps limits on this machine, by its first GPU.
pub fn enforcement(libraries: &RealLibraries, driver: &Driver, device: CUdevice) -> Check {
    let uuid = device::uuid(driver, device).unwrap_or_default();
    let keeper = Groups::of_system().and_then(|groups| groups.keeper(libraries, &uuid));
    let registries = Registry::for_use(|name| std::env::var(name).ok());
    let entries: Vec<Entry> = registries.iter().flat_map(|registry| registry.entries().0).collect();
    let root = rustix::process::geteuid().is_root();
    let accounts = accounts(&entries, &KernelModule::of_system());
    let words = format!("{}; {accounts}", words(entries.len(), keeper.as_ref(), root));
    match without_instance(&entries, &KernelModule::of_system()) {
        Some(name) => Check::warn(
            "slices",
            format!("{words}; '{name}' has no instance in the kernel module, so no program can be in it"),
            format!("load emuv.ko, then 'emuv vgpu enable {name}'"),
        ),
        None => Check::ok("slices", words),
    }
}

/// Who keeps the accounts of slices.
fn accounts(entries: &[Entry], module: &KernelModule) -> String {
    let kept = entries.iter().filter(|entry| entry.slice.by_module).count();
    match (module.is_loaded(), kept) {
        (false, 0) => "accounts are kept in files (emuv.ko is not loaded)".to_owned(),
        (true, 0) => {
            "accounts are kept in files (emuv.ko is loaded: it keeps those of slices that root makes)".to_owned()
        }
        (_, kept) if kept == entries.len() => "the kernel module keeps their accounts".to_owned(),
        (_, kept) => format!("the kernel module keeps the accounts of {kept} of them, files the others"),
    }
}

/// A slice that has lost its instance.
fn without_instance<'e>(entries: &'e [Entry], module: &KernelModule) -> Option<&'e str> {
    let lost = |entry: &&Entry| entry.slice.by_module && module.instance(entry.slice.instance).is_none();
    entries.iter().find(lost).map(|entry| entry.slice.name.as_str())
}

fn words(count: usize, keeper: Option<&Keeper>, root: bool) -> String {
    let by_emuv = "emuV keeps their limits for programs that load it: cooperation, not a security boundary";
    match keeper {
        None => format!("{count}; {by_emuv}; neither dmem control groups nor NVML's memory limits are here to help"),
        Some(keeper) if root => format!("{count}; {by_emuv}; VRAM also by {keeper}, for slices that root makes"),
        Some(keeper) => format!("{count}; {by_emuv}; {keeper} could help, for slices that root makes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_who_keeps_limits() {
        assert!(words(2, None, true).contains("not a security boundary; neither"));
        let dmem = Keeper::Dmem("drm/0000:41:00.0/vram0".to_owned());
        assert!(words(2, Some(&dmem), true).contains("VRAM also by the kernel's dmem control groups (drm/"));
        assert!(words(0, Some(&Keeper::Driver), false).contains("could help"));
    }
}
