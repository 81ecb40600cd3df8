//! What peers say to each other: types, their bounded encoding, and the limits.
//!
//! The wire, the loopback HTTP interface and the pipelines share these types, so a job means the same thing wherever it
//! enters. This crate does no I/O and knows no socket, runtime or model.

#![forbid(unsafe_code)]

pub mod capability;
pub mod error;
mod file_bytes;
pub mod frame;
pub mod job;
pub mod limits;
pub mod message;
pub mod model;
pub mod name;
pub mod result;
pub mod share;
pub mod stage;

pub use capability::{Advert, Arithmetic, Backend, Device, HeldModel, Load, Proof};
pub use error::{ErrorCode, JobError};
pub use file_bytes::FileBytes;
pub use job::{
    Aggregation, EventRecord, FinishReason, Generation, Input, JobEvent, JobId, JobSpec, JobState, JobStatus, Message,
    Painting, Role, Task, TaskOptions, TokenLogprob, Usage,
};
pub use message::{JobRequest, JobResponse, OutputRequest, Rejection};
pub use model::ModelRef;
pub use name::{ModelName, NameRecord, NameRequest, SignedName};
pub use result::TaskResult;
pub use share::{
    ExpertAsk, ExpertRequest, Floats, LayerExperts, Offer, OfferRequest, ShareAnswer, ShareReply, ShareRequest,
};
pub use stage::{PeerExperts, StageAsk, StageForward, StageRequest, StageRow, StageSource, StateChange};
