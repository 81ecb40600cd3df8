//! Model types of the family that cuts out what prompts point at, one file each.

pub mod sam;
