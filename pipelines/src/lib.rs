//! From a person's input to a person's output: tokenizers, chat templates, sampling, and the jobs that share a model.
//!
//! A [`Pipeline`] is what the node runs; it knows nothing of sockets, peers or runtimes.

#![forbid(unsafe_code)]

mod chat;
mod error;
mod pipeline;
mod sampling;
mod text;
mod tokenizer;

pub use error::PipelineError;
pub use pipeline::{Cost, LoadOptions, Pipeline, StepPlan, arithmetic, load};
