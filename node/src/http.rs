//! The node's interface: its own, which the command line uses, and that of OpenAI's and Ollama's clients. It only
//! translates: every answer comes from the swarm, the store or the scheduler.

mod answers;
mod experts;
mod exports;
mod guard;
mod hub;
mod known;
mod models;
mod names;
mod ollama;
mod openai;
mod plans;
mod swarm;
mod watch;

use std::sync::Arc;

use accel_ipfs::Reachability;
use accel_protocol::limits::BLOB_INPUT_BYTES;
use accel_protocol::{Device, ErrorCode, EventRecord, JobError, JobId, JobSpec, JobStatus, Rejection};
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::stream::{self, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::advert::Advertiser;
use crate::api::{JobBody, Line, NodeView, PREFIX, Reach};
use crate::daemon::Reload;
use crate::hub::Hub;
use crate::jobs::{Job, Owner};
use crate::names::Names;
use crate::peers::PeerView;
use crate::store::FetchOptions;
use crate::swarm::SwarmError;

use guard::Denied;
pub use guard::Keys;

/// What the handlers work with.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The node's parts.
    pub node: Advertiser,
    /// How models are fetched.
    pub fetch: FetchOptions,
    /// What a request must carry.
    pub keys: Keys,
    /// What models are called.
    pub names: Names,
    /// How the node is told that it is to be in another swarm.
    pub reload: Reload,
    /// What was downloaded from hubs.
    pub hub: Hub,
}

/// Serves until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn run(shared: Shared, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
    let limit = || DefaultBodyLimit::max(usize::try_from(BLOB_INPUT_BYTES).unwrap_or(usize::MAX));
    let counted = || from_fn_with_state(shared.clone(), watch::count);
    let openai = openai::routes().layer(from_fn_with_state(shared.clone(), openai::authorise)).layer(limit());
    let ollama = ollama::routes().layer(from_fn_with_state(shared.clone(), ollama::authorise)).layer(limit());
    let watched = watch::routes().layer(from_fn_with_state(shared.clone(), openai::authorise));
    let programs = Router::new().nest("/v1", openai).nest("/api", ollama).layer(counted()).merge(watched);
    let routes = Router::new()
        .route("/node", get(node))
        .route("/peers", get(peers).post(connect))
        .route("/swarm/reload", post(swarm::reload))
        .route("/hardware", get(hardware))
        .route("/models", get(models::list).post(models::add))
        .route("/cars", post(exports::import))
        .route("/cars/{*model}", get(exports::car))
        .route("/contents/{*model}", get(exports::contents))
        .route("/files/{*model}", get(exports::file))
        .route("/models/{*model}", get(models::show).post(models::pull).delete(models::remove))
        .route("/loaded", get(models::in_memory))
        .route("/loaded/{*model}", post(models::load).delete(models::unload))
        .route("/plans/{*model}", post(plans::plan))
        .route("/spread", get(plans::spread))
        .route("/experts/{*model}", get(experts::experts))
        .route("/gc", post(models::collect))
        .route("/hub", post(hub::pull))
        .route("/names", get(names::list))
        .route("/names/{*name}", get(names::resolve).put(names::set).delete(names::remove))
        .route("/jobs", get(jobs).post(submit))
        .route("/jobs/{id}", get(job).delete(cancel))
        .route("/jobs/{id}/events", get(events))
        .layer(from_fn_with_state(shared.clone(), authorise))
        .layer(limit());
    let router = Router::new().nest(PREFIX, routes).merge(programs).merge(watch::open_routes()).with_state(shared);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// An answer other than the result.
#[derive(Debug)]
struct Refusal {
    error: JobError,
    retry_after_ms: Option<u64>,
}

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        Self { error, retry_after_ms: None }
    }
}

impl From<Rejection> for Refusal {
    fn from(Rejection { error, retry_after_ms }: Rejection) -> Self {
        Self { error, retry_after_ms }
    }
}

impl From<SwarmError> for Refusal {
    fn from(error: SwarmError) -> Self {
        let code = match &error {
            SwarmError::Unreachable { .. } | SwarmError::Silent { .. } | SwarmError::Misfit { .. } => {
                ErrorCode::NoWorker
            }
            SwarmError::NoPeerId { .. } => ErrorCode::InvalidRequest,
            _ => ErrorCode::Internal,
        };
        JobError::new(code, error).into()
    }
}

impl From<crate::store::StoreError> for Refusal {
    fn from(error: crate::store::StoreError) -> Self {
        JobError::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = status(self.error.code);
        let mut response = (status, Json(Line::<(), ()>::Error(self.error))).into_response();
        if let Some(seconds) = retry_after(status, self.retry_after_ms) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The status that an error's kind has in HTTP.
fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidRequest | ErrorCode::ContextLength | ErrorCode::ModelInvalid | ErrorCode::Unsupported => {
            StatusCode::BAD_REQUEST
        }
        ErrorCode::ModelNotFound | ErrorCode::UnknownJob => StatusCode::NOT_FOUND,
        ErrorCode::OutOfResources => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::NoWorker | ErrorCode::WorkerLost | ErrorCode::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Seconds after which trying again makes sense, where it makes sense at all.
fn retry_after(status: StatusCode, wait_ms: Option<u64>) -> Option<u64> {
    /// Where nobody has said how long: a job or two later.
    const WAIT_MS: u64 = 2_000;
    let again = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    again.then(|| wait_ms.unwrap_or(WAIT_MS).div_ceil(1000))
}

async fn authorise(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match guard::own(&shared, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(Denied { status, message }) => {
            let error = JobError::new(ErrorCode::InvalidRequest, message);
            (status, Json(Line::<(), ()>::Error(error))).into_response()
        }
    }
}

/// An answer of lines of JSON.
fn lines<T: Serialize + Send + 'static>(values: impl Stream<Item = T> + Send + 'static) -> Response {
    let bytes = values.map(|value| {
        let mut line = serde_json::to_vec(&value)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(bytes)).into_response()
}

async fn node(State(shared): State<Shared>) -> Result<Json<NodeView>, Refusal> {
    let swarm = &shared.node.swarm;
    let peer = swarm.id();
    let addresses: Vec<String> =
        swarm.listen_addresses().await?.iter().map(|address| format!("{address}/p2p/{peer}")).collect();
    let is_relayed = addresses.iter().any(|address| address.contains("/p2p-circuit"));
    let usage = shared.node.store.usage();
    Ok(Json(NodeView {
        peer: peer.to_string(),
        addresses,
        swarm: swarm.name().map(ToString::to_string),
        starts: shared.reload.starts(),
        reachability: match swarm.reachability() {
            Reachability::Unknown => Reach::Unknown,
            Reachability::Public => Reach::Public,
            Reachability::Private if is_relayed => Reach::Relayed,
            Reachability::Private => Reach::Private,
        },
        agent: crate::AGENT.to_owned(),
        arithmetic: accel_pipelines::arithmetic().0,
        serves_jobs: shared.node.scheduler.serves(),
        load: shared.node.scheduler.load(),
        used_bytes: usage.used_bytes,
        quota_bytes: usage.quota_bytes,
    }))
}

async fn peers(State(shared): State<Shared>) -> Json<Vec<PeerView>> {
    Json(shared.node.swarm.peers().view())
}

async fn connect(State(shared): State<Shared>, Json(address): Json<String>) -> Result<Json<String>, Refusal> {
    let parsed = address.parse().map_err(|error| {
        JobError::new(ErrorCode::InvalidRequest, format!("{address:?} is no multiaddress: {error}"))
    })?;
    Ok(Json(shared.node.swarm.connect_to(&parsed).await?.to_string()))
}

async fn hardware() -> Result<Json<Vec<Device>>, Refusal> {
    let probe = tokio::task::spawn_blocking(crate::hardware::probe).await;
    Ok(Json(probe.map_err(|error| JobError::new(ErrorCode::Internal, format!("the probe broke off: {error}")))?))
}

async fn jobs(State(shared): State<Shared>) -> Json<Vec<JobStatus>> {
    Json(shared.node.scheduler.jobs().all().iter().map(|job| job.status()).collect())
}

async fn submit(State(shared): State<Shared>, Json(body): Json<JobBody>) -> Result<Response, Refusal> {
    let spec = JobSpec {
        id: body.id.unwrap_or_else(|| JobId(rand::random())),
        model: body.model,
        task: body.task,
        input: body.input,
        generation: body.generation,
        options: body.options,
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: body.deadline_ms,
    };
    let first = body.peer.map(|text| {
        text.parse()
            .map_err(|_| JobError::new(ErrorCode::InvalidRequest, format!("peer: expected a peer id, found {text:?}")))
    });
    Ok(lines(follow(shared.node.scheduler.submit(spec, first.transpose()?)?, 0)))
}

fn find(shared: &Shared, id: &str) -> Result<Arc<Job>, Refusal> {
    let parsed = id.parse::<JobId>().map_err(|error| JobError::new(ErrorCode::InvalidRequest, error))?;
    let job = shared.node.scheduler.jobs().get(parsed, Owner::Local);
    Ok(job.ok_or_else(|| JobError::new(ErrorCode::UnknownJob, format!("job {id} is not known here")))?)
}

async fn job(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Json<JobStatus>, Refusal> {
    Ok(Json(find(&shared, &id)?.status()))
}

async fn cancel(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Json<JobStatus>, Refusal> {
    let job = find(&shared, &id)?;
    job.stop();
    Ok(Json(job.status()))
}

#[derive(Debug, Deserialize)]
struct Resume {
    #[serde(default)]
    from: u64,
}

async fn events(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Query(Resume { from }): Query<Resume>,
) -> Result<Response, Refusal> {
    let job = find(&shared, &id)?;
    job.log.since(from).map_err(|lost| JobError::new(ErrorCode::UnknownJob, lost))?;
    Ok(lines(follow(job, from)))
}

/// A job's events from number `from` on, to the last one.
fn follow(job: Arc<Job>, from: u64) -> impl Stream<Item = EventRecord> + Send {
    stream::unfold((job, from), |(job, from)| async move {
        // A reader that is so slow that events are dropped before it takes them sees the stream end early.
        let events = job.log.next(from).await.unwrap_or_default();
        let next = events.last()?.number + 1;
        Some((stream::iter(events), (job, next)))
    })
    .flatten()
}

/// Now, as clients read it.
fn unix_seconds() -> u64 {
    crate::peers::unix_ms() / 1000
}
