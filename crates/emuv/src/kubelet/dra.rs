//! `emuv kubelet --dra`: the slices of this node as devices of Dynamic Resource Allocation.
//!
//! Where a device plugin can only count slices, here the scheduler sees what each one is, and a claim says what it needs. What a container
//! is given is the same: the slice, by its CDI name.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;
use emuv_kubelet::{
    Offer,
    dra::{self, Attribute, Capacity, Cluster, Driver, Pool, PoolDevice, is_device_name},
};
use emuv_state::slices::Slice;
use serde_json::json;

use super::{
    lock,
    offer::{Seen, Slices},
    until_signal,
};
use crate::{
    cli::{Failure, complain},
    vgpu::{self, REFUSED},
};

/// The driver's name: a claim's device class selects by it.
const DRIVER: &str = "emuv.dev";

/// Flags of `emuv kubelet --dra`.
#[derive(Debug, Args)]
pub struct DraOptions {
    /// Be a driver of Dynamic Resource Allocation (Kubernetes 1.34 or newer) in place of a device plugin
    #[arg(long)]
    pub dra: bool,
    /// With --dra: print the ResourceSlices of this node, for kubectl apply, and end
    #[arg(long, requires = "dra")]
    print: bool,
    /// With --dra: the name of this node in the cluster [default: that of the host]
    #[arg(long, value_name = "NAME", env = "NODE_NAME", hide_env_values = true)]
    node_name: Option<String>,
    /// With --dra: the kubelet's folder
    #[arg(long, value_name = "DIR", default_value = dra::KUBELET_DIR, requires = "dra")]
    kubelet_dir: PathBuf,
    /// With --dra: the address of the API server [default: the one that a pod is told of]
    #[arg(long, value_name = "URL", requires = "dra")]
    api_server: Option<String>,
    /// With --dra: the folder with the token and the ca.crt for the API server
    #[arg(long, value_name = "DIR", default_value = dra::SERVICE_ACCOUNT, requires = "dra")]
    service_account: PathBuf,
}

/// Does it, until a signal says to end.
///
/// # Errors
/// It cannot work here.
pub fn run(all: &super::Options) -> Result<ExitCode, Failure> {
    let options = &all.dra;
    let state = emuv_state::state_dir(|name| env::var(name).ok()).map_err(Failure::bad_argument)?;
    let driver = Driver {
        name: DRIVER.to_owned(),
        node: options.node()?,
        kubelet_dir: options.kubelet_dir.clone(),
        state_dir: state.join("dra"),
        interval: all.interval,
    };
    let pool = NodePool(Slices::new(all.content.store()?, &all.cdi_dir, all.resources));
    if options.print {
        // Always a later one than what was applied before.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
        let items = dra::resource_slices(&driver, &pool.devices(), now, None);
        vgpu::write(&format!("{:#}\n", json!({ "apiVersion": "v1", "kind": "List", "items": items })))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !options.kubelet_dir.join("plugins_registry").is_dir() {
        let words = format!("{} has no plugins_registry: is this a node?", options.kubelet_dir.display());
        return Err(Failure::wrong("--kubelet-dir", words));
    }
    let cluster = options.cluster().map_err(|why| Failure::wrong("--api-server", why))?;
    let lock = lock(&all.cdi_dir)?;
    until_signal(async |stop| {
        dra::keep(driver, pool, cluster, complain, stop).await.map_err(|why| Failure::new(REFUSED, why))
    })?;
    drop(lock);
    Ok(ExitCode::SUCCESS)
}

impl DraOptions {
    fn node(&self) -> Result<String, Failure> {
        let host = || rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let name = self.node_name.clone().unwrap_or_else(host);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if name.is_empty() || name.len() > 253 || !name.bytes().all(plain) {
            return Err(Failure::wrong("--node-name", format!("'{name}' is no name of a node")));
        }
        Ok(name)
    }

    fn cluster(&self) -> Result<Cluster, String> {
        match &self.api_server {
            Some(url) => Cluster::at(url, &self.service_account),
            None => Cluster::of_pod(|name| env::var(name).ok(), Path::new(&self.service_account)),
        }
    }
}

/// The slices of this node.
struct NodePool(Slices);

impl Pool for NodePool {
    fn devices(&self) -> Vec<PoolDevice> {
        let unfit = |slice: &Slice| {
            (!is_device_name(&slice.name)).then(|| {
                let name = &slice.name;
                format!("'{name}' is left out: a DRA device has lower-case letters, digits and '-' in its name")
            })
        };
        self.0.look(unfit).into_iter().filter(|seen| seen.healthy).map(|seen| device(&seen)).collect()
    }

    fn give(&self, device: &str) -> Result<Vec<String>, String> {
        self.0.allocate(&[device.to_owned()])
    }
}

/// A slice as the scheduler sees it.
fn device(Seen { slice, numa_node, .. }: &Seen) -> PoolDevice {
    let text = |text: &str| Some(Attribute::Text(text.to_owned()));
    let number = |number: u32| Some(Attribute::Number(number.into()));
    // Without a cap it may have all of the GPU's time.
    let most_percent = slice.cap_percent.unwrap_or(100);
    let attributes = [
        ("name", text(&slice.name)),
        ("instance", number(slice.instance)),
        ("gpuUuid", text(&slice.gpu.uuid)),
        ("gpuName", text(&slice.gpu.name)),
        ("gpuModel", slice.gpu_model.as_deref().and_then(text)),
        ("weight", number(slice.weight)),
        ("simulated", Some(Attribute::Truth(slice.sim.is_some()))),
        ("numaNode", numa_node.and_then(number)),
    ];
    let attributes = attributes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let capacity = [
        ("vram", Capacity::Bytes(slice.vram.0)),
        ("ram", Capacity::Bytes(slice.ram.0)),
        ("compute", Capacity::Count(most_percent.into())),
    ];
    PoolDevice {
        name: slice.name.clone(),
        attributes: attributes.collect(),
        capacity: capacity.map(|(name, value)| (name.to_owned(), value)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdi::spec::tests::slice;

    #[test]
    fn the_scheduler_sees_what_a_slice_is() {
        let mut one = slice("ml-1");
        (one.cap_percent, one.gpu_model) = (Some(40), Some("4090".to_owned()));
        let seen = device(&Seen { slice: one, healthy: true, numa_node: Some(1) });
        assert_eq!(seen.name, "ml-1");
        for (name, value) in [
            ("gpuUuid", Attribute::Text("GPU-aa11".to_owned())),
            ("gpuModel", Attribute::Text("4090".to_owned())),
            ("weight", Attribute::Number(100)),
            ("simulated", Attribute::Truth(false)),
            ("numaNode", Attribute::Number(1)),
        ] {
            assert_eq!(seen.attributes.get(name), Some(&value), "{name}");
        }
        let capacity = |name: &str| seen.capacity[name];
        assert_eq!((capacity("vram"), capacity("ram")), (Capacity::Bytes(6 << 30), Capacity::Bytes(2 << 30)));
        assert_eq!(capacity("compute"), Capacity::Count(40));
    }

    #[test]
    fn names_are_short_identifiers() {
        let seen = device(&Seen { slice: slice("ml-1"), healthy: true, numa_node: Some(0) });
        for name in seen.attributes.keys().chain(seen.capacity.keys()) {
            assert!(name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{name}");
        }
    }
}
