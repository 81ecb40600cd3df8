//! The model store: real files, and real swarms on loopback in one process.

#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]

mod cids;
mod dht;
mod faults;
mod fetch;
mod hostile;
mod import;
mod node;
mod reading;
