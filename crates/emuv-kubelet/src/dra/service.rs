//! What the kubelet asks: who we are, and to have claims' devices ready.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use serde_json::Value;
use tokio::task;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::Router},
};

use super::{Given, Pool, Prepared, Shared, field, text};
use crate::{
    dra_v1::{self as api, dra_plugin_server as dra},
    pluginregistration::{self as hello, registration_server as registration},
    socket::Served,
};

/// The kind of plugin, and the service that it has, in the kubelet's words.
const KIND: &str = "DRAPlugin";
const SERVICE: &str = "v1.DRAPlugin";

/// Both sockets, served.
#[derive(Debug)]
pub(super) struct Sockets([Served; 2]);

impl Sockets {
    /// Makes them; first the one that the other one names.
    ///
    /// # Errors
    /// One line.
    pub fn start<P: Pool>(shared: &Arc<Shared<P>>) -> Result<Self, String> {
        let driver = &shared.driver;
        let folder = driver.kubelet_dir.join("plugins").join(&driver.name);
        let (endpoint, found) = (folder.join("dra.sock"), driver.kubelet_dir.join("plugins_registry"));
        let found = found.join(format!("{}-reg.sock", driver.name));
        let service = Service { shared: Arc::clone(shared), one_at_a_time: Arc::default() };
        let who = Who { shared: Arc::clone(shared), endpoint: endpoint.to_string_lossy().into_owned() };
        let first = serve(&endpoint, Server::builder().add_service(dra::DraPluginServer::new(service)))?;
        let who = Server::builder().add_service(registration::RegistrationServer::new(who));
        Ok(Self([first, serve(&found, who)?]))
    }

    /// Whether they are still the files that were made.
    pub fn are_there(&self) -> bool {
        self.0.iter().all(Served::is_there)
    }
}

/// Serves on a socket, in a folder that is made if need be.
fn serve(path: &Path, router: Router) -> Result<Served, String> {
    let words = |error: &dyn std::fmt::Display| format!("cannot make {}: {error}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(|error| words(&error))?;
    Served::start(path.to_owned(), router).map_err(|error| words(&error))
}

/// Who we are.
struct Who<P> {
    shared: Arc<Shared<P>>,
    endpoint: String,
}

#[tonic::async_trait]
impl<P: Pool> registration::Registration for Who<P> {
    async fn get_info(&self, _: Request<hello::InfoRequest>) -> Result<Response<hello::PluginInfo>, Status> {
        self.shared.asked.store(true, Ordering::Release);
        Ok(Response::new(hello::PluginInfo {
            r#type: KIND.to_owned(),
            name: self.shared.driver.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![SERVICE.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<hello::RegistrationStatus>,
    ) -> Result<Response<hello::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if let Ok(mut refused) = self.shared.refused.lock() {
            *refused = (!status.plugin_registered).then_some(status.error);
        }
        Ok(Response::new(hello::RegistrationStatusResponse {}))
    }
}

struct Service<P> {
    shared: Arc<Shared<P>>,
    /// Two claims must not both find a device free.
    one_at_a_time: Arc<Mutex<()>>,
}

impl<P: Pool> Service<P> {
    /// Does it for each claim, off the thread that answers.
    async fn each<T: Send + 'static>(
        &self,
        claims: Vec<api::Claim>,
        act: impl Fn(&Shared<P>, &api::Claim) -> T + Send + 'static,
    ) -> Result<HashMap<String, T>, Status> {
        let (shared, lock) = (Arc::clone(&self.shared), Arc::clone(&self.one_at_a_time));
        let all = task::spawn_blocking(move || {
            let _one = lock.lock().unwrap_or_else(PoisonError::into_inner);
            claims.into_iter().map(|claim| (claim.uid.clone(), act(&shared, &claim))).collect()
        });
        all.await.map_err(|_| Status::internal("it has failed"))
    }
}

#[tonic::async_trait]
impl<P: Pool> dra::DraPlugin for Service<P> {
    async fn node_prepare_resources(
        &self,
        request: Request<api::NodePrepareResourcesRequest>,
    ) -> Result<Response<api::NodePrepareResourcesResponse>, Status> {
        let answer = |shared: &Shared<P>, claim: &api::Claim| match prepare(shared, claim) {
            Ok(devices) => api::NodePrepareResourceResponse {
                devices: devices.into_iter().map(told).collect(),
                ..Default::default()
            },
            Err(error) => api::NodePrepareResourceResponse { error, ..Default::default() },
        };
        let claims = self.each(request.into_inner().claims, answer).await?;
        Ok(Response::new(api::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<api::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<api::NodeUnprepareResourcesResponse>, Status> {
        let answer = |shared: &Shared<P>, claim: &api::Claim| api::NodeUnprepareResourceResponse {
            error: shared.claims.forget(&claim.uid).err().unwrap_or_default(),
        };
        let claims = self.each(request.into_inner().claims, answer).await?;
        Ok(Response::new(api::NodeUnprepareResourcesResponse { claims }))
    }
}

fn told(given: Given) -> api::Device {
    api::Device {
        request_names: vec![given.request],
        pool_name: given.pool,
        device_name: given.device,
        cdi_device_ids: given.cdi,
    }
}

/// The devices of a claim, remembered.
fn prepare<P: Pool>(shared: &Shared<P>, claim: &api::Claim) -> Result<Vec<Given>, String> {
    if let Some(prepared) = shared.claims.get(&claim.uid)? {
        return Ok(prepared.devices);
    }
    let path = format!("/apis/resource.k8s.io/v1/namespaces/{}/resourceclaims/{}", claim.namespace, claim.name);
    let name = format!("{}/{}", claim.namespace, claim.name);
    let object = shared.cluster.get(&path)?.ok_or_else(|| format!("there is no claim {name}"))?;
    if text(&object, &["metadata", "uid"]) != claim.uid {
        return Err(format!("the claim {name} is another one by now"));
    }
    let devices = given(shared, claim, &object)?;
    shared.claims.put(&claim.uid, &Prepared::new(&claim.namespace, &claim.name, devices.clone()))?;
    Ok(devices)
}

/// What the scheduler has given a claim of this driver's, on this node.
fn given<P: Pool>(shared: &Shared<P>, claim: &api::Claim, object: &Value) -> Result<Vec<Given>, String> {
    let results = field(object, &["status", "allocation", "devices", "results"]).as_array();
    let results = results.ok_or("the claim has not been allocated")?;
    let (driver, node) = (&shared.driver.name, &shared.driver.node);
    let ours = results.iter().filter(|result| text(result, &["driver"]) == driver && text(result, &["pool"]) == node);
    let mut devices: Vec<Given> = Vec::new();
    for result in ours {
        let (request, device) = (text(result, &["request"]).to_owned(), text(result, &["device"]).to_owned());
        let admin = result["adminAccess"].as_bool().unwrap_or(false);
        if devices.iter().any(|other| other.request == request) {
            return Err(format!("the request '{request}' was given several devices; a container can have one"));
        }
        if let Some(holder) = shared.claims.holder(&device, &claim.uid).filter(|_| !admin) {
            return Err(format!("'{device}' is still prepared for the claim {}/{}", holder.namespace, holder.name));
        }
        let cdi = shared.pool.give(&device)?;
        devices.push(Given { request, pool: node.clone(), device, cdi, admin });
    }
    if devices.is_empty() {
        return Err(format!("the claim was given no device of {driver} on {node}"));
    }
    Ok(devices)
}
