//! A driver of Dynamic Resource Allocation (DRA): a node's devices with their attributes and capacities, from which the scheduler
//! chooses for pods' claims, and the kubelet's questions about claims that were given some.
//!
//! ```text
//!   devices --publish--> ResourceSlices (API server) --the scheduler chooses--> ResourceClaim, allocated
//!                                                                                  |
//!   kubelet finds our socket of registration, asks who we are                      v
//!   kubelet --prepare(claim)--> [ask the API server what the claim was given] --> remembered --> CDI names
//!   kubelet --unprepare(claim)--> forgotten
//! ```
//!
//! *What holds:*
//! 1. A claim that was prepared is answered the same until it is unprepared, also after a restart: it is remembered, in a file,
//!    before it is answered. To unprepare one that is not known is no mistake.
//! 2. A device is prepared for one claim at a time, but for claims with admin access.
//! 3. What is published becomes what there is: at each change, when the kubelet asks who we are (one that starts removes what it
//!    finds published), and every [`REVIEW`] in any case. A change of the pool is a new generation of it, in all of its slices.
//! 4. Both sockets are there: one that was removed is made again. The kubelet finds them by itself.
//! 5. What goes wrong is said once, until something else goes wrong.

mod claims;
mod cluster;
mod quantity;
mod service;
mod slices;

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{select, task, time};

pub use cluster::{Cluster, SERVICE_ACCOUNT};
pub use slices::resource_slices;

use claims::{Claims, Given, Prepared};
use service::Sockets;

/// What a published list is compared with what the API server has, though nothing has changed here.
const REVIEW: Duration = Duration::from_secs(30);

/// A kubelet's folder, where it has not been told otherwise.
pub const KUBELET_DIR: &str = "/var/lib/kubelet";

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// At most 64 characters are published.
    Text(String),
    /// A whole number.
    Number(i64),
    /// Yes or no.
    Truth(bool),
}

/// How much a device has of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// Bytes; published in whole MiB, rounded down.
    Bytes(u64),
    /// Something that is counted.
    Count(u64),
}

/// A device, as the scheduler sees it. Names of attributes and capacities are identifiers of C, at most 32 characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolDevice {
    /// A DNS label: see [`is_device_name`].
    pub name: String,
    /// By their names.
    pub attributes: BTreeMap<String, Attribute>,
    /// By their names.
    pub capacity: BTreeMap<String, Capacity>,
}

/// The devices of this node.
pub trait Pool: Send + Sync + 'static {
    /// Those that may be given out, as they are now. Asked often; answers must not take long.
    fn devices(&self) -> Vec<PoolDevice>;

    /// The CDI names of what a container is given with the device.
    ///
    /// # Errors
    /// Why it cannot have it; the pod's events show the words.
    fn give(&self, device: &str) -> Result<Vec<String>, String>;
}

/// Whether a device can be called so: 1 to 63 lower-case letters, digits and `-`, which is neither first nor last.
pub fn is_device_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| plain(byte) || byte == b'-')
        && name.bytes().next().is_some_and(plain)
        && name.bytes().last().is_some_and(plain)
}

/// A driver, and where it works.
#[derive(Debug, Clone)]
pub struct Driver {
    /// Its name, such as `example.com`.
    pub name: String,
    /// The node's, which is the pool's too.
    pub node: String,
    /// The kubelet's folder.
    pub kubelet_dir: PathBuf,
    /// Where prepared claims are remembered.
    pub state_dir: PathBuf,
    /// From one look at the devices to the next.
    pub interval: Duration,
}

/// What is shared with the kubelet's calls.
#[derive(Debug)]
struct Shared<P> {
    driver: Driver,
    pool: P,
    cluster: Cluster,
    claims: Claims,
    /// The kubelet has asked who we are.
    asked: AtomicBool,
    /// What it has said against us since then.
    refused: std::sync::Mutex<Option<String>>,
}

/// Serves the kubelet and keeps the list published until `stop`. `say` gets what is worth a line.
///
/// # Errors
/// The folder of the prepared claims cannot be used.
pub async fn keep(
    driver: Driver,
    pool: impl Pool,
    cluster: Cluster,
    mut say: impl FnMut(&str),
    stop: impl Future<Output = ()>,
) -> Result<(), String> {
    let claims = Claims::open(&driver.state_dir)?;
    let interval = driver.interval;
    let shared = Shared { driver, pool, cluster, claims, asked: AtomicBool::new(true), refused: Default::default() };
    let mut keeper = Keeper { shared: Arc::new(shared), sockets: None, published: None, said: BTreeMap::new() };
    let mut stop = pin!(stop);
    let mut looks = time::interval(interval);
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        select! {
            () = &mut stop => return Ok(()),
            _ = looks.tick() => {}
        }
        select! {
            () = &mut stop => return Ok(()),
            () = keeper.look(&mut say) => {}
        }
    }
}

struct Keeper<P> {
    shared: Arc<Shared<P>>,
    sockets: Option<Sockets>,
    /// The list that the API server was last known to have, and when.
    published: Option<(Vec<PoolDevice>, Instant)>,
    /// What went wrong last, by what it was.
    said: BTreeMap<&'static str, String>,
}

impl<P: Pool> Keeper<P> {
    async fn look(&mut self, say: &mut impl FnMut(&str)) {
        if !self.sockets.as_ref().is_some_and(Sockets::are_there) {
            // The old ones go first: they have the same names.
            self.sockets = None;
            let made = Sockets::start(&self.shared);
            let outcome = made.as_ref().map(drop).map_err(Clone::clone);
            self.sockets = made.ok();
            self.outcome("sockets", outcome, say);
        }
        let refused = self.shared.refused.lock().ok().and_then(|mut refused| refused.take());
        self.outcome("registration", refused.map_or(Ok(()), |why| Err(format!("the kubelet refuses: {why}"))), say);
        let asked = self.shared.asked.swap(false, Ordering::AcqRel);
        let shared = Arc::clone(&self.shared);
        let Ok(devices) = task::spawn_blocking(move || shared.pool.devices()).await else { return };
        let is_known = self.published.as_ref().is_some_and(|(list, when)| *list == devices && when.elapsed() < REVIEW);
        if is_known && !asked {
            return;
        }
        let (shared, list) = (Arc::clone(&self.shared), devices.clone());
        let published = task::spawn_blocking(move || slices::publish(&shared.cluster, &shared.driver, &list)).await;
        match published.unwrap_or_else(|_| Err("publishing has failed".to_owned())) {
            Ok(generation) => {
                self.said.remove("publishing");
                if let Some(generation) = generation {
                    let (name, count) = (&self.shared.driver.name, devices.len());
                    say(&format!("{name}: {count} devices published (generation {generation} of the pool)"));
                }
                self.published = Some((devices, Instant::now()));
            }
            Err(why) => {
                self.published = None;
                self.outcome("publishing", Err(why), say);
            }
        }
    }

    fn outcome(&mut self, what: &'static str, outcome: Result<(), String>, say: &mut impl FnMut(&str)) {
        match outcome {
            Ok(()) if what != "registration" => drop(self.said.remove(what)),
            // Heard once; the kubelet asks again by itself.
            Ok(()) => {}
            Err(words) if self.said.get(what) != Some(&words) => {
                say(&format!("{}: {words}", self.shared.driver.name));
                self.said.insert(what, words);
            }
            Err(_) => {}
        }
    }
}

/// What an object has at a path of names, null where there is nothing.
fn field<'v>(value: &'v Value, path: &[&str]) -> &'v Value {
    path.iter().fold(value, |value, name| &value[*name])
}

/// The text there, empty where there is none.
fn text<'v>(value: &'v Value, path: &[&str]) -> &'v str {
    field(value, path).as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_called_as_kubernetes_calls_things() {
        for name in ["ml-1", "9", &"x".repeat(63)] {
            assert!(is_device_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a.b", "a_b", &"x".repeat(64)] {
            assert!(!is_device_name(name), "{name}");
        }
    }
}
