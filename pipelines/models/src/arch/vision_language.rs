//! Model types of the family that reads and writes texts about images, one file each.

pub mod blip;
