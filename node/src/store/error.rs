//! What can go wrong with stored models, each with what was found and what to do.
//!
//! One enum for the whole store, because a caller (a command line, a job) treats a full disk or a missing
//! provider alike wherever it happened. It does not decide what is worth another try; the fetcher does.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use accel_protocol::{ErrorCode, JobError};
use cid::Cid;

/// An error of the model store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The CID names something that holds no weights.
    #[error("{cid}: expected a model (GGUF, or a directory with .safetensors), found {found}; check the CID")]
    NotAModel {
        /// What was asked for.
        cid: Cid,
        /// What is there instead.
        found: String,
    },
    /// Nobody who was asked has a block, within the time allowed.
    #[error("{0}")]
    NotFound(Box<NotFound>),
    /// The store would grow past its quota.
    #[error(
        "the store may hold {quota} bytes and holds {used}; {needed} more do not fit: remove a model, collect garbage, or raise the quota"
    )]
    Quota {
        /// Bytes the store may hold.
        quota: u64,
        /// Bytes it holds or has promised to running work.
        used: u64,
        /// Bytes that were asked for on top.
        needed: u64,
    },
    /// The file system has no space left.
    #[error(
        "{path}: the disk is full ({needed} bytes did not fit): free space, also by `accel-cli gc` or `accel-cli rm`, or give another --data-dir"
    )]
    DiskFull {
        /// Where the store writes.
        path: PathBuf,
        /// Bytes that did not fit.
        needed: u64,
    },
    /// A block's bytes are not those of its CID.
    #[error("block {cid} is corrupt ({found}): fetch its model again to repair it")]
    Corrupt {
        /// The block.
        cid: Cid,
        /// What was found.
        found: String,
    },
    /// A block that should be here is not.
    #[error("block {cid} is not here: fetch its model again")]
    Missing {
        /// The block.
        cid: Cid,
    },
    /// A file or directory given for import cannot be used.
    #[error("{path}: {source}")]
    Source {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store's own files cannot be read or written.
    #[error("{path}: the store cannot use this file: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store's list of roots is unreadable.
    #[error(
        "{path}: expected the list of pinned roots, found {found}; restore the file, or move it away to start with no pins"
    )]
    Roots {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// A block is no UnixFS this store reads.
    #[error("{cid}: expected UnixFS (raw, file or plain directory, sha2-256), found {found}")]
    NotUnixFs {
        /// The block.
        cid: Cid,
        /// What it is.
        found: String,
    },
    /// A DAG, directory or block passes a bound.
    #[error("{what}: {found} is over the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// A path inside a CID leads nowhere.
    #[error("no entry `{path}` (there are: {})", names(entries))]
    NoEntry {
        /// What was asked for: the CID and the path in it.
        path: String,
        /// What is there.
        entries: Vec<String>,
    },
    /// The CID is not pinned here.
    #[error("{cid}: not among this node's models; `accel-cli ls` shows them")]
    NotPinned {
        /// What was asked for.
        cid: Cid,
    },
    /// A weights file's header cannot be read.
    #[error("{file}: {found}")]
    Weights {
        /// The file.
        file: String,
        /// What is wrong with it.
        found: String,
    },
    /// A CAR file cannot be imported.
    #[error("the CAR file cannot be imported: found {found}; what came of it stays until `accel-cli gc`")]
    Car {
        /// What is wrong with it.
        found: String,
    },
    /// The swarm under the store refused or has stopped.
    #[error("the IPFS node failed to {doing}: {found}")]
    Swarm {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        found: String,
    },
    /// The work was cancelled, or the runtime is stopping.
    #[error("cancelled; what was stored so far is kept until garbage is collected")]
    Cancelled,
}

/// The story of a fetch that found nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{cid}: no peer sent block {missing} within {waited:.1?} (asked: {}); connect to a peer that has it, or try later",
    names(asked)
)]
pub struct NotFound {
    /// The root that was asked for.
    pub cid: Cid,
    /// The first block that is missing.
    pub missing: Cid,
    /// Who was asked, and what became of it.
    pub asked: Vec<String>,
    /// How long nothing came.
    pub waited: Duration,
}

fn names(list: &[String]) -> String {
    const SHOWN: usize = 8;
    if list.is_empty() {
        return "nobody".into();
    }
    let mut text = list[..list.len().min(SHOWN)].join(", ");
    if list.len() > SHOWN {
        text.push_str(&format!(", and {} more", list.len() - SHOWN));
    }
    text
}

impl StoreError {
    /// An error of writing `needed` bytes at `path`: a full disk has a type of its own.
    pub(super) fn writing(path: PathBuf, needed: u64, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, needed },
            _ => Self::Io { path, source },
        }
    }
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NotFound { .. }
            | StoreError::Missing { .. }
            | StoreError::NotPinned { .. }
            | StoreError::NoEntry { .. } => ErrorCode::ModelNotFound,
            StoreError::NotAModel { .. }
            | StoreError::NotUnixFs { .. }
            | StoreError::Weights { .. }
            | StoreError::Corrupt { .. } => ErrorCode::ModelInvalid,
            StoreError::Quota { .. } | StoreError::DiskFull { .. } => ErrorCode::OutOfResources,
            StoreError::TooLarge { .. } | StoreError::Source { .. } | StoreError::Car { .. } => {
                ErrorCode::InvalidRequest
            }
            StoreError::Cancelled => ErrorCode::ShuttingDown,
            StoreError::Io { .. } | StoreError::Roots { .. } | StoreError::Swarm { .. } => ErrorCode::Internal,
        };
        Self::new(code, error)
    }
}
