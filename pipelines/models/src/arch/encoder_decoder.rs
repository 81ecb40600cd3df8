//! Model types of the encoder-decoder family, one file each, and what their configurations share.

pub mod bart;
pub mod blenderbot;
pub mod marian;
pub mod mvp;
pub mod nllb_moe;
pub mod pegasus;
pub mod switch_transformers;
pub mod t5;
pub mod whisper;

use super::unsupported;
use crate::ModelError;
use crate::config::Config;

/// Refuses a decoder whose layers are the encoder's, of which files hold either.
fn own_layers(config: &Config) -> Result<(), ModelError> {
    const KEY: &str = "tie_encoder_decoder";
    if config.truth_or(KEY, false)? {
        return Err(unsupported(&config.path(KEY), "true".into(), vec!["false"]));
    }
    Ok(())
}
