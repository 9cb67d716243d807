//! Who only looks.

use emuv_serve::addresses;
use serde_json::{Value, json};

use crate::{
    figures,
    schema::validate,
    server::{Answer, Server, TOKEN},
};

fn document(server: &Server) -> Value {
    server.get("/api/v1/openapi.json").json()
}

#[test]
fn every_address_is_described_and_nothing_else() {
    let document = document(&Server::of(figures::odd()));
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let mut described: Vec<_> = paths
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (method.as_str(), path.as_str()))
        })
        .collect();
    let mut there = addresses();
    described.sort_unstable();
    there.sort_unstable();
    assert_eq!(described, there);
}

/// Checks an answer against what the document says of it.
fn as_described(document: &Value, method: &str, path: &str, answer: &Answer) {
    let responses = &document["paths"][path][method]["responses"];
    let response = &responses[answer.status.to_string()];
    assert!(response.is_object(), "{path}: {} is not described", answer.status);
    let kind = answer.header("content-type").unwrap().split(';').next().unwrap();
    let schema = &response["content"][kind]["schema"];
    assert!(schema.is_object(), "{path}: {kind} is not described");
    if kind == "application/json" {
        validate(document, schema, &answer.json()).unwrap_or_else(|why| panic!("{path}: {why}"));
    }
}

#[test]
fn answers_are_as_they_are_described() {
    for snapshot in [figures::machine(5, 3), figures::odd()] {
        let server = Server::of(snapshot);
        let document = document(&server);
        for (method, path) in addresses() {
            let asked = path.replace("{name}", "ml-1");
            let answer = server.ask(&method.to_uppercase(), &asked, &[], "");
            as_described(&document, method, path, &answer);
            assert_eq!(answer.status, if asked.contains("admin") || method == "post" { 404 } else { 200 }, "{path}");
        }
    }
}

#[test]
fn the_parts_are_those_of_the_snapshot() {
    let server = Server::of(figures::machine(3, 2));
    let all = server.get("/api/v1/snapshot").json();
    assert_eq!(all["schema"], 1);
    for part in ["gpus", "slices", "processes"] {
        let answer = server.get(&format!("/api/v1/{part}")).json();
        assert_eq!(answer[part], all[part]);
        assert_eq!(answer["time_unix_millis"], all["time_unix_millis"]);
    }
    assert_eq!(all["slices"][0]["vram_limit_bytes"], json!(6_u64 << 30), "bytes are whole numbers");
}

#[test]
fn the_page_may_run_its_own_code_only_and_has_no_figures_in_it() {
    let server = Server::of(figures::odd());
    let answer = server.get("/");
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(answer.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(!answer.body.contains("alert(1)") && !answer.body.contains("{{"));
    assert_ne!(server.get("/").header("content-security-policy"), Some(policy), "a mark is used once");
    for (name, value) in [("x-content-type-options", "nosniff"), ("cache-control", "no-store")] {
        assert_eq!(answer.header(name), Some(value));
    }
}

#[test]
fn a_name_that_leads_here_from_elsewhere_is_refused() {
    let server = Server::of(figures::odd());
    let answer = server.ask("GET", "/api/v1/snapshot", &[("Host", "evil.example:9464")], "");
    assert_eq!(answer.status, 421);
    assert!(answer.json()["error"].as_str().unwrap().contains("localhost"));
    assert_eq!(server.ask("GET", "/-/ready", &[("Host", "localhost:9464")], "").status, 200);
}

#[test]
fn what_is_not_there_is_said() {
    let server = Server::of(figures::odd());
    assert_eq!(server.get("/api/v2/snapshot").status, 404);
    assert_eq!(server.ask("POST", "/metrics", &[], "").status, 405);
    let bearer = format!("Bearer {TOKEN}");
    let answer = server.ask("POST", "/api/v1/slices/ml-1/enable", &[("Authorization", &bearer)], "");
    assert_eq!(answer.status, 404);
    assert!(answer.json()["error"].as_str().unwrap().contains("--admin"));
}
