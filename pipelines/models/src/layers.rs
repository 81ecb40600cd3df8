//! The parts that layers are made of, each written once.

pub mod attend;
pub mod attention;
pub mod batch_norm;
pub mod bias;
pub mod convolution;
pub mod embed;
pub mod image_block;
pub mod image_mixer;
pub mod latent;
pub mod mlp;
pub mod modulated;
pub mod moe;
pub mod norm;
pub mod padded_convolution;
pub mod recurrent;
pub mod resample;
pub mod resnet;
pub mod rope;
pub mod time_embed;
