//! What models are: their configuration, their weights' names, and one forward pass per family.
//!
//! A model type is data ([`arch`]); a family is code ([`family`]). Nothing here knows tokens' texts, jobs or peers.

#![forbid(unsafe_code)]

pub mod arch;
pub mod backbone;
pub mod cache;
pub mod config;
pub mod family;
pub mod layers;
pub mod model;
pub mod rules;
pub mod share;
pub mod spec;
pub mod stack;
pub mod stage;
pub mod usage;

mod error;

pub use error::ModelError;
