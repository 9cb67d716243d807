//! Work in order: streams, and the events between them.

pub mod event;
pub mod queue;
pub mod set;
