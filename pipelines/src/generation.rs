//! How tokens are chosen and become an answer, whatever the model has read.

pub mod answer;
pub mod rules;
pub mod sampling;
pub mod settings;
