//! From a person's input to a person's output: tokenizers, chat templates, sampling, and the jobs that share a model.
//!
//! [`image_input`] and [`audio_input`] turn files of pictures and sounds into what a model reads; [`painting`] makes
//! pictures.
//!
//! A [`Pipeline`] is what the node runs; it knows nothing of sockets, peers or runtimes.

#![forbid(unsafe_code)]

mod admission;
pub mod audio_input;
mod chat;
mod error;
mod generation;
pub mod image_input;
pub mod painting;
mod pipeline;
mod preprocessor;
mod sequence;
mod task;
mod text;
pub mod tokenizer;
mod transcript;

pub use error::PipelineError;
pub use pipeline::{
    Cost, Elsewhere, LoadOptions, Pipeline, StepPlan, Summary, arithmetic, load, load_parts, open, sequences, summary,
    tasks,
};
