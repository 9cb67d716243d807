//! Slices of a simulated GPU from outside: the commands that make them, programs that share them, limits that change
//! while programs run, processes that are killed, other users.
#![allow(clippy::unwrap_used, clippy::expect_used)] // In the functions that the tests share.

mod commands;
mod containers;
mod pair;
mod place;
mod several_gpus;
mod sharing;
mod storm;
mod turns;
mod users;
mod watched;
