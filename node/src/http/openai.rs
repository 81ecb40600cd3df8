//! What OpenAI's clients ask (<https://platform.openai.com/docs/api-reference>), answered by the swarm.
//!
//! What a request names and this interface does not do is an error that names it, unless leaving it out changes nothing.

mod chat;
mod completions;
mod embeddings;
mod jobs;
mod listing;
mod stream;

use accel_protocol::{
    ErrorCode, FinishReason, Generation, Input, JobError, JobId, JobSpec, ModelRef, Rejection, Task, TaskOptions, Usage,
};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answers::Likely;
use super::guard::{self, Denied};
use super::{Shared, retry_after, status};
use crate::api::default_deadline_ms;

/// The paths below `/v1`.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/models", get(listing::models))
        .route("/models/{*model}", get(listing::model))
        .route("/chat/completions", post(chat::chat))
        .route("/completions", post(completions::completions))
        .route("/embeddings", post(embeddings::embeddings))
        .route("/jobs", get(jobs::list).post(jobs::submit))
        .route("/jobs/{id}", get(jobs::status_of).delete(jobs::cancel))
        .route("/jobs/{id}/events", get(jobs::events))
        .fallback(unknown)
}

/// Lets pass who may ask.
pub(super) async fn authorise(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match guard::programs(&shared, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(Denied { status, message }) => {
            let error = JobError::new(ErrorCode::InvalidRequest, message);
            Refusal { status, code: Some("invalid_api_key"), ..Refusal::from(error) }.into_response()
        }
    }
}

async fn unknown(request: Request) -> Refusal {
    let words = format!("{} {} is not known here", request.method(), request.uri().path());
    let error = JobError::new(ErrorCode::InvalidRequest, words);
    Refusal { status: StatusCode::NOT_FOUND, code: Some("unknown_url"), ..Refusal::from(error) }
}

/// An answer other than the result, in OpenAI's envelope.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: JobError,
    /// OpenAI's word for what is wrong, where it has one.
    code: Option<&'static str>,
    /// The field that is wrong, where it is one.
    param: Option<String>,
    retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A field that is not as it should be.
    fn field(name: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let error = JobError::new(ErrorCode::InvalidRequest, message);
        Self { param: Some(name.into()), ..Self::from(error) }
    }

    /// As clients read it.
    fn envelope(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let own = self.error.code.to_string().replace('-', "_");
        let code = match (self.code, self.error.code) {
            (Some(code), _) => code,
            (None, ErrorCode::ContextLength) => "context_length_exceeded",
            (None, ErrorCode::OutOfResources) => "rate_limit_exceeded",
            (None, _) => &own,
        };
        json!({ "error": { "message": self.error.message, "type": kind, "param": self.param, "code": code } })
    }
}

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        Self { status: status(error.code), error, code: None, param: None, retry_after_ms: None }
    }
}

impl From<Rejection> for Refusal {
    fn from(Rejection { error, retry_after_ms }: Rejection) -> Self {
        Self { retry_after_ms, ..Self::from(error) }
    }
}

impl From<crate::store::StoreError> for Refusal {
    fn from(error: crate::store::StoreError) -> Self {
        JobError::from(error).into()
    }
}

impl From<super::Refusal> for Refusal {
    fn from(super::Refusal { error, retry_after_ms }: super::Refusal) -> Self {
        Self { retry_after_ms, ..Self::from(error) }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        let error = JobError::new(ErrorCode::InvalidRequest, rejection.body_text());
        // What is no JSON and what is no request are both a bad request to OpenAI's clients.
        let too_large = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
        let status = if too_large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
        Self { status, ..Self::from(error) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.envelope())).into_response();
        if let Some(seconds) = retry_after(self.status, self.retry_after_ms) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What chats and completions have in common: how tokens are chosen, and in what form the answer comes.
#[derive(Debug, Deserialize)]
struct Choosing {
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    seed: Option<i64>,
    #[serde(default)]
    stop: Option<OneOrMore>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    // Not OpenAI's, but what other servers of open models take beside.
    #[serde(default)]
    top_k: Option<u32>,
    #[serde(default)]
    min_p: Option<f32>,
    #[serde(default)]
    repetition_penalty: Option<f32>,
    #[serde(default)]
    ignore_eos: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
    /// Padding against those who listen to the lengths of packets; there is none on loopback.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::More(texts) => texts,
        }
    }
}

/// Answers to one request at most.
const CHOICES: u32 = 128;
/// What may be named because leaving it out changes nothing of the answer: who asks, what is kept, what it costs.
const WITHOUT_EFFECT: [&str; 9] = [
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];
/// What may be named with the value that says what is done anyway.
const AS_IT_IS: [(&str, &str); 8] = [
    ("frequency_penalty", "0"),
    ("presence_penalty", "0"),
    ("best_of", "1"),
    ("logit_bias", "{}"),
    ("modalities", "[\"text\"]"),
    ("response_format", "{\"type\":\"text\"}"),
    ("tools", "[]"),
    ("tool_choice", "\"none\""),
];

impl Choosing {
    /// How tokens are chosen for the answer of this number, of at most `max_tokens`.
    fn generation(&self, max_tokens: u32, logprobs: Option<u8>, choice: u32, seed: u64) -> Generation {
        let plain = Generation::default();
        Generation {
            max_tokens,
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(plain.top_k),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(plain.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
            seed: seed.wrapping_add(u64::from(choice)),
            stop: self.stop.clone().map(OneOrMore::into_vec).unwrap_or_default(),
            logprobs,
            ignore_eos: self.ignore_eos.unwrap_or(false),
        }
    }

    /// The seed that was asked for, or one by chance.
    fn seed(&self) -> u64 {
        self.seed.map_or_else(rand::random, i64::cast_unsigned)
    }

    fn choices(&self) -> Result<u32, Refusal> {
        match self.n.unwrap_or(1) {
            n @ 1..=CHOICES => Ok(n),
            n => Err(Refusal::field("n", format!("n: expected 1 to {CHOICES}, found {n}"))),
        }
    }

    fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    fn include_usage(&self) -> bool {
        self.stream_options.unwrap_or_default().include_usage
    }

    /// An error for the first field that would be passed over although it asks for something else.
    fn check_rest(&self) -> Result<(), Refusal> {
        for (name, value) in &self.rest {
            let same = |(other, text): &(&str, &str)| {
                let same_number = || value.as_f64().is_some_and(|number| text.parse() == Ok(number));
                other == name && (same_number() || serde_json::from_str::<Value>(text).is_ok_and(|same| same == *value))
            };
            if !value.is_null() && !WITHOUT_EFFECT.contains(&name.as_str()) && !AS_IT_IS.iter().any(same) {
                return Err(Refusal::field(name, format!("{name}: this server does not do that; leave it out")));
            }
        }
        Ok(())
    }
}

/// A job for one answer.
pub(super) fn spec(model: &ModelRef, task: Task, input: Input, generation: Generation) -> JobSpec {
    JobSpec {
        id: JobId(rand::random()),
        model: model.clone(),
        task,
        input,
        generation,
        options: TaskOptions::default(),
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: default_deadline_ms(),
    }
}

pub(super) use embeddings::vector;

/// Why an answer ends, in OpenAI's words.
fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfText | FinishReason::Stop | FinishReason::Complete => "stop",
    }
}

/// What several answers to one prompt took together.
fn usage_of(all: &[Usage], prompts: usize) -> Value {
    // Each answer has read its prompt; it counts once.
    let each = (all.len() / prompts.max(1)).max(1);
    let prompt: u32 = all.iter().step_by(each).map(|usage| usage.prompt_tokens).sum();
    let completion: u32 = all.iter().map(|usage| usage.completion_tokens).sum();
    json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
}

/// How likely tokens were, as chats tell it.
fn token_logprobs(tokens: &[Likely]) -> Value {
    let entry = |token: &str, logprob: f32| json!({ "token": token, "logprob": logprob, "bytes": token.as_bytes() });
    let content = tokens.iter().map(|likely| {
        let mut told = entry(&likely.token, likely.logprob);
        told["top_logprobs"] = likely.top.iter().map(|(token, logprob)| entry(token, *logprob)).collect();
        told
    });
    json!({ "content": content.collect::<Value>(), "refusal": null })
}
