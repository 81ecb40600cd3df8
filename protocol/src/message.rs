//! The messages of `/accel/jobs/1` and `/accel/output/1`.

use serde::{Deserialize, Serialize};

use crate::capability::Advert;
use crate::error::JobError;
use crate::job::{EventRecord, JobId, JobSpec, JobStatus};
use crate::name::{NameRequest, SignedName};
use crate::share::{Offer, OfferRequest};

/// Request-response protocol for jobs.
pub const JOBS_PROTOCOL: &str = "/accel/jobs/1";
/// Stream protocol for a job's events.
pub const OUTPUT_PROTOCOL: &str = "/accel/output/1";
/// Gossip topic of adverts.
pub const ADVERTS_TOPIC: &str = "/accel/adverts/1";

/// A request by `/accel/jobs/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobRequest {
    /// Take this job.
    Submit(Box<JobSpec>),
    /// Where does this job stand?
    Status(JobId),
    /// End this job.
    Cancel(JobId),
    /// This is what I can do; what can you do?
    Capabilities(Box<Advert>),
    /// What could you do for this model, with others?
    Offer(Box<OfferRequest>),
    /// What does a peer call so?
    Name(Box<NameRequest>),
}

/// The answer to a [`JobRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobResponse {
    /// The job is taken; its events are read by `/accel/output/1`.
    Accepted {
        /// The job.
        job: JobId,
        /// All events of a job that ended at once; empty otherwise.
        events: Vec<EventRecord>,
    },
    /// The job is not taken.
    Rejected(Rejection),
    /// Where the job stands; none when it is not known.
    Status(Option<JobStatus>),
    /// Whether there was such a job to cancel.
    Cancelled(bool),
    /// What this peer can do.
    Capabilities(Box<Advert>),
    /// What this peer could do for a model.
    Offer(Box<Offer>),
    /// What a peer has said of a name of its own; none where that is not known here.
    Name(Option<Box<SignedName>>),
}

/// Why a job is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The reason.
    pub error: JobError,
    /// Milliseconds after which trying again makes sense; none when it makes no sense.
    pub retry_after_ms: Option<u64>,
}

impl From<JobError> for Rejection {
    /// A refusal that trying again will not change.
    fn from(error: JobError) -> Self {
        Self { error, retry_after_ms: None }
    }
}

/// The first frame on an `/accel/output/1` stream; [`EventRecord`] frames follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRequest {
    /// The job.
    pub job: JobId,
    /// The first event that the requester lacks.
    pub from: u64,
}
