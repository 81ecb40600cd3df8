//! The accel node: one swarm, one store, one scheduler, and the ways in.
//!
//! Tokio and sockets live in this crate only. `accel-node` and `accel-cli` are thin: arguments in, a call here.

#![forbid(unsafe_code)]

pub mod advert;
pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod hardware;
pub mod http;
pub mod identity;
pub mod jobs;
pub mod peers;
pub mod process;
pub mod records;
pub mod scheduler;
pub mod serve;
pub mod store;
pub mod streams;
pub mod swarm;

/// What this program calls itself to peers.
pub const AGENT: &str = concat!("accel/", env!("CARGO_PKG_VERSION"));
