//! A server of made-up figures, and a client that shows all of an answer.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use emuv_serve::{Admin, Refusal, RefusalKind, Resize, Settings, Token, serve};
use emuv_watch::Snapshot;
use tokio::sync::oneshot;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Notes what it is asked to do.
#[derive(Default)]
pub struct Noting {
    pub done: Mutex<Vec<String>>,
}

impl Admin for Noting {
    fn registry(&self) -> String {
        "/run/emuv/vgpu".to_owned()
    }

    fn resize(&self, slice: &str, resize: &Resize) -> Result<Vec<String>, Refusal> {
        let kind = match slice {
            "missing" => RefusalKind::NoSlice,
            "roots" => RefusalKind::NotAllowed,
            "full" => RefusalKind::Refused,
            "wrong" => RefusalKind::Wrong,
            "broken" => panic!("on purpose"),
            _ => {
                self.done.lock().unwrap().push(format!("resize {slice} {resize:?}"));
                return Ok(vec!["a note".to_owned()]);
            }
        };
        Err(Refusal { kind, words: format!("{slice}: on purpose") })
    }

    fn enable(&self, slice: &str, enabled: bool) -> Result<(), Refusal> {
        self.done.lock().unwrap().push(format!("enable {slice} {enabled}"));
        Ok(())
    }
}

pub struct Server {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// One that only shows.
    pub fn of(snapshot: Snapshot) -> Self {
        Self::start(snapshot, None)
    }

    /// One that changes slices too.
    pub fn with_changes(admin: &Arc<Noting>) -> Self {
        Self::start(Snapshot::default(), Some((Token::of(TOKEN).unwrap(), Arc::clone(admin) as Arc<dyn Admin>)))
    }

    fn start(snapshot: Snapshot, changes: Option<(Token, Arc<dyn Admin>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings { sample: Box::new(move || snapshot.clone()), changes, version: "1.2.3" };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let stop = async {
                let _ = stopped.await;
            };
            runtime.block_on(serve(listener, settings, stop)).unwrap();
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if headers.iter().all(|(name, _)| *name != "Host") {
            text.push_str(&format!("Host: {}\r\n", self.address));
        }
        headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{text}\r\n{body}").as_bytes()).unwrap();
        Answer::read(stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    fn read(stream: TcpStream) -> Self {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
        }
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers: Vec<_> = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        let mut answer = Self { status, headers, body: String::new() };
        let length: usize = answer.header("content-length").expect("answers say how long they are").parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        answer.body = String::from_utf8(body).unwrap();
        answer
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}
