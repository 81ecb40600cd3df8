//! Tests that need several processes: a swarm to start, stop and hurt, and what the measuring programs share.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod command;
pub mod distance;
pub mod failover;
pub mod fetch;
pub mod foreign;
pub mod gateway;
pub mod hub;
pub mod machine;
pub mod namespace;
pub mod seeded;
pub mod shard;
