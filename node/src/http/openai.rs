//! What OpenAI's clients ask (<https://platform.openai.com/docs/api-reference>), answered by the swarm.

use std::sync::Arc;

use accel_protocol::{
    ErrorCode, Generation, Input, JobError, JobEvent, JobId, JobSpec, ModelRef, Task, TaskOptions, TaskResult,
};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Shared, follow, is_authorised, status};
use crate::api::default_deadline_ms;
use crate::jobs::Job;

/// An answer other than the result, in OpenAI's envelope.
#[derive(Debug)]
pub(super) struct Refusal(StatusCode, JobError);

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        Self(status(error.code), error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, error) = self;
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let body = json!({ "error": { "message": error.message, "type": kind, "param": null, "code": error.code } });
        (status, Json(body)).into_response()
    }
}

/// Lets pass who has the secret.
pub(super) async fn authorise(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if is_authorised(&shared, &request) {
        return next.run(request).await;
    }
    let error = JobError::new(ErrorCode::InvalidRequest, "the bearer token of api.json is missing or wrong");
    Refusal(StatusCode::UNAUTHORIZED, error).into_response()
}

/// `POST /v1/embeddings`
#[derive(Debug, Deserialize)]
pub(super) struct EmbeddingsBody {
    model: ModelRef,
    input: OneOrMore,
    #[serde(default)]
    encoding_format: Encoding,
    /// Vectors of another length than the model's cannot be had.
    #[serde(default)]
    dimensions: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    /// Little-endian.
    Base64(String),
}

pub(super) async fn embeddings(
    State(shared): State<Shared>,
    body: Result<Json<EmbeddingsBody>, axum::extract::rejection::JsonRejection>,
) -> Result<Response, Refusal> {
    let invalid = |message: String| JobError::new(ErrorCode::InvalidRequest, message);
    let Json(body) = body.map_err(|error| invalid(error.body_text()))?;
    let input = match body.input {
        OneOrMore::One(text) => Input::Text(text),
        OneOrMore::More(texts) => Input::Texts(texts),
    };
    let spec = JobSpec {
        id: JobId(rand::random()),
        model: body.model.clone(),
        task: Task::Embedding,
        input,
        generation: Generation::default(),
        options: TaskOptions::default(),
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: default_deadline_ms(),
    };
    let job = shared.node.scheduler.submit(spec, None).map_err(|rejection| rejection.error)?;
    let _abandoned = Abandoned(job.clone());
    let events = follow(job, 0);
    futures::pin_mut!(events);
    while let Some(record) = events.next().await {
        match record.event {
            JobEvent::Done { results, usage, .. } => {
                let vectors: Vec<Vec<f32>> = results.into_iter().filter_map(vector).collect();
                let width = vectors.first().map_or(0, Vec::len);
                if let Some(asked) = body.dimensions.filter(|asked| *asked != width) {
                    let words = format!("dimensions: this model gives vectors of {width}, not of {asked}");
                    return Err(invalid(words).into());
                }
                let datum = |(index, vector): (usize, Vec<f32>)| {
                    let embedding = match body.encoding_format {
                        Encoding::Float => Vector::Float(vector),
                        Encoding::Base64 => {
                            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                            Vector::Base64(STANDARD.encode(bytes))
                        }
                    };
                    json!({ "object": "embedding", "index": index, "embedding": embedding })
                };
                let data: Vec<_> = vectors.into_iter().enumerate().map(datum).collect();
                let usage = json!({ "prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens });
                let answer = json!({ "object": "list", "data": data, "model": body.model, "usage": usage });
                return Ok(Json(answer).into_response());
            }
            JobEvent::Failed { error } => return Err(error.into()),
            JobEvent::Cancelled => return Err(JobError::new(ErrorCode::Internal, "the job was cancelled").into()),
            _ => {}
        }
    }
    Err(JobError::new(ErrorCode::Internal, "the answer broke off without an end").into())
}

/// A job whose answer nobody waits for any more once this is dropped; one that has ended is not changed by it.
struct Abandoned(Arc<Job>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn vector(result: TaskResult) -> Option<Vec<f32>> {
    match result {
        TaskResult::Features { values, .. } => Some(values),
        _ => None,
    }
}
