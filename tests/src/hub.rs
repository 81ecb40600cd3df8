//! A hub on loopback that speaks as Hugging Face's does: what a repository holds, files by commit, ranges, large files
//! elsewhere, and refusals with their codes.

use std::collections::BTreeMap;
use std::io::{Error, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as At, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The token that opens what is private or gated.
pub const TOKEN: &str = "hf_of_the_tests";
/// What `main` is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const PIECE_BYTES: usize = 64 << 10;

/// A repository.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    /// Its files, by their names.
    pub files: BTreeMap<String, PathBuf>,
    /// Only who has the token may know of it.
    pub private: bool,
    /// Only who has the token may have its files.
    pub gated: bool,
}

/// How the hub behaves towards the next file that is long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// The connection breaks after so many bytes.
    Cut(u64),
    /// Nothing more comes after so many bytes.
    Hold(u64),
}

#[derive(Debug, Default)]
struct Seen {
    mishap: Option<Mishap>,
    /// Each request for a file: its name and where it began.
    asked: Vec<(String, u64)>,
    served_bytes: u64,
    /// Tokens that came to where large files lie.
    leaked: usize,
}

#[derive(Debug)]
struct World {
    repositories: BTreeMap<String, Repository>,
    elsewhere: SocketAddr,
    seen: Mutex<Seen>,
}

/// The hub; it ends when it is dropped.
#[derive(Debug)]
pub struct Hub {
    address: SocketAddr,
    world: Arc<World>,
    _servers: JoinSet<()>,
}

impl Hub {
    /// A hub with these repositories, by `owner/name`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(repositories: impl IntoIterator<Item = (&str, Repository)>) -> Result<Self> {
        let (hub, large) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let repositories = repositories.into_iter().map(|(name, repository)| (name.to_owned(), repository)).collect();
        let world = Arc::new(World { repositories, elsewhere: large.local_addr()?, seen: Mutex::default() });
        let routes = Router::new()
            .route("/api/models/{owner}/{name}/revision/{revision}", get(describe))
            .route("/{owner}/{name}/resolve/{commit}/{*file}", get(resolve))
            .with_state(world.clone());
        let blobs = Router::new().route("/{owner}/{name}/{*file}", get(blob)).with_state(world.clone());
        let address = hub.local_addr()?;
        let mut servers = JoinSet::new();
        for (listener, routes) in [(hub, routes), (large, blobs)] {
            servers.spawn(async move { axum::serve(listener, routes).await.unwrap_or_default() });
        }
        Ok(Self { address, world, _servers: servers })
    }

    /// What `HF_ENDPOINT` is set to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, one file meets with a mishap.
    pub fn befall(&self, mishap: Mishap) {
        self.world.seen().mishap = Some(mishap);
    }

    /// Bytes of files that were sent since this was last asked.
    pub fn served_bytes(&self) -> u64 {
        std::mem::take(&mut self.world.seen().served_bytes)
    }

    /// The files that were asked for since this was last asked, each with where it began.
    pub fn asked(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.world.seen().asked)
    }

    /// How often a token came to where large files lie.
    pub fn leaked(&self) -> usize {
        self.world.seen().leaked
    }
}

impl World {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The repository, if whoever asks may know of it.
    fn open(&self, owner: &str, name: &str, headers: &HeaderMap) -> Result<(&Repository, bool), Box<Response>> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let known = given.is_some_and(|value| value == format!("Bearer {TOKEN}"));
        if given.is_some() && !known {
            let words = "Invalid credentials in Authorization header";
            return Err(Box::new(refusal(StatusCode::UNAUTHORIZED, "", words)));
        }
        let found = self.repositories.get(&format!("{owner}/{name}"));
        match found.filter(|repository| known || !repository.private) {
            Some(repository) => Ok((repository, known)),
            // Whether there is one is told to those only who are known.
            None if known => Err(Box::new(refusal(StatusCode::NOT_FOUND, "RepoNotFound", "Repository not found"))),
            None => Err(Box::new(refusal(StatusCode::UNAUTHORIZED, "", "Invalid username or password."))),
        }
    }
}

fn refusal(status: StatusCode, code: &str, words: &str) -> Response {
    let mut response = (status, json!({ "error": words }).to_string()).into_response();
    for (name, value) in [("x-error-code", code), ("x-error-message", words)] {
        if let (false, Ok(value)) = (value.is_empty(), value.parse()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Large files lie elsewhere.
fn is_large(file: &str) -> bool {
    [".safetensors", ".gguf", ".bin"].iter().any(|end| file.ends_with(end))
}

async fn describe(
    State(world): State<Arc<World>>,
    At((owner, name, revision)): At<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let repository = match world.open(&owner, &name, &headers) {
        Ok((repository, _)) => repository,
        Err(refusal) => return *refusal,
    };
    if ![COMMIT, "main", "refs/pr/1"].contains(&revision.as_str()) {
        return refusal(StatusCode::NOT_FOUND, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    }
    let files: std::io::Result<Vec<Value>> = repository
        .files
        .iter()
        .map(|(name, path)| {
            let bytes = std::fs::metadata(path)?.len();
            let lfs = is_large(name).then(|| Ok::<_, Error>(json!({ "sha256": sha256(path)?, "size": bytes })));
            Ok(json!({ "rfilename": name, "size": bytes, "lfs": lfs.transpose()? }))
        })
        .collect();
    match files {
        Ok(files) => {
            axum::Json(json!({ "id": format!("{owner}/{name}"), "sha": COMMIT, "siblings": files })).into_response()
        }
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "", &error.to_string()),
    }
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    hash.update(std::fs::read(path)?);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn resolve(
    State(world): State<Arc<World>>,
    At((owner, name, commit, file)): At<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let (repository, known) = match world.open(&owner, &name, &headers) {
        Ok(open) => open,
        Err(refusal) => return *refusal,
    };
    if repository.gated && !known {
        let words = format!("Access to model {owner}/{name} is restricted. You must be authenticated to access it.");
        return refusal(StatusCode::UNAUTHORIZED, "GatedRepo", &words);
    }
    let Some(path) = repository.files.get(&file).filter(|_| commit == COMMIT) else {
        return refusal(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found");
    };
    let mut response = if is_large(&file) {
        let to = format!("http://{}/{owner}/{name}/{file}?signature=secret", world.elsewhere);
        (StatusCode::FOUND, [(header::LOCATION, to)]).into_response()
    } else {
        send(&world, &file, path, &headers)
    };
    if let Ok(commit) = COMMIT.parse() {
        response.headers_mut().insert("x-repo-commit", commit);
    }
    response
}

async fn blob(
    State(world): State<Arc<World>>,
    At((owner, name, file)): At<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    if headers.contains_key(header::AUTHORIZATION) {
        world.seen().leaked += 1;
    }
    match world.repositories.get(&format!("{owner}/{name}")).and_then(|repository| repository.files.get(&file)) {
        Some(path) => send(&world, &file, path, &headers),
        None => refusal(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found"),
    }
}

/// A file, from where the request says.
fn send(world: &Arc<World>, name: &str, path: &Path, headers: &HeaderMap) -> Response {
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let begin = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<u64>().ok());
    let offset = begin.unwrap_or_default();
    let opened = std::fs::File::open(path).and_then(|mut file| {
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(offset))?;
        Ok((file, bytes))
    });
    let (file, bytes) = match opened {
        Ok(opened) => opened,
        Err(error) => return refusal(StatusCode::INTERNAL_SERVER_ERROR, "", &error.to_string()),
    };
    if offset > bytes {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let mut seen = world.seen();
    seen.asked.push((name.to_owned(), offset));
    let reaches = |mishap: &Mishap| matches!(mishap, Mishap::Cut(at) | Mishap::Hold(at) if *at < bytes - offset);
    let mishap = seen.mishap.take_if(|mishap| reaches(mishap));
    drop(seen);
    let pieces = stream::unfold((file, 0_u64, world.clone()), move |(mut file, sent, world)| async move {
        match mishap {
            Some(Mishap::Cut(at)) if sent >= at => return Some((Err(Error::other("cut")), (file, sent, world))),
            Some(Mishap::Hold(at)) if sent >= at => std::future::pending().await,
            _ => {}
        }
        let mut piece = vec![0; PIECE_BYTES];
        let read = file.read(&mut piece).unwrap_or_default();
        piece.truncate(read);
        if piece.is_empty() {
            return None;
        }
        world.seen().served_bytes += read as u64;
        Some((Ok(Bytes::from(piece)), (file, sent + read as u64, world)))
    });
    let status = if begin.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = (status, Body::from_stream(pieces.boxed())).into_response();
    let range = format!("bytes {offset}-{}/{bytes}", bytes.saturating_sub(1));
    let range = begin.map(|_| (header::CONTENT_RANGE, range));
    let length = (header::CONTENT_LENGTH, (bytes - offset).to_string());
    for (name, value) in [(header::ETAG, format!("\"{COMMIT}\"")), length].into_iter().chain(range) {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
