//! What peers say to each other: types, their bounded encoding, and the limits.
//!
//! The wire, the loopback HTTP interface and the pipelines share these types, so a job means the same thing wherever it
//! enters. This crate does no I/O and knows no socket, runtime or model.

#![forbid(unsafe_code)]

pub mod capability;
pub mod error;
pub mod frame;
pub mod job;
pub mod limits;
pub mod message;
pub mod model;

pub use capability::{Advert, Arithmetic, Backend, Device, HeldModel, Load, Proof};
pub use error::{ErrorCode, JobError};
pub use job::{
    EventRecord, FinishReason, Generation, Input, JobEvent, JobId, JobSpec, JobState, JobStatus, Message, Role, Task,
    TokenLogprob, Usage,
};
pub use message::{JobRequest, JobResponse, OutputRequest, Rejection};
pub use model::ModelRef;
