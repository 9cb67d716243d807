//! The API server, asked as a pod asks it: HTTPS, the certificate authority and the token of the pod's service account. The token is read
//! for each request, because it is replaced every hour.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use ureq::{
    Agent,
    http::{Method, Request, StatusCode, header},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::text;

/// Where a pod finds its service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer is not longer.
const MOST_BYTES: u64 = 64 << 20;

/// The API server of a cluster.
#[derive(Clone)]
pub struct Cluster {
    base: String,
    token: PathBuf,
    agent: Agent,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The one that this pod is in: by the variables that every pod has. `get` looks one up.
    ///
    /// # Errors
    /// One line: this is no pod, or it has no service account.
    pub fn of_pod(get: impl Fn(&str) -> Option<String>, account: &Path) -> Result<Self, String> {
        let of = |name: &str| get(name).filter(|value| !value.is_empty());
        let host = of("KUBERNETES_SERVICE_HOST").ok_or("KUBERNETES_SERVICE_HOST is not set: this is not a pod")?;
        let port = of("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        // An address of version 6 stands in brackets.
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Self::at(&format!("https://{host}:{port}"), account)
    }

    /// The one at this address.
    ///
    /// # Errors
    /// One line: the certificate authority of the service account cannot be read.
    pub fn at(url: &str, account: &Path) -> Result<Self, String> {
        if !url.starts_with("https://") {
            return Err(format!("'{url}' is not https://: the token would be readable on the way"));
        }
        let path = account.join("ca.crt");
        let said = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let pem = fs::read(&path).map_err(|error| said(&error))?;
        let items: Result<Vec<_>, _> = parse_pem(&pem).collect();
        let certificates = items.map_err(|error| said(&error))?.into_iter().filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<_> = certificates.collect();
        if certificates.is_empty() {
            return Err(said(&"there is no certificate in it"));
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&certificates))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .user_agent("emuv")
            .build()
            .into();
        Ok(Self { base: url.trim_end_matches('/').to_owned(), token: account.join("token"), agent })
    }

    /// An object, or a list; `None` where there is none.
    ///
    /// # Errors
    /// One line.
    pub fn get(&self, path: &str) -> Result<Option<Value>, String> {
        match self.ask(&Method::GET, path, None)? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            answer => succeeded(&Method::GET, path, answer).map(Some),
        }
    }

    /// Makes an object.
    ///
    /// # Errors
    /// One line.
    pub fn create(&self, path: &str, object: &Value) -> Result<(), String> {
        succeeded(&Method::POST, path, self.ask(&Method::POST, path, Some(object))?).map(drop)
    }

    /// Replaces an object. The server refuses it if the object has been changed since it was read.
    ///
    /// # Errors
    /// One line.
    pub fn replace(&self, path: &str, object: &Value) -> Result<(), String> {
        succeeded(&Method::PUT, path, self.ask(&Method::PUT, path, Some(object))?).map(drop)
    }

    /// Removes an object; that there is none is as well.
    ///
    /// # Errors
    /// One line.
    pub fn delete(&self, path: &str) -> Result<(), String> {
        match self.ask(&Method::DELETE, path, None)? {
            (StatusCode::NOT_FOUND, _) => Ok(()),
            answer => succeeded(&Method::DELETE, path, answer).map(drop),
        }
    }

    fn ask(&self, method: &Method, path: &str, object: Option<&Value>) -> Result<(StatusCode, Value), String> {
        let failed = |why: &dyn std::fmt::Display| format!("{method} {}{path}: {why}", self.base);
        let token = match fs::read_to_string(&self.token) {
            Ok(token) => Some(token),
            // A server that asks for none says so by its answer.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("{}: {error}", self.token.display())),
        };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        request = request.header(header::ACCEPT, "application/json");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let answer = match object {
            Some(object) => {
                let request = request.header(header::CONTENT_TYPE, "application/json").body(object.to_string());
                self.agent.run(request.map_err(|error| failed(&error))?)
            }
            None => self.agent.run(request.body(()).map_err(|error| failed(&error))?),
        };
        let mut answer = answer.map_err(|error| failed(&error))?;
        let body = answer.body_mut().with_config().limit(MOST_BYTES).read_to_vec().map_err(|error| failed(&error))?;
        // Proxies answer with anything.
        Ok((answer.status(), serde_json::from_slice(&body).unwrap_or_default()))
    }
}

fn succeeded(method: &Method, path: &str, (status, answer): (StatusCode, Value)) -> Result<Value, String> {
    if status.is_success() {
        return Ok(answer);
    }
    let hint = if status == StatusCode::FORBIDDEN { " (docs/kubernetes/dra.yaml has the role)" } else { "" };
    Err(format!("the API server answers {method} {path} with {status}: {}{hint}", text(&answer, &["message"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let root = tempfile::tempdir().unwrap();
        let of_pod = |host: &str| {
            Cluster::of_pod(|name| (name == "KUBERNETES_SERVICE_HOST").then(|| host.to_owned()), root.path())
        };
        assert!(of_pod("").unwrap_err().contains("this is not a pod"));
        assert!(of_pod("fd00::1").unwrap_err().contains("ca.crt"));
        fs::write(root.path().join("ca.crt"), "nothing\n").unwrap();
        assert!(of_pod("10.0.0.1").unwrap_err().contains("no certificate"));
        assert!(Cluster::at("http://x", root.path()).unwrap_err().contains("not https"));
    }
}
