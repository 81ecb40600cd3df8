//! Which hub is asked, and by whom: what Hugging Face's own libraries are told is told here too, by the same variables
//! and the same file.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::HubError;

const ENDPOINT: &str = "https://huggingface.co";

/// A hub, and the token that it knows a person by. The two go together, so that no token reaches a hub it is not for.
#[derive(Clone, Serialize, Deserialize)]
pub struct HubAccess {
    /// Where the hub is.
    pub endpoint: String,
    /// The token; none for what is open to everybody.
    pub token: Option<String>,
}

impl std::fmt::Debug for HubAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubAccess")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

impl HubAccess {
    /// What the environment of this process says: `HF_ENDPOINT`, and `HF_TOKEN` or the file that a person who has logged in
    /// has. None where it says nothing, which is the hub itself without a token.
    ///
    /// # Errors
    /// `TokenFile` when the file cannot be read, `Token` when what it holds is no token.
    pub fn of_environment() -> Result<Option<Self>, HubError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let endpoint = variable("HF_ENDPOINT").map(|value| value.to_string_lossy().into_owned());
        let text = |value: OsString| value.into_string().map_err(|_| HubError::Token { from: "HF_TOKEN".into() });
        let token = match variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")) {
            Some(value) => Some(checked(&text(value)?, "HF_TOKEN".into())?),
            None => of_file(token_file(variable))?,
        };
        if endpoint.is_none() && token.is_none() {
            return Ok(None);
        }
        Ok(Some(Self { endpoint: endpoint.unwrap_or_else(|| ENDPOINT.to_owned()), token }))
    }
}

impl Default for HubAccess {
    fn default() -> Self {
        Self { endpoint: ENDPOINT.to_owned(), token: None }
    }
}

/// Where `hf auth login` keeps the token (`constants.py` of huggingface_hub).
fn token_file(variable: impl Fn(&'static str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(path) = variable("HF_TOKEN_PATH") {
        return Some(path.into());
    }
    let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))?;
        Some(cache.join("huggingface"))
    })?;
    Some(home.join("token"))
}

fn of_file(path: Option<PathBuf>) -> Result<Option<String>, HubError> {
    let Some(path) = path else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => checked(&text, path.display().to_string()).map(Some),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(HubError::TokenFile { path, source }),
    }
}

/// A token that can be sent.
fn checked(text: &str, from: String) -> Result<String, HubError> {
    let token = text.trim();
    if token.len() > 512 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(HubError::Token { from });
    }
    Ok(token.to_owned())
}
