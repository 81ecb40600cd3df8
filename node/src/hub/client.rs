//! What is asked of a hub (<https://huggingface.co/docs/hub/api>).
//!
//! The crate `hf-hub` does this too, but brings the whole of Xet storage, 68 crates more, and the hub serves every file
//! without it. The token goes to the hub itself: the client takes it away where the hub sends it on to another host.

use std::collections::BTreeMap;

use futures::StreamExt;
use reqwest::header::{HeaderMap, RANGE};
use reqwest::{Client as Http, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::access::HubAccess;
use super::error::HubError;
use super::source::HubModel;

/// What a hub says of one repository.
const ANSWER_BYTES: usize = 64 << 20;
/// Of what it says when it refuses, so much is shown.
const WORDS: usize = 300;

/// A repository at one commit.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    /// Owner and name, as they were asked for.
    pub name: String,
    /// The commit.
    pub commit: String,
    /// The files by their names.
    pub files: BTreeMap<String, RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    /// Its length.
    pub bytes: u64,
    /// Its hash, which the hub knows of large files.
    pub sha256: Option<String>,
}

/// A hub, asked for one model.
#[derive(Debug)]
pub(super) struct Client {
    http: Http,
    access: HubAccess,
    base: Url,
    repository: String,
    revision: String,
}

#[derive(Deserialize)]
struct Described {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Client {
    pub(super) fn new(access: HubAccess, model: &HubModel) -> Result<Self, HubError> {
        let wrong = || HubError::Endpoint { found: access.endpoint.chars().take(200).collect() };
        let base: Url = access.endpoint.trim_end_matches('/').parse().map_err(|_| wrong())?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(wrong());
        }
        let http = crate::tls::network(crate::AGENT, base.scheme() == "https").map_err(HubError::Failed)?;
        let (repository, revision) = (model.repository.clone(), model.revision().to_owned());
        Ok(Self { http, access, base, repository, revision })
    }

    /// The hub, as it is named to people.
    pub(super) fn endpoint(&self) -> &str {
        &self.access.endpoint
    }

    /// The repository at the commit that the revision is now.
    pub(super) async fn describe(&self) -> Result<Repository, HubError> {
        // A revision is one part of the path, whatever it holds.
        let url = self.url(&["api", "models"], &[("revision", &self.revision)], "")?;
        let response = self.ask(self.http.get(url).query(&[("blobs", "true")])).await?;
        let text = self.body(response, ANSWER_BYTES).await?;
        let unreadable = |found: String| self.refused(format!("something that cannot be read: {found}"), false);
        let Described { sha, siblings } =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if sha.len() != 40 || !sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unreadable("the commit is none".to_owned()));
        }
        let mut files = BTreeMap::new();
        for Sibling { rfilename: name, size, lfs } in siblings {
            let large = lfs.as_ref().and_then(|lfs| lfs.size);
            let bytes = size.or(large).ok_or_else(|| unreadable(format!("{name} has no size")))?;
            // Whatever else a repository holds, nothing is written outside of a download's directory.
            if name.split('/').all(is_plain) {
                files.insert(name, RemoteFile { bytes, sha256: lfs.and_then(|lfs| lfs.sha256) });
            }
        }
        Ok(Repository { name: self.repository.clone(), commit: sha, files })
    }

    /// The bytes of a file from `offset` on, as they come.
    pub(super) async fn file(&self, commit: &str, name: &str, offset: u64) -> Result<Response, HubError> {
        let request = self.http.get(self.url(&[], &[("resolve", commit)], name)?);
        let request = if offset > 0 { request.header(RANGE, format!("bytes={offset}-")) } else { request };
        self.ask(request).await
    }

    /// `before/REPOSITORY/between…/file` below the hub's address.
    fn url(&self, before: &[&str], between: &[(&str, &str)], file: &str) -> Result<Url, HubError> {
        let mut url = self.base.clone();
        let wrong = || HubError::Endpoint { found: self.access.endpoint.clone() };
        let mut path = url.path_segments_mut().map_err(|()| wrong())?;
        path.pop_if_empty().extend(before).extend(self.repository.split('/'));
        for (what, which) in between {
            path.extend([what, which]);
        }
        if !file.is_empty() {
            path.extend(file.split('/'));
        }
        drop(path);
        Ok(url)
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Response, HubError> {
        let request = match &self.access.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let text = self.body(response, ANSWER_BYTES).await.unwrap_or_default();
        Err(self.why(status, &headers, &text))
    }

    /// What a refusal means (`hf_raise_for_status` of huggingface_hub).
    fn why(&self, status: StatusCode, headers: &HeaderMap, text: &[u8]) -> HubError {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let told = serde_json::from_slice::<serde_json::Value>(text).unwrap_or_default();
        let words = match header("x-error-message") {
            "" => told["error"].as_str().unwrap_or_default(),
            words => words,
        };
        let (repository, with_token) = (self.repository.clone(), self.access.token.is_some());
        match (header("x-error-code"), status) {
            ("GatedRepo", _) => HubError::Gated { repository, endpoint: self.access.endpoint.clone(), with_token },
            ("RevisionNotFound", _) => HubError::NoRevision { repository, revision: self.revision.clone() },
            ("RepoNotFound", _) => HubError::NoRepository { repository, with_token },
            (_, StatusCode::UNAUTHORIZED) if words.starts_with("Invalid credentials") => {
                HubError::Token { from: "HF_TOKEN, or from the file of hf auth login".to_owned() }
            }
            // To whom it does not know, the hub says neither that a model is there nor that it is not.
            ("", StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND) => HubError::NoRepository { repository, with_token },
            _ => {
                let words: String = words.chars().filter(|c| !c.is_control()).take(WORDS).collect();
                let later = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
                self.refused(format!("{status}{}{words}", if words.is_empty() { "" } else { ": " }), later)
            }
        }
    }

    fn refused(&self, found: String, later: bool) -> HubError {
        HubError::Refused { endpoint: self.access.endpoint.clone(), found, later }
    }

    /// The address that a file lies at may hold a key of its own, so no address is shown but the hub's.
    pub(super) fn unreachable(&self, error: reqwest::Error) -> HubError {
        let error = error.without_url();
        let mut found = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            found.push_str(&format!(": {inner}"));
            source = inner.source();
        }
        HubError::Unreachable { endpoint: self.access.endpoint.clone(), found }
    }

    async fn body(&self, response: Response, limit: usize) -> Result<Vec<u8>, HubError> {
        let mut text = Vec::new();
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.unreachable(error))?;
            if text.len() + piece.len() > limit {
                return Err(self.refused(format!("over {limit} bytes"), false));
            }
            text.extend_from_slice(&piece);
        }
        Ok(text)
    }
}

/// Whether a part of a path is the name of a file or directory on every system.
fn is_plain(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && !part.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c))
}
