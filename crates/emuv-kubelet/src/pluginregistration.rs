//! How the kubelet gets to know plugins, made of `proto/pluginregistration.proto` by
//! `cargo run -p xtask --features protos -- protos`.
#![allow(missing_docs, missing_debug_implementations, unused_qualifications, clippy::all, clippy::pedantic)]

include!("gen/pluginregistration.rs");
