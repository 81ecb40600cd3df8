//! Model types of the family that reads documents, one file each.

pub mod rag;
