//! The kubelet's interface to drivers of Dynamic Resource Allocation, made of `proto/dra.proto` by
//! `cargo run -p xtask --features protos -- protos`.
#![allow(missing_docs, missing_debug_implementations, unused_qualifications, clippy::all, clippy::pedantic)]

include!("gen/dra_v1.rs");
