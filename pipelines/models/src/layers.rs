//! The parts that layers are made of, each written once.

pub mod attention;
pub mod bias;
pub mod embed;
pub mod latent;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod rope;
