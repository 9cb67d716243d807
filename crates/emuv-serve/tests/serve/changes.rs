//! Who changes something.

use std::sync::Arc;

use crate::{
    schema::validate,
    server::{Answer, Noting, Server, TOKEN},
};

struct Place {
    server: Server,
    admin: Arc<Noting>,
}

impl Place {
    fn new() -> Self {
        let admin = Arc::new(Noting::default());
        Self { server: Server::with_changes(&admin), admin }
    }

    /// Asks with the right token.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        let headers = [&[("Authorization", bearer.as_str())], headers].concat();
        self.server.ask(method, path, &headers, body)
    }

    fn resize(&self, slice: &str, body: &str) -> Answer {
        self.ask("POST", &format!("/api/v1/slices/{slice}/resize"), &[("Content-Type", "application/json")], body)
    }

    fn done(&self) -> Vec<String> {
        self.admin.done.lock().unwrap().clone()
    }
}

fn error(answer: &Answer) -> String {
    answer.json()["error"].as_str().unwrap().to_owned()
}

#[test]
fn with_the_token_slices_are_changed() {
    let place = Place::new();
    assert_eq!(place.ask("GET", "/api/v1/admin", &[], "").json()["registry"], "/run/emuv/vgpu");
    let answer = place.resize("ml-1", r#"{"vram": "6G", "ram": 1073741824, "weight": 50, "overcommit": true}"#);
    assert_eq!((answer.status, &answer.json()["notes"][0]), (200, &"a note".into()));
    assert_eq!(place.ask("POST", "/api/v1/slices/ml-1/disable", &[], "").status, 200);
    assert_eq!(place.ask("POST", "/api/v1/slices/ml-1/enable", &[], "").json()["slice"], "ml-1");
    let done = place.done();
    assert!(
        done[0].starts_with("resize ml-1") && done[0].contains("\"6G\"") && done[0].contains("1073741824"),
        "{done:?}"
    );
    assert_eq!(done[1..], ["enable ml-1 false", "enable ml-1 true"]);
}

#[test]
fn without_it_nothing_is_changed() {
    let place = Place::new();
    let asks: [(&[(&str, &str)], u16); 4] = [
        (&[], 401),
        (&[("Authorization", "Bearer wrong-wrong-wrong")], 401),
        (&[("Authorization", "Basic MDEyMzQ1Njc4OWFiY2RlZg==")], 401),
        (&[("Cookie", "token=0123456789abcdef0123456789abcdef")], 401),
    ];
    for (headers, status) in asks {
        let answer = place.server.ask("POST", "/api/v1/slices/ml-1/disable", headers, "");
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert!(!answer.body.contains("wrong-wrong"));
    }
    assert!(place.done().is_empty());
}

#[test]
fn who_guesses_has_to_wait_and_so_has_who_knows() {
    let place = Place::new();
    let guess =
        || place.server.ask("GET", "/api/v1/admin", &[("Authorization", "Bearer 0123456789abcdefX")], "").status;
    assert_eq!([guess(), guess(), guess(), guess(), guess(), guess()], [401, 401, 401, 401, 401, 429]);
    let answer = place.ask("POST", "/api/v1/slices/ml-1/disable", &[], "");
    assert_eq!(answer.status, 429);
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() <= 11);
    assert!(place.done().is_empty());
    assert_eq!(place.server.get("/api/v1/slices").status, 200, "looking is free");
}

#[test]
fn other_web_pages_cannot_ask_even_with_the_token() {
    let place = Place::new();
    let own = format!("http://{}", place.server.address);
    for (headers, status) in [
        ([("Origin", "http://evil.example")], 403),
        ([("Origin", "null")], 403),
        ([("Sec-Fetch-Site", "cross-site")], 403),
        ([("Origin", own.as_str())], 200),
    ] {
        let answer = place.ask("POST", "/api/v1/slices/ml-1/enable", &headers, "");
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    // A form of another page can send text, but not say that it is JSON.
    let form = place.ask("POST", "/api/v1/slices/ml-1/resize", &[("Content-Type", "text/plain")], r#"{"vram": "1G"}"#);
    assert_eq!(form.status, 415);
    assert_eq!(place.done().len(), 1);
}

#[test]
fn what_makes_no_sense_is_refused_with_words() {
    let place = Place::new();
    for (body, words) in [
        ("", "the body says no change"),
        ("6G", "the body says no change"),
        (r#"{"vram": -1}"#, "a size is"),
        (r#"{"vram": 1e300}"#, "a size is"),
        (r#"{"vram": ["6G"]}"#, "a size is"),
        (r#"{"weight": 99999999999}"#, "99999999999"),
        (r#"{"vram": "6G", "name": "x"}"#, "unknown field `name`"),
    ] {
        let answer = place.resize("ml-1", body);
        assert_eq!(answer.status, 400, "{body}");
        assert!(error(&answer).contains(words), "{body}: {}", error(&answer));
    }
    assert_eq!(place.resize("ml-1", &format!(r#"{{"vram": "{}"}}"#, "9".repeat(5000))).status, 413);
    assert!(place.done().is_empty());
}

#[test]
fn each_reason_has_its_code_and_all_are_described() {
    let place = Place::new();
    let document = place.server.get("/api/v1/openapi.json").json();
    let operation = &document["paths"]["/api/v1/slices/{name}/resize"]["post"];
    for (slice, status) in
        [("missing", 404), ("roots", 403), ("full", 409), ("wrong", 400), ("broken", 500), ("ml-1", 200)]
    {
        let answer = place.resize(slice, r#"{"vram": "6G"}"#);
        assert_eq!(answer.status, status, "{slice}");
        let schema = &operation["responses"][status.to_string()]["content"]["application/json"]["schema"];
        validate(&document, schema, &answer.json()).unwrap();
    }
}
