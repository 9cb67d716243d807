//! Keeps every resource served and registered. See the crate's head for the states.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{select, time};

use crate::{KUBELET_SOCKET, Offer, plugin::Plugin, socket::Identity};

/// Where the kubelet is, and how often to look.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder of plugins.
    pub folder: PathBuf,
    /// From one look to the next.
    pub interval: Duration,
}

/// Serves what there is on offer until `stop`. `say` gets what is worth a line: registrations, and what goes wrong.
pub async fn keep(place: &Place, offer: Arc<dyn Offer>, mut say: impl FnMut(&str), stop: impl Future<Output = ()>) {
    let mut stop = pin!(stop);
    let mut looks = time::interval(place.interval);
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut keeper = Keeper { plugins: BTreeMap::new(), said: BTreeMap::new() };
    loop {
        select! {
            () = &mut stop => return,
            _ = looks.tick() => {}
        }
        select! {
            () = &mut stop => return,
            () = keeper.look(&place.folder, &offer, &mut say) => {}
        }
    }
}

struct Keeper {
    plugins: BTreeMap<String, Plugin>,
    /// What went wrong last, by resource.
    said: BTreeMap<String, String>,
}

impl Keeper {
    async fn look(&mut self, folder: &Path, offer: &Arc<dyn Offer>, say: &mut impl FnMut(&str)) {
        let mut offered = offer.resources();
        for resource in self.plugins.keys() {
            offered.entry(resource.clone()).or_default();
        }
        for (resource, devices) in offered {
            if let Some(plugin) = self.plugins.get(&resource).filter(|plugin| plugin.is_there()) {
                plugin.set(devices);
                continue;
            }
            match Plugin::start(&resource, folder, devices, Arc::clone(offer)) {
                Ok(plugin) => {
                    self.plugins.insert(resource, plugin);
                }
                Err(error) => {
                    let words = format!("cannot make a socket in {}: {error}", folder.display());
                    say_once(&mut self.said, &resource, words, say);
                }
            }
        }
        let socket = folder.join(KUBELET_SOCKET);
        for (resource, plugin) in &mut self.plugins {
            let Some(kubelet) = Identity::of(&socket) else {
                let words = format!("waiting for the kubelet: there is no {}", socket.display());
                say_once(&mut self.said, resource, words, say);
                continue;
            };
            if !plugin.is_unknown_to(kubelet) {
                continue;
            }
            match plugin.register(kubelet, &socket).await {
                Ok(()) => {
                    let (all, healthy) = plugin.count();
                    self.said.remove(resource);
                    say(&format!("{resource}: registered with the kubelet: {all} devices, {healthy} healthy"));
                }
                Err(words) => say_once(&mut self.said, resource, words, say),
            }
        }
    }
}

fn say_once(said: &mut BTreeMap<String, String>, resource: &str, words: String, say: &mut impl FnMut(&str)) {
    if said.get(resource) != Some(&words) {
        say(&format!("{resource}: {words}"));
        said.insert(resource.to_owned(), words);
    }
}
