//! How a model is named: `CID`, `CID/path`, `ipfs://CID[/path]`.

use std::fmt;
use std::str::FromStr;

use cid::Cid;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::MODEL_PATH_BYTES;

/// A model's root in IPFS and, where the root is a larger directory, the path below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelRef {
    /// The root.
    pub cid: Cid,
    /// Path below the root, without a leading slash; empty for the root itself.
    pub path: String,
}

/// A text that names no model.
#[derive(Debug, thiserror::Error)]
pub enum InvalidModelRef {
    /// The part before the first slash is no CID.
    #[error("{text:?} is no CID ({source}); a model is named CID, CID/path or ipfs://CID")]
    Cid {
        /// What was found.
        text: String,
        /// What is wrong with it.
        #[source]
        source: cid::Error,
    },
    /// The path is too long or steps out of the root.
    #[error("the path {path:?} must be at most {MODEL_PATH_BYTES} bytes of plain components")]
    Path {
        /// What was found.
        path: String,
    },
}

impl From<Cid> for ModelRef {
    fn from(cid: Cid) -> Self {
        Self { cid, path: String::new() }
    }
}

impl FromStr for ModelRef {
    type Err = InvalidModelRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("ipfs://").or_else(|| text.strip_prefix("/ipfs/")).unwrap_or(text);
        let (root, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let plain = path.is_empty() || path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if path.len() > MODEL_PATH_BYTES || !plain {
            return Err(InvalidModelRef::Path { path: path.chars().take(64).collect() });
        }
        let cid =
            root.parse().map_err(|source| InvalidModelRef::Cid { text: root.chars().take(64).collect(), source })?;
        Ok(Self { cid, path: path.to_owned() })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { write!(f, "{}", self.cid) } else { write!(f, "{}/{}", self.cid, self.path) }
    }
}

impl Serialize for ModelRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ModelRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
