//! The parts that layers are made of, each written once.

pub mod attention;
pub mod bias;
pub mod conv;
pub mod embed;
pub mod latent;
pub mod masks;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod patch;
pub mod perceptron;
pub mod place;
pub mod pool;
pub mod resize;
pub mod rope;
pub mod window;
