//! What keeps programs to their slices of a GPU (`emuv vgpu`).

use emuv_cuda::{Driver, types::CUdevice};
use emuv_state::slices::Registry;

use super::{check::Check, device};
use crate::{
    libs::RealLibraries,
    vgpu::enforce::{Groups, Keeper},
};

/// Who keeps limits on this machine, by its first GPU.
pub fn enforcement(libraries: &RealLibraries, driver: &Driver, device: CUdevice) -> Check {
    let uuid = device::uuid(driver, device).unwrap_or_default();
    let keeper = Groups::of_system().and_then(|groups| groups.keeper(libraries, &uuid));
    let count = Registry::for_use(|name| std::env::var(name).ok())
        .iter()
        .map(|registry| registry.entries().0.len())
        .sum::<usize>();
    Check::ok("slices", words(count, keeper.as_ref(), rustix::process::geteuid().is_root()))
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
