//! Model types of the family that compares images and texts, one file each.

pub mod clip;
pub mod metaclip_2;
