//! The server from outside: what it answers, to whom, and that this is what its documents say.
#![allow(clippy::unwrap_used, clippy::expect_used)] // In the functions that the tests share.

mod changes;
mod exposition;
mod figures;
mod looking;
mod schema;
mod server;
