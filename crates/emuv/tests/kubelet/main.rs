//! `emuv kubelet` beside a stand-in for the kubelet that speaks the real interface over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)] // In the functions that the tests share.

mod api_server;
mod dra;
mod manifests;
#[allow(dead_code)]
#[path = "../vgpu/place.rs"]
mod place;
mod stand_in;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io::{BufRead, BufReader},
    process::{Child, ChildStderr, Stdio},
    time::Duration,
};

use emuv_kubelet::v1beta1 as api;
use place::{Place, stderr};
use stand_in::{Kubelet, Registered};

/// `emuv kubelet`, ended with the test.
struct Plugin(Child, BufReader<ChildStderr>);

impl Plugin {
    fn start(place: &Place, flags: &[&str]) -> Self {
        let mut child = command(place, flags).stderr(Stdio::piped()).spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        Self(child, errors)
    }

    /// Reads what it says until a line has these words.
    fn says(&mut self, words: &str) {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert_ne!(self.1.read_line(&mut line).unwrap(), 0, "it ended without saying '{words}'");
        }
    }

    fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(place: &Place, flags: &[&str]) -> std::process::Command {
    let (plugins, cdi) = (place.path("plugins"), place.path("cdi"));
    std::fs::create_dir_all(&plugins).unwrap();
    let mut command = place.command(&["kubelet", "--interval", "0.02", "--nvidia", "by-name"]);
    command.arg("--plugins-dir").arg(plugins).arg("--cdi-dir").arg(cdi).args(flags);
    command
}

/// The devices' names in the specification.
fn devices(place: &Place) -> Vec<String> {
    let spec = std::fs::read(place.path("cdi/emuv.dev-vgpu.json")).unwrap();
    let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
    let devices = spec["devices"].as_array().unwrap();
    devices.iter().map(|device| device["name"].as_str().unwrap().to_owned()).collect()
}

/// Runs a test. What never happens ends it.
fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("it hangs") });
}

/// Follows a list until it says this: each device, and whether it is healthy.
async fn until(registered: &mut Registered, expected: &[(&str, bool)]) {
    let expected: BTreeMap<_, _> = expected.iter().map(|(id, healthy)| ((*id).to_owned(), *healthy)).collect();
    let mut seen = BTreeMap::new();
    let mut is_so = false;
    while !is_so {
        let list = registered.next_list().await.unwrap_or_else(|| panic!("the list ended with {seen:?}"));
        seen = list.into_iter().map(|device| (device.id, device.health == api::HEALTHY)).collect();
        is_so = seen == expected;
    }
}

#[test]
fn the_kubelet_learns_of_every_slice_and_of_every_change() {
    let place = Place::new();
    place.slice("ml-1", 32, 16);
    place.slice("ml-2", 32, 16);
    block_on(async {
        let mut kubelet = Kubelet::start(&place.path("plugins"));
        let _plugin = Plugin::start(&place, &[]);
        let request = kubelet.next().await;
        assert_eq!((request.version.as_str(), request.resource_name.as_str()), ("v1beta1", "emuv.dev/vgpu"));
        assert!(!request.endpoint.contains('/'));
        let mut registered = kubelet.dial(&request).await;
        let options = registered.client.get_device_plugin_options(api::Empty {}).await.unwrap().into_inner();
        assert_eq!(Some(options), request.options);
        assert!(!options.pre_start_required);
        until(&mut registered, &[("ml-1", true), ("ml-2", true)]).await;
        place.vgpu(&["disable", "ml-1"]);
        until(&mut registered, &[("ml-1", false), ("ml-2", true)]).await;
        place.slice("ml-3", 32, 16);
        until(&mut registered, &[("ml-1", false), ("ml-2", true), ("ml-3", true)]).await;
        place.vgpu(&["delete", "ml-2"]);
        place.vgpu(&["enable", "ml-1"]);
        until(&mut registered, &[("ml-1", true), ("ml-3", true)]).await;
        let nothing = api::PreStartContainerRequest { devices_ids: vec!["ml-1".to_owned()] };
        registered.client.pre_start_container(nothing).await.unwrap();
        place.vgpu(&["delete", "ml-1", "ml-3"]);
        until(&mut registered, &[]).await;
        assert!(!place.path("cdi/emuv.dev-vgpu.json").exists(), "a specification without devices is none");
    });
}

#[test]
fn a_container_gets_one_slice_by_its_name_and_the_engine_knows_that_name() {
    let place = Place::new();
    place.slice("ml-1", 32, 16);
    place.slice("ml-2", 32, 16);
    block_on(async {
        let mut kubelet = Kubelet::start(&place.path("plugins"));
        let _plugin = Plugin::start(&place, &[]);
        let mut registered = kubelet.register().await;
        until(&mut registered, &[("ml-1", true), ("ml-2", true)]).await;
        let given = registered.allocate(&[&["ml-2"], &["ml-1"]]).await.unwrap();
        assert_eq!(given, [["emuv.dev/vgpu=ml-2"], ["emuv.dev/vgpu=ml-1"]]);
        let names = devices(&place);
        assert_eq!(names, ["ml-1", "ml-2"]);

        let refused = registered.allocate(&[&["ml-1", "ml-2"]]).await.unwrap_err();
        assert!(refused.contains("one slice") && refused.contains('2'), "{refused}");
        let refused = registered.allocate(&[&["ml-9"]]).await.unwrap_err();
        assert!(refused.contains("no slice 'ml-9'"), "{refused}");
        place.vgpu(&["disable", "ml-1"]);
        let refused = registered.allocate(&[&["ml-1"]]).await.unwrap_err();
        assert!(refused.contains("'ml-1' is disabled"), "{refused}");
    });
}

#[test]
fn after_the_kubelet_restarted_everything_is_there_again() {
    let place = Place::new();
    place.slice("ml-1", 32, 16);
    block_on(async {
        let mut plugin = Plugin::start(&place, &[]);
        plugin.says("waiting for the kubelet");
        for _ in 0..4 {
            // One that starts removes all sockets in its folder.
            let mut kubelet = Kubelet::start(&place.path("plugins"));
            let mut registered = kubelet.register().await;
            until(&mut registered, &[("ml-1", true)]).await;
            assert_eq!(registered.allocate(&[&["ml-1"]]).await.unwrap(), [["emuv.dev/vgpu=ml-1"]]);
        }
        assert_eq!(plugin.terminate(), Some(0));
        assert!(
            std::fs::read_dir(place.path("plugins")).unwrap().flatten().all(|file| file.file_name() == "kubelet.sock")
        );
    });
}

#[test]
fn a_kubelet_that_lost_the_connection_is_told_again() {
    let place = Place::new();
    place.slice("ml-1", 32, 16);
    block_on(async {
        let mut kubelet = Kubelet::start(&place.path("plugins"));
        let _plugin = Plugin::start(&place, &[]);
        let mut registered = kubelet.register().await;
        until(&mut registered, &[("ml-1", true)]).await;
        drop(registered);
        let mut registered = kubelet.register().await;
        until(&mut registered, &[("ml-1", true)]).await;
    });
}

#[test]
fn a_kubelet_that_refuses_is_asked_again() {
    let place = Place::new();
    place.slice("ml-1", 32, 16);
    block_on(async {
        let mut kubelet = Kubelet::start(&place.path("plugins"));
        kubelet.refuse(2);
        let mut plugin = Plugin::start(&place, &[]);
        let mut registered = kubelet.register().await;
        until(&mut registered, &[("ml-1", true)]).await;
        plugin.says("the kubelet refuses: not now");
        plugin.says("registered with the kubelet: 1 devices, 1 healthy");
    });
}

#[test]
fn slices_of_different_sizes_can_be_resources_of_their_own() {
    let place = Place::new();
    place.slice("small", 32, 0);
    place.slice("large-1", 64, 16);
    place.slice("large-2", 64, 16);
    block_on(async {
        let mut kubelet = Kubelet::start(&place.path("plugins"));
        let _plugin = Plugin::start(&place, &["--resources", "by-share"]);
        let mut lists = BTreeMap::new();
        for _ in 0..2 {
            let request = kubelet.next().await;
            let mut registered = kubelet.dial(&request).await;
            let list = registered.next_list().await.unwrap();
            lists.insert(request.resource_name, list.into_iter().map(|device| device.id).collect::<Vec<_>>());
        }
        let expected = [
            ("emuv.dev/vgpu-32m-0g".to_owned(), vec!["small".to_owned()]),
            ("emuv.dev/vgpu-64m-16m".to_owned(), vec!["large-1".to_owned(), "large-2".to_owned()]),
        ];
        assert_eq!(lists, BTreeMap::from(expected));
    });
}

#[test]
fn a_platform_of_8_gpus_and_32_slices_is_given_out_evenly() {
    let place = Place::new();
    for gpu in 0..8 {
        for slice in 0..4 {
            let (name, gpu) = (format!("vgpu-{gpu}-{slice}"), gpu.to_string());
            let shares = ["--vram", "6G", "--ram", "2M", "--gpu", &gpu];
            place.vgpu(&[&["create", &name, "--sim=gpus=8,vram=24G"], &shares[..]].concat());
        }
    }
    block_on(async {
        let mut kubelet = Kubelet::start(&place.path("plugins"));
        let _plugin = Plugin::start(&place, &[]);
        let mut registered = kubelet.register().await;
        let list = registered.next_list().await.unwrap();
        assert_eq!(list.iter().filter(|device| device.health == api::HEALTHY).count(), 32);
        let mut free: BTreeSet<String> = list.into_iter().map(|device| device.id).collect();
        // As pods come one after the other.
        for round in 0..4 {
            let mut gpus = BTreeSet::new();
            for _ in 0..8 {
                let id = registered.preferred(&free).await;
                assert_eq!(registered.allocate(&[&[&id]]).await.unwrap(), [[format!("emuv.dev/vgpu={id}")]]);
                assert!(free.remove(&id), "{id} was given twice");
                gpus.insert(place.listing(&id).entry.slice.gpu.uuid);
            }
            assert_eq!(gpus.len(), 8, "round {round}: each GPU has as many containers as any other");
        }
        assert!(free.is_empty());
        assert_eq!(devices(&place).len(), 32);
    });
}

#[test]
fn what_cannot_work_is_said_in_one_line() {
    let place = Place::new();
    let output = place.output(&["kubelet", "--plugins-dir", "/nonexistent/plugins"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output).lines().count(), 1);
    assert!(stderr(&output).contains("--plugins-dir: /nonexistent/plugins is not there"), "{}", stderr(&output));
    let mut first = Plugin::start(&place, &[]);
    first.says("waiting for the kubelet");
    let output = command(&place, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("another emuv kubelet runs here"), "{}", stderr(&output));
}
