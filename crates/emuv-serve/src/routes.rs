//! What is answered at which address.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use emuv_watch::{Gpu, OtherProcess, Process, SCHEMA, Slice, Snapshot};
use serde::Serialize;
use serde_json::json;

use crate::{
    access::{self, Asking, Attempts, Denied, Token},
    admin::{Admin, Changed, Refusal, RefusalKind, Resize},
    metrics::{self, Format},
    page,
    watcher::{NoShot, Shot, Watcher},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OPENAPI: &str = include_str!("openapi.json");
const MOST_BODY_BYTES: usize = 4096;

/// What handlers share.
pub(crate) struct Shared {
    pub watcher: Watcher,
    pub changes: Option<Changes>,
    pub version: &'static str,
    /// The address is a loopback one.
    pub local: bool,
}

/// Who carries changes out, and who may ask for them.
pub(crate) struct Changes {
    pub token: Token,
    pub admin: Arc<dyn Admin>,
    pub attempts: Mutex<Attempts>,
}

type App = Arc<Shared>;

/// All addresses, with their methods.
fn routes() -> Vec<(&'static str, &'static str, MethodRouter<App>)> {
    vec![
        ("get", "/", get(dashboard)),
        ("get", "/metrics", get(prometheus)),
        ("get", "/-/healthy", get(healthy)),
        ("get", "/-/ready", get(ready)),
        ("get", "/api/v1/openapi.json", get(openapi)),
        ("get", "/api/v1/snapshot", get(snapshot)),
        ("get", "/api/v1/gpus", get(gpus)),
        ("get", "/api/v1/slices", get(slices)),
        ("get", "/api/v1/processes", get(processes)),
        ("get", "/api/v1/admin", get(admin)),
        ("post", "/api/v1/slices/{name}/resize", post(resize)),
        ("post", "/api/v1/slices/{name}/enable", post(enable)),
        ("post", "/api/v1/slices/{name}/disable", post(disable)),
    ]
}

/// All addresses, with their methods: what the OpenAPI document has to describe.
pub fn addresses() -> Vec<(&'static str, &'static str)> {
    routes().into_iter().map(|(method, path, _)| (method, path)).collect()
}

pub(crate) fn router(shared: App) -> Router {
    let mut router = Router::new();
    for (_, path, handler) in routes() {
        router = router.route(path, handler);
    }
    router
        .fallback(|| async {
            error(StatusCode::NOT_FOUND, "there is nothing here; /api/v1/openapi.json says what there is")
        })
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), around))
        .with_state(shared)
}

/// Around every answer: who may look, and what a browser may do with it.
async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let mut response = if app.local && !access::is_local_name(host) {
        let words = "this address is this machine's own; ask for it as localhost or 127.0.0.1";
        error(StatusCode::MISDIRECTED_REQUEST, words)
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Bytes {
    // Only a map with keys that are no texts could fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn answer(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, JSON)], body.into()).into_response()
}

fn error(status: StatusCode, words: &str) -> Response {
    answer(status, json(&json!({ "error": words })))
}

impl IntoResponse for NoShot {
    fn into_response(self) -> Response {
        error(StatusCode::SERVICE_UNAVAILABLE, &self.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        error(self.kind.status(), &self.words)
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let unauthorized = |words| {
            let mut response = error(StatusCode::UNAUTHORIZED, words);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        };
        match self {
            Self::NoChanges => {
                let words = "this server changes nothing; emuv serve --admin --token-file FILE starts one that does";
                error(StatusCode::NOT_FOUND, words)
            }
            Self::ForeignPage => error(StatusCode::FORBIDDEN, "changes are for this server's own page only"),
            Self::NoToken => unauthorized("a token is needed: Authorization: Bearer TOKEN"),
            Self::WrongToken => unauthorized("this is not the token"),
            Self::TooMany(wait) => {
                let seconds = wait.as_secs() + 1;
                let words = format!("too many wrong tokens; try again in {seconds} s");
                let mut response = error(StatusCode::TOO_MANY_REQUESTS, &words);
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                response
            }
        }
    }
}

async fn dashboard(State(app): State<App>) -> Response {
    let (text, policy) = page::page(&page::nonce(), app.changes.is_some(), app.version);
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    ([(header::CONTENT_TYPE, html), (header::CONTENT_SECURITY_POLICY, policy)], text).into_response()
}

async fn prometheus(State(app): State<App>, headers: HeaderMap) -> Result<Response, NoShot> {
    let accept: Vec<_> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::wanted(&accept.join(","));
    let shot = app.watcher.shot().await?;
    let text = metrics::text(&shot.snapshot, shot.took, app.version, format);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(format.content_type())),
        (header::VARY, HeaderValue::from_static("accept")),
    ];
    Ok((headers, text).into_response())
}

async fn healthy() -> &'static str {
    "emuv serve is up\n"
}

async fn ready(State(app): State<App>) -> Result<&'static str, NoShot> {
    app.watcher.shot().await.map(|_| "emuv serve sees GPUs and programs\n")
}

async fn openapi() -> Response {
    answer(StatusCode::OK, OPENAPI)
}

async fn snapshot(State(app): State<App>) -> Result<Response, NoShot> {
    Ok(answer(StatusCode::OK, app.watcher.shot().await?.json()))
}

/// The head of a part of the snapshot.
#[derive(Serialize)]
struct Part<'s, T> {
    schema: u32,
    time_unix_millis: u64,
    #[serde(flatten)]
    part: &'s T,
}

fn part<T: Serialize>(shot: &Shot, part: &T) -> Response {
    let time_unix_millis = shot.snapshot.time_unix_millis;
    answer(StatusCode::OK, json(&Part { schema: SCHEMA, time_unix_millis, part }))
}

#[derive(Serialize)]
struct Gpus<'s> {
    gpus: &'s [Gpu],
    no_driver_because: Option<&'s str>,
}

async fn gpus(State(app): State<App>) -> Result<Response, NoShot> {
    let shot = app.watcher.shot().await?;
    let Snapshot { gpus, no_driver_because, .. } = &shot.snapshot;
    Ok(part(&shot, &Gpus { gpus, no_driver_because: no_driver_because.as_deref() }))
}

#[derive(Serialize)]
struct Slices<'s> {
    slices: &'s [Slice],
}

async fn slices(State(app): State<App>) -> Result<Response, NoShot> {
    let shot = app.watcher.shot().await?;
    Ok(part(&shot, &Slices { slices: &shot.snapshot.slices }))
}

#[derive(Serialize)]
struct Processes<'s> {
    processes: &'s [Process],
    others: &'s [OtherProcess],
}

async fn processes(State(app): State<App>) -> Result<Response, NoShot> {
    let shot = app.watcher.shot().await?;
    let Snapshot { processes, others, .. } = &shot.snapshot;
    Ok(part(&shot, &Processes { processes, others }))
}

/// Who carries changes out, for whoever may ask for some.
fn permitted(app: &Shared, headers: &HeaderMap, peer: SocketAddr) -> Result<Arc<dyn Admin>, Denied> {
    let changes = app.changes.as_ref().ok_or(Denied::NoChanges)?;
    // What is not readable text is there all the same: it must not count as missing.
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let asking = Asking {
        host: text(header::HOST),
        origin: text(header::ORIGIN),
        fetch_site: text(HeaderName::from_static("sec-fetch-site")),
        authorization: headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes),
    };
    let mut attempts = changes.attempts.lock().unwrap_or_else(PoisonError::into_inner);
    access::judge(&changes.token, &mut attempts, &asking, peer.ip(), Instant::now())?;
    Ok(Arc::clone(&changes.admin))
}

async fn admin(State(app): State<App>, ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: HeaderMap) -> Response {
    match permitted(&app, &headers, peer) {
        Ok(admin) => answer(StatusCode::OK, json(&json!({ "registry": admin.registry() }))),
        Err(denied) => denied.into_response(),
    }
}

async fn resize(
    State(app): State<App>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let is_json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case("application/json")
    });
    let admin = match permitted(&app, &headers, peer) {
        Ok(admin) => admin,
        Err(denied) => return denied.into_response(),
    };
    if !is_json {
        return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "say what is to change as Content-Type: application/json");
    }
    let resize: Resize = match serde_json::from_slice(&body) {
        Ok(resize) => resize,
        Err(why) => return error(StatusCode::BAD_REQUEST, &format!("the body says no change: {why}")),
    };
    change(name, move |name| admin.resize(name, &resize)).await
}

async fn enable(
    State(app): State<App>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    switch(&app, &headers, peer, name, true).await
}

async fn disable(
    State(app): State<App>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    switch(&app, &headers, peer, name, false).await
}

async fn switch(app: &Shared, headers: &HeaderMap, peer: SocketAddr, name: String, enabled: bool) -> Response {
    match permitted(app, headers, peer) {
        Ok(admin) => change(name, move |name| admin.enable(name, enabled).map(|()| Vec::new())).await,
        Err(denied) => denied.into_response(),
    }
}

/// Carries a change out where it holds nobody up: another one may be under way.
async fn change(name: String, change: impl FnOnce(&str) -> Result<Vec<String>, Refusal> + Send + 'static) -> Response {
    let done = tokio::task::spawn_blocking(move || (change(&name), name)).await;
    match done {
        Ok((Ok(notes), name)) => answer(StatusCode::OK, json(&Changed { slice: &name, notes })),
        Ok((Err(refusal), _)) => refusal.into_response(),
        Err(_) => {
            let words = "a mistake in emuv ended this change; 'emuv vgpu show' says how the slice is now".to_owned();
            let mut response = Refusal { kind: RefusalKind::Refused, words }.into_response();
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}
