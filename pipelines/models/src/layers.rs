//! The parts that layers are made of, each written once.

pub mod attention;
pub mod bias;
pub mod carry;
pub mod embed;
pub mod latent;
pub mod mamba;
pub mod mamba2;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod rope;
pub mod rwkv;
