//! Reads CDI specifications with the CDI project's crate, which checks them by its schema and its rules, and has it inject each
//! device into an empty container.

use anyhow::{Context, Result, ensure};
use container_device_interface::{container_edits::ContainerEdits, spec::read_spec};
use oci_spec::runtime::Spec;

fn main() -> Result<()> {
    for path in std::env::args().skip(1) {
        let mut spec = read_spec(&path.clone().into(), 0).with_context(|| path.clone())?;
        for (name, device) in spec.validate().with_context(|| path.clone())? {
            let mut edits = ContainerEdits::new();
            if let Some(common) = spec.edits() {
                edits.append(common)?;
            }
            edits.append(device.edits())?;
            let mut container = Spec::default();
            edits.apply(&mut container).with_context(|| format!("{path}: {name}"))?;
            let mounts = container.mounts().iter().flatten();
            let inside: Vec<_> = mounts.map(|mount| mount.destination().display().to_string()).collect();
            let wanted = ["/etc/ld.so.preload", "/opt/emuv/lib/libcuda.so.1", "/opt/emuv/emuv-slice"];
            for wanted in wanted.map(str::to_owned).into_iter().chain([format!("/run/emuv/vgpu/{name}/use")]) {
                ensure!(inside.contains(&wanted), "{path}: {name}: {wanted} is not mounted");
            }
            println!("{path}: {name}: valid, {} mounts", inside.len());
        }
    }
    Ok(())
}
