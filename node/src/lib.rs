//! The accel node: one swarm, one store, one scheduler, and the ways in.
//!
//! Tokio and sockets live in this crate only. `accel-node` and `accel-cli` are thin: arguments in, a call here.

#![forbid(unsafe_code)]

mod advert;
pub mod api;
pub mod cli;
mod client;
pub mod config;
mod daemon;
mod data_dir;
pub mod frames;
mod hardware;
mod http;
pub mod hub;
mod identity;
mod jobs;
pub mod membership;
mod memory;
mod metrics;
pub mod names;
pub mod peers;
pub mod placement;
mod places;
pub mod process;
mod records;
mod rejoin;
mod scheduler;
mod serve;
pub mod shares;
pub mod store;
pub mod swarm;
pub mod tls;
mod usage;

/// What this program calls itself to peers.
pub const AGENT: &str = concat!("accel/", env!("CARGO_PKG_VERSION"));
