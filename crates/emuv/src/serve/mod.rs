//! `emuv serve`: what goes on under emuV on this machine, over HTTP.

mod admin;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::Args;
use emuv_serve::{Admin, Settings, Token};
use emuv_watch::Moment;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{self, Failure, complain},
    vgpu::{self, REFUSED},
    watch,
};

/// Flags of `emuv serve`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// Address and port to answer at; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9464", value_parser = address)]
    listen: SocketAddr,
    /// Let slices be changed by whoever has the token: the dashboard can resize, enable and disable them
    #[arg(long, requires = "token_file")]
    admin: bool,
    /// The file with the token, in one line, readable by you only; 'openssl rand -hex 32' makes one
    #[arg(long, value_name = "FILE", requires = "admin")]
    token_file: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Answers at
  /                  the dashboard
  /metrics           for Prometheus; docs/examples/grafana-dashboard.json is a dashboard for Grafana
  /api/v1/snapshot   everything as JSON; /api/v1/openapi.json describes it
  /-/healthy, /-/ready
It shows what its user may see: every user's programs and slices if that is root, else its own. docs/serve.md says more.
Exit code: 0 after SIGTERM or SIGINT; 1 it cannot answer here; 2 bad argument or file.";

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and a port, such as 127.0.0.1:9464 or [::1]:9464".to_owned())
}

/// Does it, until a signal says to end.
///
/// # Errors
/// It cannot answer here.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let token = options.token_file.as_deref().map(Token::read).transpose();
    let token = token.map_err(|why| Failure::wrong("--token-file", why))?;
    let changes = match token {
        Some(token) => Some((token, Arc::new(admin::Slices::new(vgpu::own_registry()?)) as Arc<dyn Admin>)),
        None => None,
    };
    let listener = listen(options.listen)?;
    let cannot = |error: io::Error| Failure::new(REFUSED, format!("cannot answer: {error}"));
    let address = listener.local_addr().map_err(cannot)?;
    if !address.ip().is_loopback() {
        let token = if changes.is_some() { ", and so does the token" } else { "" };
        complain(&format!(
            "--listen {address}: whoever reaches this address sees what programs run here; it crosses the network in the \
             clear{token}. Put a proxy with TLS before it, or listen at 127.0.0.1"
        ));
    }
    let mut sampler = watch::sampler();
    let settings = Settings {
        sample: Box::new(move || sampler.sample(Moment::now())),
        changes,
        version: env!("CARGO_PKG_VERSION"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    runtime.block_on(async {
        let (mut term, mut int) =
            (signal(SignalKind::terminate()).map_err(cannot)?, signal(SignalKind::interrupt()).map_err(cannot)?);
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        cli::print(&format!("emuv serve answers at http://{address}/\n")).map_err(cannot)?;
        emuv_serve::serve(listener, settings, stop).await.map_err(cannot)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the address.
fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| {
        let words = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program answers there; give another port, or 0 for any that is free".into()
            }
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
            io::ErrorKind::PermissionDenied => "this user may not; ports below 1024 are root's".into(),
            _ => error.to_string(),
        };
        Failure::new(REFUSED, format!("--listen {address}: {words}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_port() {
        assert!(address("[::1]:9464").is_ok() && address("0.0.0.0:0").is_ok());
        for wrong in ["9464", "localhost", "127.0.0.1", "127.0.0.1:99999", ""] {
            assert!(address(wrong).unwrap_err().contains("127.0.0.1:9464"), "{wrong}");
        }
    }
}
