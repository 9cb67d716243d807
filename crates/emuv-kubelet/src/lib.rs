//! A Kubernetes device plugin: the kubelet's side of handing out devices, for devices that containers get by CDI names.
//! What the devices are is said by an [`Offer`]; nothing here knows of GPUs. [`dra`] is the newer way to do the same.
//!
//! Each *resource* is a plugin of its own, with a socket in the kubelet's folder of plugins. It is registered once with
//! each kubelet, which then asks it for its devices, and what a container is to be given. [`keep`] looks at the folder again
//! and again, and does what is missing:
//!
//! ```text
//!   no socket of ours --bind--> bound --register--> registered --the kubelet asks for the list--> watched
//!        ^                        ^                     |                                           |
//!        |                        +-- another kubelet.sock (or it went and came), or the list ------+
//!        |                            is not followed any more
//!        +-- our socket is not the file that we made: a kubelet that starts removes all that is in the folder
//! ```
//!
//! *What holds:*
//! 1. A kubelet that restarts has every resource again within one look, however it restarts.
//! 2. Whoever follows a resource's list gets the whole list at once, and again at each change of it, and nothing else.
//! 3. A resource without devices stays registered with an empty list: the kubelet is told so, and forgets nothing else.
//! 4. What goes wrong is said once, until something else goes wrong.

pub mod dra;
pub mod dra_v1;
pub mod pluginregistration;
pub mod v1beta1;

mod keeper;
mod plugin;
mod socket;

pub use keeper::{Place, keep};

use std::collections::BTreeMap;

/// The name of the kubelet's socket in the folder of plugins.
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// The folder of plugins, where the kubelet has not been told otherwise.
pub const PLUGINS_DIR: &str = "/var/lib/kubelet/device-plugins";

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name for the kubelet, at most 63 characters.
    pub id: String,
    /// Containers may be given it now.
    pub healthy: bool,
    /// What it shares with other devices: containers are spread over these, as far as there is a choice.
    pub shared: String,
    /// The NUMA node that it is near to, if that is known.
    pub numa_node: Option<u32>,
}

/// What there is to be had on this node. Asked often; answers must not take long.
pub trait Offer: Send + Sync + 'static {
    /// The devices of each resource (`example.com/thing`) as they are now.
    fn resources(&self) -> BTreeMap<String, Vec<Device>>;

    /// The CDI names of what a container is given with these devices.
    ///
    /// # Errors
    /// Why it cannot have them; the pod's events show the words.
    fn allocate(&self, ids: &[String]) -> Result<Vec<String>, String>;
}

/// Of the devices that may be chosen, `count` with those that must be among them: each next one is of the ones that share
/// with the most that are still free, so that containers are spread.
pub fn spread(devices: &[Device], available: &[String], must: &[String], count: usize) -> Vec<String> {
    let mut chosen = must.to_vec();
    let mut free: Vec<&Device> =
        devices.iter().filter(|device| available.contains(&device.id) && !must.contains(&device.id)).collect();
    while chosen.len() < count {
        let beside = |device: &Device| free.iter().filter(|other| other.shared == device.shared).count();
        // Of equals, the first.
        let Some(best) = (0..free.len()).max_by_key(|&index| (beside(free[index]), std::cmp::Reverse(index))) else {
            break;
        };
        chosen.push(free.remove(best).id.clone());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str, shared: &str) -> Device {
        Device { id: id.to_owned(), healthy: true, shared: shared.to_owned(), numa_node: None }
    }

    fn names(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn the_next_container_goes_where_most_is_free() {
        let devices = [device("a1", "a"), device("a2", "a"), device("b1", "b"), device("b2", "b"), device("c1", "c")];
        assert_eq!(spread(&devices, &names(&["a1", "a2", "b1", "b2", "c1"]), &[], 1), ["a1"]);
        assert_eq!(spread(&devices, &names(&["a2", "b1", "b2", "c1"]), &[], 1), ["b1"]);
        assert_eq!(spread(&devices, &names(&["a2", "b1", "b2", "c1"]), &[], 3), ["b1", "a2", "b2"]);
    }

    #[test]
    fn what_must_be_among_them_is_and_no_more_is_given_than_there_is() {
        let devices = [device("a1", "a"), device("a2", "a"), device("b1", "b")];
        assert_eq!(spread(&devices, &names(&["a1", "a2", "b1"]), &names(&["b1"]), 2), ["b1", "a1"]);
        assert_eq!(spread(&devices, &names(&["a1"]), &[], 9), ["a1"]);
        assert_eq!(spread(&devices, &[], &[], 1), Vec::<String>::new());
    }
}
