//! What computes: where model bytes come from, the tensors in them, and the kernels that run over them.
//!
//! Nothing here knows what a model is or what a peer says; those are the crates above.

pub mod cpu;
pub mod device;
pub mod files;
pub mod graph;
pub mod pace;
pub mod tensor;
pub mod weights;
