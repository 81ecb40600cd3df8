//! What watches a node: `/health`, `/ready` and `/metrics`.

use accel_protocol::{ErrorCode, JobError};
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{Refusal, Shared};
use crate::metrics;

/// What anybody may ask who reaches the address: it tells no more than that.
pub(super) fn open_routes() -> Router<Shared> {
    Router::new().route("/", get(root)).route("/health", get(health)).route("/ready", get(ready))
}

/// What is asked with a key, where there is one.
pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/metrics", get(metrics))
}

async fn root() -> &'static str {
    "accel is running: OpenAI's interface is below /v1, Ollama's below /api\n"
}

async fn health() -> &'static str {
    "ok\n"
}

/// Whether jobs are taken: here, or by a peer that has said so.
async fn ready(State(shared): State<Shared>) -> Response {
    let takes = |(_, peer): &(_, crate::peers::Peer)| peer.advert.as_ref().is_some_and(|advert| advert.serves_jobs);
    if shared.node.scheduler.serves() || shared.node.swarm.peers().all().iter().any(takes) {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "nobody who can be reached takes jobs\n").into_response()
}

async fn metrics(State(shared): State<Shared>) -> Result<Response, Refusal> {
    let scheduler = &shared.node.scheduler;
    let (load, usage, memory) = (scheduler.load(), shared.node.store.usage(), scheduler.models().memory());
    let state = metrics::State {
        running: load.running,
        waiting: load.queued,
        peers: shared.node.swarm.peers().all().iter().filter(|(_, peer)| peer.is_connected()).count(),
        models: scheduler.models().loaded().len(),
        memory_used_bytes: memory.used_bytes(),
        memory_budget_bytes: Some(memory.budget_bytes()).filter(|bytes| *bytes < u64::MAX),
        store_used_bytes: usage.used_bytes,
        store_quota_bytes: usage.quota_bytes,
    };
    let text = scheduler.metrics().text(state).map_err(|error| JobError::new(ErrorCode::Internal, error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// Counts a request, under its route and not its path, which may have names in it.
pub(super) async fn count(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    shared.node.scheduler.metrics().answered(&route, response.status().as_u16());
    response
}
