//! Finding the driver, and judging its age.

use anyhow::Result;
use emuv_cuda::Driver;

use super::check::Check;
use crate::{
    gpus::OLDEST_CUDA,
    libs::{self, RealLibraries},
};

/// The driver's libraries, real or simulated.
///
/// # Errors
/// Where there are none.
pub fn libraries(simulated: bool) -> Result<RealLibraries> {
    if simulated {
        return RealLibraries::simulated();
    }
    // Without emuV's own library there is nothing that could be mistaken for the driver.
    Ok(RealLibraries::find(libs::shim_path().ok().as_deref())?)
}

/// Loads the driver. The checks say how that went; `None` where it went no further.
pub fn load(simulated: bool) -> (Vec<Check>, Option<(RealLibraries, Driver)>) {
    const INSTALL: &str =
        "install the NVIDIA driver, version 535 or newer; `emuv doctor --sim` checks emuV without a GPU";
    let opened = libraries(simulated).and_then(|libraries| {
        let driver = Driver::open(&libraries.cuda)?;
        Ok((libraries, driver))
    });
    match opened {
        Ok((libraries, driver)) => {
            let checks = vec![Check::ok("driver", libraries.cuda.display().to_string()), version(&driver)];
            (checks, Some((libraries, driver)))
        }
        Err(error) => (vec![Check::fail("driver", format!("{error:#}"), INSTALL)], None),
    }
}

fn version(driver: &Driver) -> Check {
    const UPDATE: &str = "update the NVIDIA driver to 535 (CUDA 12.2) or newer";
    match driver.version() {
        Ok(version) => {
            let found = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
            if version < OLDEST_CUDA { Check::fail("version", found, UPDATE) } else { Check::ok("version", found) }
        }
        Err(error) => Check::fail("version", format!("the driver does not say: {error}"), UPDATE),
    }
}
