//! Model types of the encoder-decoder family, one file each, and what their configurations share.

pub mod bart;
pub mod blenderbot;
pub mod marian;
pub mod mvp;
pub mod pegasus;
pub mod switch_transformers;
pub mod t5;
pub mod whisper;
