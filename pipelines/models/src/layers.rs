//! The parts that layers are made of, each written once.

pub mod attend;
pub mod attention;
pub mod bias;
pub mod carry;
pub mod conv;
pub mod convolution;
pub mod embed;
pub mod image_block;
pub mod image_mixer;
pub mod latent;
pub mod mamba;
pub mod mamba2;
pub mod mlp;
pub mod modulated;
pub mod moe;
pub mod norm;
pub mod patch;
pub mod pool;
pub mod resample;
pub mod resize;
pub mod resnet;
pub mod rope;
pub mod rwkv;
pub mod time_embed;
pub mod window;
