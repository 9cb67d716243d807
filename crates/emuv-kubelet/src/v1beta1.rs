//! The kubelet's interface, made of `proto/deviceplugin.proto` by `cargo run -p xtask --features protos -- protos`.
#![allow(missing_docs, missing_debug_implementations, unused_qualifications, clippy::all, clippy::pedantic)]

include!("gen/v1beta1.rs");

/// The version, as plugins say it when they register.
pub const VERSION: &str = "v1beta1";
/// What the health of a device can be.
pub const HEALTHY: &str = "Healthy";
/// The other thing that it can be.
pub const UNHEALTHY: &str = "Unhealthy";
