//! Changes of slices that are asked for over HTTP: what `emuv vgpu` does, with this process's rights.

use std::io;

use emuv_serve::{Admin, Refusal, RefusalKind, Resize, Size};
use emuv_state::{
    Setting,
    slices::{Registry, SliceError},
};

use crate::{
    cli::{BAD_ARGUMENT, Failure},
    vgpu::{self, Shares},
};

/// The slices that this user changes.
pub struct Slices {
    registry: Registry,
}

impl Slices {
    /// Those of a registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// That the slice is there and that this process may change it.
    fn check(&self, slice: &str) -> Result<(), Refusal> {
        self.registry.entry(slice).map_err(refusal)?;
        rustix::fs::access(self.registry.dir(), rustix::fs::Access::WRITE_OK)
            .map_err(|error| refusal(SliceError::System(self.registry.dir().to_owned(), error.into())))
    }
}

impl Admin for Slices {
    fn registry(&self) -> String {
        self.registry.dir().to_string_lossy().into_owned()
    }

    fn resize(&self, slice: &str, resize: &Resize) -> Result<Vec<String>, Refusal> {
        let size = |what: &str, size: &Option<Size>| {
            let bytes = size.as_ref().map(|size| Setting::new(size.text(), what).bytes()).transpose();
            bytes.map_err(|words| Refusal { kind: RefusalKind::Wrong, words })
        };
        let shares = Shares {
            vram: size("vram", &resize.vram)?,
            ram: size("ram", &resize.ram)?,
            weight: resize.weight,
            cap_percent: resize.cap_percent,
            overcommit: resize.overcommit,
        };
        self.check(slice)?;
        vgpu::resize(&self.registry, slice, &shares).map_err(failed)
    }

    fn enable(&self, slice: &str, enabled: bool) -> Result<(), Refusal> {
        self.check(slice)?;
        self.registry.change(slice, |slice| slice.enabled = enabled).map(|_| ()).map_err(refusal)
    }
}

#[allow(clippy::needless_pass_by_value)] // The form that map_err asks for.
fn failed(failure: Failure) -> Refusal {
    let kind = if failure.code == BAD_ARGUMENT { RefusalKind::Wrong } else { RefusalKind::Refused };
    // The fields are called as the flags are.
    Refusal { kind, words: failure.message.trim_start_matches("--").to_owned() }
}

#[allow(clippy::needless_pass_by_value)] // The form that map_err asks for.
fn refusal(error: SliceError) -> Refusal {
    let kind = match &error {
        SliceError::BadName(_) => RefusalKind::Wrong,
        SliceError::NoSuch { .. } => RefusalKind::NoSlice,
        SliceError::System(_, error) if error.kind() == io::ErrorKind::PermissionDenied => RefusalKind::NotAllowed,
        _ => RefusalKind::Refused,
    };
    Refusal { kind, words: error.to_string() }
}
