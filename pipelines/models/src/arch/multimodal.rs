//! Model types of the family that reads images among tokens, one file each.

pub mod llava;
pub mod qwen2_vl;
