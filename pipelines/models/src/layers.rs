//! The blocks that layers are made of, one file each.

pub mod attention;
pub mod mlp;
pub mod norm;
pub mod rope;
