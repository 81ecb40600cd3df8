//! What people call a model: a name that one peer gave to a CID.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::MODEL_NAME_BYTES;
use crate::model::ModelRef;

/// What stands behind a name when nothing else is said; a name with it and a name without are the same.
const LATEST: &str = ":latest";

/// A name for a model: letters, digits and `. _ - / :`, as in `smollm2:135m` or `org/model`. Never what a CID could be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(String);

/// The text cannot be a model's name.
#[derive(Debug, thiserror::Error)]
#[error(
    "{found:?} cannot be a name: expected at most {MODEL_NAME_BYTES} letters, digits and . _ - / :, a letter or digit \
     first, and no CID"
)]
pub struct InvalidModelName {
    found: String,
}

impl ModelName {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = InvalidModelName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_suffix(LATEST).unwrap_or(text);
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        let parts = name.split(['/', ':']).all(|part| !part.is_empty() && part != "." && part != "..");
        if name.len() > MODEL_NAME_BYTES || !begins || !parts || !name.chars().all(plain) || is_model_ref(name) {
            return Err(InvalidModelName { found: text.chars().take(MODEL_NAME_BYTES).collect() });
        }
        Ok(Self(name.to_owned()))
    }
}

fn is_model_ref(text: &str) -> bool {
    text.parse::<ModelRef>().is_ok()
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a peer says that a name of its own stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The name.
    pub name: ModelName,
    /// What it stands for.
    pub model: ModelRef,
    /// When it was said, in milliseconds after the Unix epoch: of two records the later one counts.
    pub signed_unix_ms: u64,
    /// When it counts no more.
    pub expires_unix_ms: u64,
}

/// A [`NameRecord`] as it travels: whoever passes it on cannot change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedName {
    /// The record, in the encoding of frames.
    pub record: Vec<u8>,
    /// The public key of who says it, in libp2p's encoding.
    pub key: Vec<u8>,
    /// What that key makes of [`NAME_DOMAIN`] and the record.
    pub signature: Vec<u8>,
}

/// Stands before a record when it is signed, so that a signature is good for nothing else.
pub const NAME_DOMAIN: &[u8] = b"accel model name 1\0";

/// A question what a peer calls so, to that peer or to whoever may have heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRequest {
    /// The peer's id, as text.
    pub peer: String,
    /// The name.
    pub name: ModelName,
}
