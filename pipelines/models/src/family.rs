//! Families: what a kind of model computes, without the name of any model type.

pub mod codec;
pub mod decoder;
pub mod dit;
pub mod encoder;
pub mod encoder_decoder;
pub mod speech;
pub mod unet;
pub mod vae;
