//! `/v1/jobs`: any task of any model, for programs. OpenAI has nothing like it; the words are those of its responses.

use std::sync::Arc;

use accel_protocol::{ErrorCode, Generation, Input, JobError, JobSpec, JobStatus, Task, TaskOptions};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::unknown_model;
use super::{Refusal, spec};
use crate::api::default_deadline_ms;
use crate::http::answers::Answer;
use crate::http::{Resume, Shared, find, follow};
use crate::jobs::Job;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Body {
    model: String,
    #[serde(default = "text_generation")]
    task: Task,
    input: Input,
    #[serde(default)]
    generation: Generation,
    #[serde(default)]
    options: TaskOptions,
    #[serde(default = "default_deadline_ms")]
    deadline_ms: u64,
    /// Each event as it comes, instead of the whole at its end.
    #[serde(default)]
    stream: bool,
    /// Only the job's name; it goes on by itself.
    #[serde(default)]
    background: bool,
}

fn text_generation() -> Task {
    Task::TextGeneration
}

pub(in crate::http) async fn submit(
    State(shared): State<Shared>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    let model = shared.names.resolve(&shared.node, &body.model).await.map_err(unknown_model)?;
    let plain = spec(&model, body.task, body.input, body.generation);
    let spec = JobSpec { options: body.options, deadline_ms: body.deadline_ms, ..plain };
    if body.background {
        let job = shared.node.scheduler.submit(spec, None)?;
        return Ok((StatusCode::ACCEPTED, Json(told(&job.status()))).into_response());
    }
    if body.stream {
        let job = shared.node.scheduler.submit(spec, None)?;
        return Ok(served(job, 0, true));
    }
    let (id, task, name) = (spec.id, spec.task, body.model);
    let whole = Answer::submit(&shared, spec)?.whole().await?;
    let answer = json!({
        "id": id,
        "object": "job",
        "status": "done",
        "model": name,
        "task": task,
        "text": whole.text,
        "results": whole.results,
        "finish_reason": whole.reason,
        "usage": whole.usage,
    });
    Ok(Json(answer).into_response())
}

pub(in crate::http) async fn list(State(shared): State<Shared>) -> Json<Value> {
    let jobs: Vec<Value> = shared.node.scheduler.jobs().all().iter().map(|job| told(&job.status())).collect();
    Json(json!({ "object": "list", "data": jobs }))
}

pub(in crate::http) async fn status_of(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let status = find(&shared, &id)?.status();
    Ok(Json(told(&status)))
}

pub(in crate::http) async fn cancel(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let job = find(&shared, &id)?;
    job.stop();
    Ok(Json(told(&job.status())))
}

pub(in crate::http) async fn events(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Query(Resume { from }): Query<Resume>,
) -> Result<Response, Refusal> {
    let job = find(&shared, &id)?;
    job.log.since(from).map_err(|lost| JobError::new(ErrorCode::UnknownJob, lost))?;
    Ok(served(job, from, false))
}

fn told(status: &JobStatus) -> Value {
    json!({
        "id": status.id,
        "object": "job",
        "status": status.state,
        "model": status.model,
        "tokens": status.tokens,
        "peer": status.peer,
        "age_ms": status.age_ms,
    })
}

/// A job's events as they come. Whoever asked for the job as a stream ends it by going away.
fn served(job: Arc<Job>, from: u64, ends_with_it: bool) -> Response {
    let guard = ends_with_it.then(|| Ending(job.clone()));
    let events = follow(job, from).map(move |record| {
        let _held = &guard;
        let data = Event::default().id(record.number.to_string()).json_data(&record.event);
        (record.event.is_last(), data)
    });
    let told = events.flat_map(|(last, data)| {
        let done = last.then(|| Ok(Event::default().data("[DONE]")));
        stream::iter([data].into_iter().chain(done))
    });
    Sse::new(told).keep_alive(KeepAlive::default()).into_response()
}

struct Ending(Arc<Job>);

impl Drop for Ending {
    fn drop(&mut self) {
        // One that has ended is not changed by it.
        self.0.stop();
    }
}
