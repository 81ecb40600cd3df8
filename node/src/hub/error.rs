//! What can go wrong between a hub and the store, each with what to do.

use std::path::PathBuf;

use accel_protocol::{ErrorCode, JobError};

use crate::names::NamesError;
use crate::store::StoreError;

/// Names that an error lists at most.
const LISTED: usize = 24;

/// A model that could not be had from a hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text names no model of a hub.
    #[error("{found:?} names no model of the hub; expected hf://org/name, with @revision or :QUANT behind it")]
    Name {
        /// What was found.
        found: String,
    },
    /// The hub's address is none.
    #[error("HF_ENDPOINT: expected an address such as https://huggingface.co, found {found:?}")]
    Endpoint {
        /// What was found.
        found: String,
    },
    /// The token's file cannot be read.
    #[error("{}: the hub's token cannot be read: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What should be a token is none, or the hub does not know it.
    #[error(
        "the hub's token from {from} is not valid; make one at https://huggingface.co/settings/tokens and set HF_TOKEN"
    )]
    Token {
        /// Where it came from.
        from: String,
    },
    /// There is no such repository, as far as the hub tells who asks.
    #[error("{repository}: the hub shows no such model{}", advice(*with_token))]
    NoRepository {
        /// Owner and name.
        repository: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The model's owner says who may have it.
    #[error(
        "{repository} is gated: ask for access at {endpoint}/{repository}, then set HF_TOKEN to a token of that account{}",
        if *with_token { " (the one that was sent has no access)" } else { "" }
    )]
    Gated {
        /// Owner and name.
        repository: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// There is no such branch, tag or commit.
    #[error("{repository} has no revision {revision:?}; name a branch, a tag or a commit of it")]
    NoRevision {
        /// Owner and name.
        repository: String,
        /// What was asked for.
        revision: String,
    },
    /// No file is quantised in that way.
    #[error("{repository} has no {quant}; it has {}", listed(found))]
    NoQuant {
        /// Owner and name.
        repository: String,
        /// What was asked for.
        quant: String,
        /// What there is.
        found: Vec<String>,
    },
    /// The repository has several GGUF files and nothing says which is meant.
    #[error(
        "{repository} has several GGUF files; name one by its quantisation, as in hf://{repository}:{}: it has {}",
        first(found),
        listed(found)
    )]
    WhichQuant {
        /// Owner and name.
        repository: String,
        /// What there is.
        found: Vec<String>,
    },
    /// Several files could be meant.
    #[error(
        "{repository} has several files that could be meant: {}; download the right one and import it by accel-cli add",
        listed(found)
    )]
    Ambiguous {
        /// Owner and name.
        repository: String,
        /// The files.
        found: Vec<String>,
    },
    /// The GGUF is cut into several files.
    #[error("{repository}: {quant} is split over {} files ({}), which is not supported; name another quantisation", found.len(), listed(found))]
    Split {
        /// Owner and name.
        repository: String,
        /// Which.
        quant: String,
        /// The files.
        found: Vec<String>,
    },
    /// The repository holds nothing that can be loaded.
    #[error(
        "{repository} has no weights that can be loaded (safetensors, pytorch_model.bin or GGUF); it has {}",
        listed(found)
    )]
    NoWeights {
        /// Owner and name.
        repository: String,
        /// Its files.
        found: Vec<String>,
    },
    /// A list in the repository cannot be read, or names what is not there.
    #[error("{repository}: {file}: {found}")]
    Damaged {
        /// Owner and name.
        repository: String,
        /// The list.
        file: String,
        /// What is wrong with it.
        found: String,
    },
    /// The hub cannot be reached, or broke off.
    #[error(
        "the hub at {endpoint} cannot be reached: {found}; what came so far is kept, and the same command goes on from there"
    )]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// Why.
        found: String,
    },
    /// The hub says no in a way that has no name here.
    #[error("the hub at {endpoint} answered {found}{}", if *later { "; try again later, the same command goes on from where it was" } else { "" })]
    Refused {
        /// The hub.
        endpoint: String,
        /// What it answered.
        found: String,
        /// Whether another try makes sense.
        later: bool,
    },
    /// The bytes are not those that the hub has named.
    #[error("{file}: expected sha256 {expected}, found {found}; the download was thrown away, run the command again")]
    Corrupt {
        /// The file.
        file: String,
        /// What the hub says.
        expected: String,
        /// What came.
        found: String,
    },
    /// The same model is being pulled already.
    #[error("{model} is being pulled already; wait for that, or cancel it")]
    Busy {
        /// The model.
        model: String,
    },
    /// A file of the download cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The list of what was pulled is unreadable.
    #[error("{}: {source}; remove the file to begin without the list", path.display())]
    Record {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The store says no.
    #[error("{0}")]
    Store(#[source] Box<StoreError>),
    /// The model is here, but could not be named.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// The machine's certificates cannot be used, or the runtime stops.
    #[error("{0}")]
    Failed(String),
}

fn advice(with_token: bool) -> &'static str {
    match with_token {
        true => "; check the name, and that the token's account may see it",
        false => "; check the name, or set HF_TOKEN where it is private",
    }
}

fn first(list: &[String]) -> &str {
    list.first().map_or("QUANT", String::as_str)
}

fn listed(list: &[String]) -> String {
    match list.len() {
        0 => "none".to_owned(),
        count if count > LISTED => format!("{} and {} more", list[..LISTED].join(", "), count - LISTED),
        _ => list.join(", "),
    }
}

impl HubError {
    /// An error of writing `needed` bytes: a full disk is told as the store tells it.
    pub(super) fn writing(path: PathBuf, needed: u64, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                StoreError::DiskFull { path, needed }.into()
            }
            _ => Self::File { path, source },
        }
    }
}

impl From<StoreError> for HubError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl From<HubError> for JobError {
    fn from(error: HubError) -> Self {
        let code = match error {
            HubError::Store(error) => return (*error).into(),
            HubError::Names(error) => return error.into(),
            HubError::Name { .. }
            | HubError::Endpoint { .. }
            | HubError::TokenFile { .. }
            | HubError::Token { .. }
            | HubError::Gated { .. }
            | HubError::WhichQuant { .. }
            | HubError::Busy { .. } => ErrorCode::InvalidRequest,
            HubError::NoRepository { .. } | HubError::NoRevision { .. } | HubError::NoQuant { .. } => {
                ErrorCode::ModelNotFound
            }
            HubError::Split { .. } | HubError::NoWeights { .. } | HubError::Ambiguous { .. } => ErrorCode::Unsupported,
            HubError::Damaged { .. } | HubError::Corrupt { .. } => ErrorCode::ModelInvalid,
            HubError::Unreachable { .. } | HubError::Refused { .. } => ErrorCode::NoWorker,
            HubError::File { .. } | HubError::Record { .. } | HubError::Failed(_) => ErrorCode::Internal,
        };
        Self::new(code, error)
    }
}
