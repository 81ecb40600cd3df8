//! Families: what a kind of model computes, without the name of any model type.

pub mod codec;
pub mod decoder;
pub mod deformable;
pub mod detection;
pub mod dit;
pub mod dual_encoder;
pub mod encoder;
pub mod encoder_decoder;
pub mod multimodal;
pub mod retrieval;
pub mod segmentation;
pub mod speech;
pub mod time_series;
pub mod unet;
pub mod vae;
pub mod vision;
pub mod vision_language;
