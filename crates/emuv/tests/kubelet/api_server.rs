//! What the API server does with ResourceSlices, claims and nodes, over TLS with a certificate of its own: keeps objects, gives them versions,
//! refuses who has no token and who replaces what has changed. The rest of an API server is not here.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

const SLICES: &str = "/apis/resource.k8s.io/v1/resourceslices";
const TOKEN: &str = "the token of this test";

pub struct ApiServer {
    pub url: String,
    /// As a pod has it.
    pub account: PathBuf,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// By their paths.
    objects: Mutex<BTreeMap<String, Value>>,
    changed: Condvar,
    away: AtomicBool,
}

impl ApiServer {
    pub fn start(folder: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("ca.crt"), made.cert.pem()).unwrap();
        fs::write(folder.join("token"), format!("{TOKEN}\n")).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let (config, state) = (Arc::new(config), Arc::new(State::default()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let served = Arc::clone(&state);
        // It ends with the test's process.
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (config, state) = (Arc::clone(&config), Arc::clone(&served));
                thread::spawn(move || serve(connection.ok()?, config, &state));
            }
        });
        let server = Self { url, account: folder.to_owned(), state };
        server.put("/api/v1/nodes/node-1", json!({ "metadata": { "name": "node-1", "uid": "uid-of-node-1" } }));
        server
    }

    /// From now on it answers nothing but errors, or answers again.
    pub fn be_away(&self, away: bool) {
        self.state.away.store(away, Ordering::SeqCst);
    }

    pub fn put(&self, path: &str, object: Value) {
        self.state.objects.lock().unwrap().insert(path.to_owned(), object);
        self.state.changed.notify_all();
    }

    /// A claim that was given these: request, driver, pool, device.
    pub fn claim(&self, name: &str, uid: &str, results: &[[&str; 4]]) {
        let results: Vec<_> = results
            .iter()
            .map(|[request, driver, pool, device]| {
                json!({ "request": request, "driver": driver, "pool": pool, "device": device })
            })
            .collect();
        self.put(
            &format!("/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/{name}"),
            json!({
                "metadata": { "name": name, "namespace": "default", "uid": uid },
                "status": { "allocation": { "devices": { "results": results } } },
            }),
        );
    }

    /// Removes all ResourceSlices, as a kubelet that starts does.
    pub fn forget_slices(&self) {
        self.state.objects.lock().unwrap().retain(|path, _| !path.starts_with(SLICES));
    }

    /// Waits until what is published is so, and gives it.
    pub fn until(&self, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let slices = |objects: &BTreeMap<String, Value>| {
            let of = objects.iter().filter(|(path, _)| path.starts_with(SLICES));
            of.map(|(_, slice)| slice.clone()).collect::<Vec<_>>()
        };
        let patience = std::time::Duration::from_secs(120);
        let objects = self.state.objects.lock().unwrap();
        let wait = self.state.changed.wait_timeout_while(objects, patience, |objects| !is_so(&slices(objects)));
        let (objects, timed_out) = wait.unwrap();
        assert!(!timed_out.timed_out(), "never so: {:#?}", slices(&objects));
        slices(&objects)
    }
}

/// The names of all published devices.
pub fn devices(slices: &[Value]) -> Vec<String> {
    let all = slices.iter().flat_map(|slice| slice["spec"]["devices"].as_array().unwrap());
    all.map(|device| device["name"].as_str().unwrap().to_owned()).collect()
}

/// Answers the requests of a connection.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &State) -> Option<()> {
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config).ok()?, stream));
    loop {
        let mut first = String::new();
        stream.read_line(&mut first).ok().filter(|length| *length > 0)?;
        let (mut length, mut authorized) = (0, false);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "authorization" => authorized = value == format!("Bearer {TOKEN}"),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let (status, answer) = match () {
            () if state.away.load(Ordering::SeqCst) => ("503 Away", json!({ "message": "not now" })),
            () if !authorized => ("401 Unauthorized", json!({ "message": "who are you" })),
            () => answer(state, method, path, serde_json::from_slice(&body).unwrap_or_default()),
        };
        let answer = answer.to_string();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.get_mut().write_all(format!("{head}{answer}").as_bytes()).ok()?;
        stream.get_mut().flush().ok()?;
    }
}

fn answer(state: &State, method: &str, path: &str, mut object: Value) -> (&'static str, Value) {
    let mut objects = state.objects.lock().unwrap();
    let version =
        objects.values().filter_map(|object| object["metadata"]["resourceVersion"].as_str()?.parse::<u64>().ok());
    let next = json!((version.max().unwrap_or(0) + 1).to_string());
    let answer = match (method, path.split_once('?')) {
        ("GET", Some((SLICES, selector))) => {
            assert_eq!(selector, "fieldSelector=spec.nodeName%3Dnode-1%2Cspec.driver%3Demuv.dev");
            let items: Vec<_> =
                objects.iter().filter(|(path, _)| path.starts_with(SLICES)).map(|(_, slice)| slice.clone()).collect();
            ("200 OK", json!({ "kind": "ResourceSliceList", "items": items }))
        }
        ("GET", None) if objects.contains_key(path) => ("200 OK", objects[path].clone()),
        ("POST", None) if path == SLICES => {
            let place = format!("{SLICES}/{}", object["metadata"]["name"].as_str().unwrap());
            assert!(!objects.contains_key(&place));
            object["metadata"]["resourceVersion"] = next;
            objects.insert(place, object.clone());
            ("201 Created", object)
        }
        ("PUT", None) if objects.contains_key(path) => {
            if objects[path]["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                return ("409 Conflict", json!({ "message": "it has been changed" }));
            }
            object["metadata"]["resourceVersion"] = next;
            objects.insert(path.to_owned(), object.clone());
            ("200 OK", object)
        }
        ("DELETE", None) if objects.remove(path).is_some() => ("200 OK", json!({ "status": "Success" })),
        _ => ("404 Not Found", json!({ "message": "there is none" })),
    };
    state.changed.notify_all();
    answer
}
