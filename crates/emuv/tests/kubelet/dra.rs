//! `emuv kubelet --dra` beside stand-ins for the kubelet, over its real sockets, and for the API server, over TLS.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use emuv_kubelet::{
    dra_v1::{self as api, dra_plugin_client::DraPluginClient},
    pluginregistration::{self as hello, registration_client::RegistrationClient},
};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use super::{
    Plugin,
    api_server::{ApiServer, devices},
    block_on, command,
    place::{Place, stderr, until},
};

const NODE: &str = "node-1";

/// A node with a cluster around it.
struct Node {
    place: Place,
    server: ApiServer,
}

impl Node {
    fn new() -> Self {
        let place = Place::new();
        std::fs::create_dir_all(place.path("kubelet/plugins_registry")).unwrap();
        let server = ApiServer::start(&place.path("account"));
        Self { place, server }
    }

    fn flags(&self) -> Vec<String> {
        let path = |name: &str| self.place.path(name).display().to_string();
        let flags = ["--dra", "--node-name", NODE, "--api-server", &self.server.url].map(str::to_owned);
        let more = ["--kubelet-dir".to_owned(), path("kubelet"), "--service-account".to_owned()];
        flags.into_iter().chain(more).chain([self.server.account.display().to_string()]).collect()
    }

    fn start(&self) -> Plugin {
        let flags = self.flags();
        Plugin::start(&self.place, &flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn published(&self, names: &[&str]) -> Vec<Value> {
        self.server.until(|slices| devices(slices) == names)
    }
}

/// What the kubelet does with a driver that it has found.
struct Driver {
    info: hello::PluginInfo,
    client: DraPluginClient<Channel>,
}

async fn dial(socket: &Path) -> Channel {
    // The kubelet sees a socket when it is there.
    let mut connected = None;
    while connected.is_none() {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        connected = endpoint.connect().await.ok();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    connected.unwrap()
}

impl Driver {
    async fn find(node: &Node) -> Self {
        let found = node.place.path("kubelet/plugins_registry/emuv.dev-reg.sock");
        let mut registration = RegistrationClient::new(dial(&found).await);
        let info = registration.get_info(hello::InfoRequest {}).await.unwrap().into_inner();
        let status = hello::RegistrationStatus { plugin_registered: true, error: String::new() };
        registration.notify_registration_status(status).await.unwrap();
        let client = DraPluginClient::new(dial(&PathBuf::from(&info.endpoint)).await);
        Self { info, client }
    }

    /// Of each claim: request, device and CDI names of what it was given, or why it was given nothing.
    async fn prepare(&mut self, claims: &[(&str, &str)]) -> Vec<Result<Vec<(String, String, Vec<String>)>, String>> {
        let request = api::NodePrepareResourcesRequest { claims: claims.iter().map(claim).collect() };
        let mut answers = self.client.node_prepare_resources(request).await.unwrap().into_inner().claims;
        let answer = |(_, uid): &(&str, &str)| {
            let answer = answers.remove(*uid).expect("each claim is answered");
            let device = |device: api::Device| {
                assert_eq!(device.pool_name, NODE);
                let [request] = &device.request_names[..] else { panic!("one request") };
                (request.clone(), device.device_name, device.cdi_device_ids)
            };
            if answer.error.is_empty() {
                Ok(answer.devices.into_iter().map(device).collect())
            } else {
                Err(answer.error)
            }
        };
        claims.iter().map(answer).collect()
    }

    async fn one(&mut self, name: &str, uid: &str) -> Result<Vec<String>, String> {
        let mut answer = self.prepare(&[(name, uid)]).await.remove(0)?;
        Ok(answer.remove(0).2)
    }

    async fn unprepare(&mut self, claims: &[(&str, &str)]) {
        let request = api::NodeUnprepareResourcesRequest { claims: claims.iter().map(claim).collect() };
        let answers = self.client.node_unprepare_resources(request).await.unwrap().into_inner().claims;
        assert_eq!(answers.len(), claims.len());
        assert!(answers.values().all(|answer| answer.error.is_empty()), "{answers:?}");
    }
}

fn claim((name, uid): &(&str, &str)) -> api::Claim {
    api::Claim { namespace: "default".into(), uid: (*uid).to_owned(), name: (*name).to_owned() }
}

fn ours<'a>(request: &'a str, device: &'a str) -> [&'a str; 4] {
    [request, "emuv.dev", NODE, device]
}

#[test]
fn a_claim_is_prepared_once_and_remembered_until_it_is_given_back() {
    let node = Node::new();
    node.place.slice("ml-1", 32, 16);
    node.place.slice("ml-2", 32, 16);
    let ml_2 = Ok(vec!["emuv.dev/vgpu=ml-2".to_owned()]);
    block_on(async {
        let plugin = node.start();
        let mut driver = Driver::find(&node).await;
        assert_eq!((driver.info.r#type.as_str(), driver.info.name.as_str()), ("DRAPlugin", "emuv.dev"));
        assert_eq!(driver.info.supported_versions, ["v1.DRAPlugin"]);
        // Others' devices are others' to prepare.
        let others = [["nic", "other.dev", NODE, "nic-0"], ["far", "emuv.dev", "node-2", "ml-1"]];
        node.server.claim("train", "u-1", &[others[0], ours("gpu", "ml-2"), others[1]]);
        node.server.claim("serve", "u-2", &[ours("gpu", "ml-2")]);
        assert_eq!(driver.one("train", "u-1").await, ml_2);
        assert_eq!(driver.one("train", "u-1").await, ml_2);
        let refused = driver.one("serve", "u-2").await.unwrap_err();
        assert!(refused.contains("'ml-2' is still prepared for the claim default/train"), "{refused}");

        // A restart, after which not even the API server answers.
        assert_eq!(plugin.terminate(), Some(0));
        node.server.be_away(true);
        let _plugin = node.start();
        let mut driver = Driver::find(&node).await;
        assert_eq!(driver.one("train", "u-1").await, ml_2);
        assert!(driver.one("serve", "u-2").await.unwrap_err().contains("503"));
        node.server.be_away(false);

        driver.unprepare(&[("train", "u-1")]).await;
        driver.unprepare(&[("train", "u-1"), ("never", "u-99")]).await;
        assert_eq!(driver.one("serve", "u-2").await, ml_2);
        assert_eq!(super::devices(&node.place), ["ml-1", "ml-2"], "the engine knows the names");
    });
}

#[test]
fn a_claim_that_cannot_be_prepared_is_told_why_and_the_others_are_prepared() {
    let node = Node::new();
    node.place.slice("ml-1", 32, 16);
    node.place.slice("ml-2", 32, 16);
    node.place.vgpu(&["disable", "ml-2"]);
    block_on(async {
        let _plugin = node.start();
        let mut driver = Driver::find(&node).await;
        node.server.claim("good", "u-0", &[ours("gpu", "ml-1")]);
        node.server.claim("replaced", "u-2b", &[ours("gpu", "ml-1")]);
        node.server.claim("off", "u-3", &[ours("gpu", "ml-2")]);
        node.server.claim("gone", "u-4", &[ours("gpu", "ml-9")]);
        node.server.claim("two", "u-5", &[ours("gpu", "ml-1"), ours("gpu", "ml-2")]);
        node.server.claim("others", "u-6", &[["nic", "other.dev", NODE, "nic-0"]]);
        let waiting = serde_json::json!({ "metadata": { "uid": "u-7" } });
        node.server.put("/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/waiting", waiting);
        let claims = [
            ("missing", "u-1", "there is no claim default/missing"),
            ("replaced", "u-2", "another one by now"),
            ("off", "u-3", "'ml-2' is disabled"),
            ("gone", "u-4", "no slice 'ml-9'"),
            ("two", "u-5", "a container can have one"),
            ("others", "u-6", "no device of emuv.dev on node-1"),
            ("waiting", "u-7", "not been allocated"),
            ("../x", "../x", "no uid of a claim"),
        ];
        let asked: Vec<_> = claims.iter().map(|(name, uid, _)| (*name, *uid)).chain([("good", "u-0")]).collect();
        let answers = driver.prepare(&asked).await;
        for ((name, _, words), answer) in claims.iter().zip(&answers) {
            let error = answer.as_ref().unwrap_err();
            assert!(error.contains(words), "{name}: {error}");
        }
        let given = answers.last().unwrap().as_ref().unwrap();
        assert_eq!(given[..], [("gpu".to_owned(), "ml-1".to_owned(), vec!["emuv.dev/vgpu=ml-1".to_owned()])]);
    });
}

#[test]
fn what_is_published_is_what_there_is() {
    let node = Node::new();
    node.place.vgpu(&["create", "ml-1", "--vram", "6G", "--ram", "32M", "--cap", "40", "--sim=vram=24G"]);
    node.place.vgpu(&["create", "Not.A.Label", "--vram", "32M", "--sim=vram=24G"]);
    block_on(async {
        let mut plugin = node.start();
        plugin.says("'Not.A.Label' is left out: a DRA device has lower-case letters");
        let slices = node.published(&["ml-1"]);
        let [slice] = &slices[..] else { panic!("one slice") };
        assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "uid-of-node-1");
        assert_eq!(
            slice["spec"]["pool"],
            serde_json::json!({ "name": NODE, "generation": 1, "resourceSliceCount": 1 })
        );
        let device = &slice["spec"]["devices"][0];
        let capacity = serde_json::json!({
            "vram": { "value": "6Gi" }, "ram": { "value": "32Mi" }, "compute": { "value": "40" }
        });
        assert_eq!(device["capacity"], capacity);
        assert_eq!(device["attributes"]["simulated"]["bool"], true);
        assert_eq!(device["attributes"]["name"]["string"], "ml-1");

        let generation = |slices: &[Value]| slices[0]["spec"]["pool"]["generation"].as_u64().unwrap();
        node.place.vgpu(&["create", "ml-2", "--vram", "6G", "--sim=vram=24G"]);
        assert_eq!(generation(&node.published(&["ml-1", "ml-2"])), 2);
        node.place.vgpu(&["disable", "ml-1"]);
        assert_eq!(generation(&node.published(&["ml-2"])), 3);
        node.place.vgpu(&["resize", "ml-2", "--vram", "4G"]);
        let of = |slice: &Value| slice["spec"]["devices"][0]["capacity"]["vram"]["value"] == "4Gi";
        assert_eq!(generation(&node.server.until(|slices| slices.iter().any(of))), 4);

        // A kubelet that starts removes what it finds, and asks who is there.
        node.server.forget_slices();
        let _driver = Driver::find(&node).await;
        node.published(&["ml-2"]);

        node.server.be_away(true);
        node.place.vgpu(&["enable", "ml-1"]);
        plugin.says("503 Service Unavailable: not now");
        node.server.be_away(false);
        node.published(&["ml-1", "ml-2"]);
        node.place.vgpu(&["delete", "ml-1", "ml-2", "Not.A.Label"]);
        node.server.until(<[Value]>::is_empty);
    });
}

#[test]
fn sockets_that_were_removed_are_made_again() {
    let node = Node::new();
    node.place.slice("ml-1", 32, 16);
    node.server.claim("train", "u-1", &[ours("gpu", "ml-1")]);
    block_on(async {
        let plugin = node.start();
        drop(Driver::find(&node).await);
        for name in ["kubelet/plugins_registry/emuv.dev-reg.sock", "kubelet/plugins/emuv.dev/dra.sock"] {
            let path = node.place.path(name);
            std::fs::remove_file(&path).unwrap();
            until("the socket is there again", || path.exists());
            assert!(Driver::find(&node).await.one("train", "u-1").await.is_ok());
        }
        assert_eq!(plugin.terminate(), Some(0));
        assert!(!node.place.path("kubelet/plugins/emuv.dev/dra.sock").exists(), "nothing is left that nobody serves");
    });
}

#[test]
fn a_platform_of_8_gpus_and_32_slices_is_one_pool() {
    let node = Node::new();
    let name = |gpu: u32, slice: u32| format!("vgpu-{gpu}-{slice}");
    let all = (0..8).flat_map(|gpu| (0..4).map(move |slice| (gpu, slice)));
    for (gpu, slice) in all.clone() {
        let (name, gpu) = (name(gpu, slice), gpu.to_string());
        let shares = ["--vram", "6G", "--ram", "2M", "--gpu", &gpu, "--sim=gpus=8,vram=24G"];
        node.place.vgpu(&[&["create", name.as_str()], &shares[..]].concat());
    }
    block_on(async {
        let _plugin = node.start();
        let mut driver = Driver::find(&node).await;
        let slices = node.server.until(|slices| devices(slices).len() == 32);
        let published = slices[0]["spec"]["devices"].as_array().unwrap().clone();
        let gpu = |device: &Value| device["attributes"]["gpuUuid"]["string"].as_str().unwrap().to_owned();
        assert_eq!(published.iter().map(gpu).collect::<BTreeSet<_>>().len(), 8);
        // As the scheduler allots them: to 32 claims.
        let uids: Vec<_> = all.map(|(gpu, slice)| (name(gpu, slice), format!("u-{gpu}-{slice}"))).collect();
        for (name, uid) in &uids {
            node.server.claim(name, uid, &[ours("gpu", name)]);
        }
        let claims: Vec<_> = uids.iter().map(|(name, uid)| (name.as_str(), uid.as_str())).collect();
        for (answer, (name, _)) in driver.prepare(&claims).await.into_iter().zip(&claims) {
            assert_eq!(answer.unwrap()[0].2, [format!("emuv.dev/vgpu={name}")]);
        }
        driver.unprepare(&claims).await;
        assert_eq!(std::fs::read_dir(node.place.path("state/dra/claims")).unwrap().count(), 0);
    });
}

#[test]
fn the_list_can_be_printed_for_kubectl() {
    let node = Node::new();
    node.place.slice("ml-1", 32, 16);
    let output = command(&node.place, &["--dra", "--print", "--node-name", NODE]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let items = list["items"].as_array().unwrap();
    assert_eq!((list["kind"].as_str(), devices(items)), (Some("List"), vec!["ml-1".to_owned()]));
    assert_eq!(items[0]["spec"]["nodeName"], NODE);
}

#[test]
fn what_cannot_work_is_said_in_one_line() {
    let node = Node::new();
    node.place.slice("ml-1", 32, 16);
    let kubelet = node.place.path("kubelet").display().to_string();
    for (flags, code, words) in [
        (&["--print"][..], 2, "--dra"),
        (&["--dra", "--node-name", "A/B"], 2, "--node-name: 'A/B' is no name of a node"),
        (&["--dra", "--node-name", NODE, "--kubelet-dir", "/nonexistent"], 2, "is this a node?"),
        (&["--dra", "--node-name", NODE, "--kubelet-dir", &kubelet], 2, "this is not a pod"),
        (&["--dra", "--kubelet-dir", &kubelet, "--api-server", "http://x"], 2, "is not https://"),
    ] {
        let output = command(&node.place, flags).env_remove("KUBERNETES_SERVICE_HOST").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{flags:?}");
        assert!(stderr(&output).contains(words), "{flags:?}: {}", stderr(&output));
    }
}
