//! Errors as they travel: a code that programs act on, and words for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::ERROR_TEXT_BYTES;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request itself is wrong; sending it elsewhere will not help.
    InvalidRequest,
    /// The prompt and the answer do not fit the model's context.
    ContextLength,
    /// Nobody reachable has the blocks of this CID.
    ModelNotFound,
    /// The CID holds no model, or its files are truncated or corrupt.
    ModelInvalid,
    /// The model's architecture or a tensor format is not supported.
    Unsupported,
    /// Memory or disk on the worker is short.
    OutOfResources,
    /// The deadline passed.
    DeadlineExceeded,
    /// The worker went away and no other could take over.
    WorkerLost,
    /// No reachable peer can run this job.
    NoWorker,
    /// The worker is stopping; another may take over.
    ShuttingDown,
    /// The job is not known here (any more).
    UnknownJob,
    /// A fault of this program.
    Internal,
}

impl ErrorCode {
    /// Whether another peer might succeed where this one failed.
    pub fn may_move(self) -> bool {
        matches!(
            self,
            Self::ModelNotFound
                | Self::OutOfResources
                | Self::WorkerLost
                | Self::ShuttingDown
                | Self::UnknownJob
                | Self::Internal
        )
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidRequest => "invalid-request",
            Self::ContextLength => "context-length",
            Self::ModelNotFound => "model-not-found",
            Self::ModelInvalid => "model-invalid",
            Self::Unsupported => "unsupported",
            Self::OutOfResources => "out-of-resources",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::WorkerLost => "worker-lost",
            Self::NoWorker => "no-worker",
            Self::ShuttingDown => "shutting-down",
            Self::UnknownJob => "unknown-job",
            Self::Internal => "internal",
        })
    }
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct JobError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: where, what was expected, what was found, what to do.
    pub message: String,
}

impl JobError {
    /// An error whose words are cut to what may travel.
    pub fn new(code: ErrorCode, message: impl fmt::Display) -> Self {
        let mut message = message.to_string();
        if message.len() > ERROR_TEXT_BYTES {
            let mut end = ERROR_TEXT_BYTES;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        Self { code, message }
    }
}
