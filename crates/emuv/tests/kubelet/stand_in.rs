//! What the kubelet does with device plugins: takes registrations, asks each plugin for its list and follows it, and has it
//! allocate. The rest of a kubelet is not here.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use emuv_kubelet::{
    KUBELET_SOCKET,
    v1beta1::{self as api, device_plugin_client::DevicePluginClient, registration_server as server},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

pub struct Kubelet {
    folder: PathBuf,
    requests: mpsc::UnboundedReceiver<api::RegisterRequest>,
    to_refuse: Arc<AtomicUsize>,
    _serving: oneshot::Sender<()>,
}

struct Registration(mpsc::UnboundedSender<api::RegisterRequest>, Arc<AtomicUsize>);

#[tonic::async_trait]
impl server::Registration for Registration {
    async fn register(&self, request: Request<api::RegisterRequest>) -> Result<Response<api::Empty>, Status> {
        let refuse = |left: usize| left.checked_sub(1);
        if self.1.fetch_update(Ordering::AcqRel, Ordering::Acquire, refuse).is_ok() {
            return Err(Status::unavailable("not now"));
        }
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(api::Empty {}))
    }
}

impl Kubelet {
    /// As a kubelet starts: with a folder that has nothing of before in it.
    pub fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        fs::read_dir(folder).unwrap().flatten().for_each(|file| fs::remove_file(file.path()).unwrap());
        let listener = UnixListener::bind(folder.join(KUBELET_SOCKET)).unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let to_refuse = Arc::new(AtomicUsize::new(0));
        let service = server::RegistrationServer::new(Registration(sender, Arc::clone(&to_refuse)));
        let (serving, stopped) = oneshot::channel::<()>();
        let serve = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async { drop(stopped.await) });
        tokio::spawn(async { drop(serve.await) });
        Self { folder: folder.to_owned(), requests, to_refuse, _serving: serving }
    }

    /// Refuses the next registrations.
    pub fn refuse(&self, count: usize) {
        self.to_refuse.store(count, Ordering::Release);
    }

    /// The next registration.
    pub async fn next(&mut self) -> api::RegisterRequest {
        self.requests.recv().await.unwrap()
    }

    /// Connects to a plugin that has registered, and follows its list.
    pub async fn dial(&self, request: &api::RegisterRequest) -> Registered {
        let uri = format!("unix://{}", self.folder.join(&request.endpoint).display());
        let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
        let mut client = DevicePluginClient::new(channel);
        let list = client.list_and_watch(api::Empty {}).await.unwrap().into_inner();
        Registered { client, list }
    }

    /// Both.
    pub async fn register(&mut self) -> Registered {
        let request = self.next().await;
        self.dial(&request).await
    }
}

/// A plugin that the kubelet knows.
pub struct Registered {
    pub client: DevicePluginClient<Channel>,
    list: Streaming<api::ListAndWatchResponse>,
}

impl Registered {
    pub async fn next_list(&mut self) -> Option<Vec<api::Device>> {
        self.list.message().await.unwrap().map(|list| list.devices)
    }

    /// Allocates for the containers of a pod: the CDI names for each of them, or why not.
    pub async fn allocate(&mut self, containers: &[&[&str]]) -> Result<Vec<Vec<String>>, String> {
        let request = |ids: &&[&str]| api::ContainerAllocateRequest {
            devices_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let request = api::AllocateRequest { container_requests: containers.iter().map(request).collect() };
        let response = self.client.allocate(request).await.map_err(|status| status.message().to_owned())?;
        let names = |response: api::ContainerAllocateResponse| {
            response.cdi_devices.into_iter().map(|device| device.name).collect()
        };
        Ok(response.into_inner().container_responses.into_iter().map(names).collect())
    }

    /// Which of the free devices the plugin would give the next container.
    pub async fn preferred(&mut self, free: &BTreeSet<String>) -> String {
        let container = api::ContainerPreferredAllocationRequest {
            available_device_i_ds: free.iter().cloned().collect(),
            must_include_device_i_ds: Vec::new(),
            allocation_size: 1,
        };
        let request = api::PreferredAllocationRequest { container_requests: vec![container] };
        let response = self.client.get_preferred_allocation(request).await.unwrap().into_inner();
        response.container_responses[0].device_i_ds[0].clone()
    }
}
