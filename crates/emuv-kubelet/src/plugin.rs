//! One resource: its socket, and what the kubelet is answered there.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::{Request, Response, Status, transport};

use crate::{
    Device, Offer,
    socket::{Identity, Served},
    spread,
    v1beta1::{self as api, device_plugin_server as server, registration_client::RegistrationClient},
};

/// How long a kubelet may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who follows a list.
#[derive(Debug, Default)]
struct Followers {
    now: AtomicUsize,
    ever: AtomicBool,
}

/// A resource that is served.
#[derive(Debug)]
pub struct Plugin {
    resource: String,
    socket: Served,
    devices: watch::Sender<Vec<Device>>,
    followers: Arc<Followers>,
    /// The kubelet that knows of it.
    registered: Option<Identity>,
}

impl Plugin {
    /// Serves a resource from now on.
    ///
    /// # Errors
    /// The system's own: the socket cannot be made.
    pub fn start(resource: &str, folder: &Path, devices: Vec<Device>, offer: Arc<dyn Offer>) -> io::Result<Self> {
        let socket = folder.join(format!("{}.sock", resource.replace('/', "-")));
        let (devices, list) = watch::channel(devices);
        let followers = Arc::new(Followers::default());
        let service = Service { offer, list, followers: Arc::clone(&followers) };
        let service = server::DevicePluginServer::new(service);
        let socket = Served::start(socket, transport::Server::builder().add_service(service))?;
        Ok(Self { resource: resource.to_owned(), socket, devices, followers, registered: None })
    }

    /// Whether its socket is still the one in the folder.
    pub fn is_there(&self) -> bool {
        self.socket.is_there()
    }

    /// Sets the list. Those who follow it are told if it is another one.
    pub fn set(&self, devices: Vec<Device>) {
        self.devices.send_if_modified(|there| {
            let differs = *there != devices;
            *there = devices;
            differs
        });
    }

    /// Whether this kubelet has to be told of it.
    pub fn is_unknown_to(&self, kubelet: Identity) -> bool {
        let left = self.followers.ever.load(Ordering::Acquire) && self.followers.now.load(Ordering::Acquire) == 0;
        left || self.registered != Some(kubelet)
    }

    /// Tells the kubelet at this socket of it.
    ///
    /// # Errors
    /// One line.
    pub async fn register(&mut self, kubelet: Identity, socket: &Path) -> Result<(), String> {
        self.registered = None;
        self.followers.ever.store(false, Ordering::Release);
        let words = |why: &dyn std::fmt::Display| format!("{}: {why}", socket.display());
        let request = api::RegisterRequest {
            version: api::VERSION.to_owned(),
            endpoint: self.socket.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            resource_name: self.resource.clone(),
            options: Some(OPTIONS),
        };
        let uri = format!("unix://{}", socket.display());
        let told = timeout(PATIENCE, async {
            let endpoint = transport::Endpoint::from_shared(uri).map_err(|error| words(&error))?;
            let channel = endpoint.connect().await.map_err(|_| words(&"nobody answers there"))?;
            let answer = RegistrationClient::new(channel).register(request).await;
            answer.map(drop).map_err(|status| words(&format!("the kubelet refuses: {}", status.message())))
        });
        told.await.unwrap_or_else(|_| Err(words(&format!("no answer within {} s", PATIENCE.as_secs()))))?;
        self.registered = Some(kubelet);
        Ok(())
    }

    /// How many devices it has, and how many of them may be given.
    pub fn count(&self) -> (usize, usize) {
        let devices = self.devices.borrow();
        (devices.len(), devices.iter().filter(|device| device.healthy).count())
    }
}

const OPTIONS: api::DevicePluginOptions =
    api::DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true };

struct Service {
    offer: Arc<dyn Offer>,
    list: watch::Receiver<Vec<Device>>,
    followers: Arc<Followers>,
}

/// The list, now and at each change; counted while somebody takes it.
pub struct Followed {
    list: WatchStream<Vec<Device>>,
    followers: Arc<Followers>,
}

impl Stream for Followed {
    type Item = Result<api::ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.list).poll_next(cx);
        next.map(|list| {
            list.map(|devices| Ok(api::ListAndWatchResponse { devices: devices.iter().map(told).collect() }))
        })
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.followers.now.fetch_sub(1, Ordering::AcqRel);
    }
}

fn told(device: &Device) -> api::Device {
    let node = |node: u32| api::TopologyInfo { nodes: vec![api::NumaNode { id: node.into() }] };
    api::Device {
        id: device.id.clone(),
        health: if device.healthy { api::HEALTHY } else { api::UNHEALTHY }.to_owned(),
        topology: device.numa_node.map(node),
    }
}

#[tonic::async_trait]
impl server::DevicePlugin for Service {
    type ListAndWatchStream = Followed;

    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    async fn list_and_watch(&self, _: Request<api::Empty>) -> Result<Response<Followed>, Status> {
        self.followers.now.fetch_add(1, Ordering::AcqRel);
        self.followers.ever.store(true, Ordering::Release);
        let list = WatchStream::new(self.list.clone());
        Ok(Response::new(Followed { list, followers: Arc::clone(&self.followers) }))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        let devices = self.list.borrow().clone();
        let choose = |container: api::ContainerPreferredAllocationRequest| {
            let count = usize::try_from(container.allocation_size).unwrap_or(0);
            let (available, must) = (&container.available_device_i_ds, &container.must_include_device_i_ds);
            api::ContainerPreferredAllocationResponse { device_i_ds: spread(&devices, available, must, count) }
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(choose).collect();
        Ok(Response::new(api::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let give = |container: api::ContainerAllocateRequest| {
            let names = self.offer.allocate(&container.devices_ids).map_err(Status::failed_precondition)?;
            let cdi_devices = names.into_iter().map(|name| api::CdiDevice { name }).collect();
            Ok(api::ContainerAllocateResponse { cdi_devices, ..Default::default() })
        };
        let given: Result<Vec<_>, Status> = request.into_inner().container_requests.into_iter().map(give).collect();
        Ok(Response::new(api::AllocateResponse { container_responses: given? }))
    }

    async fn pre_start_container(
        &self,
        _: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}
