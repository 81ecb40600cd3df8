//! `POST /v1/chat/completions`

use accel_protocol::limits::{ANSWER_TOKENS, TOP_LOGPROBS};
use accel_protocol::{FileBytes, Input, Message, Role, Task};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::stream::{Chunks, chunks};
use super::{Choosing, Refusal, finish_reason, spec, token_logprobs, usage_of};
use crate::http::answers::{Answer, Likely};
use crate::http::{Shared, unix_seconds};

/// Tokens of an answer where nobody says how many: what keeps a model that does not end from going on for ever.
const TOKENS: u32 = 4096;

#[derive(Debug, Deserialize)]
pub(in crate::http) struct Body {
    model: String,
    messages: Vec<Turn>,
    /// The older name of the next.
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<u8>,
    #[serde(flatten)]
    choosing: Choosing,
}

#[derive(Debug, Deserialize)]
struct Turn {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Piece>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Piece {
    Text {
        text: String,
    },
    ImageUrl {
        image_url: ImageUrl,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct ImageUrl {
    url: String,
}

pub(in crate::http) async fn chat(
    State(shared): State<Shared>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    body.choosing.check_rest()?;
    let model = shared.names.resolve(&shared.node, &body.model).await.map_err(unknown_model)?;
    let logprobs = logprobs(&body)?;
    let max_tokens = body.max_completion_tokens.or(body.max_tokens).unwrap_or(TOKENS).min(ANSWER_TOKENS);
    let (task, input) = conversation(body.messages)?;
    let seed = body.choosing.seed();
    let answers: Vec<Answer> = (0..body.choosing.choices()?)
        .map(|choice| {
            let generation = body.choosing.generation(max_tokens, logprobs, choice, seed);
            Answer::submit(&shared, spec(&model, task, input.clone(), generation))
        })
        .collect::<Result<_, _>>()?;
    let id = format!("chatcmpl-{}", answers.first().map(|answer| answer.id().to_string()).unwrap_or_default());
    let head = json!({ "id": id, "created": unix_seconds(), "model": body.model });
    if body.choosing.streams() {
        let form = Form { head, logprobs: logprobs.is_some() };
        return chunks(answers, form, body.choosing.include_usage()).await;
    }
    let mut choices = Vec::new();
    let (mut usage, mut fingerprint) = (Vec::new(), Value::Null);
    for (index, answer) in answers.into_iter().enumerate() {
        let whole = answer.whole().await?;
        usage.push(whole.usage);
        fingerprint = whole.arithmetic.map_or(fingerprint, |arithmetic| arithmetic.0.into());
        choices.push(json!({
            "index": index,
            "message": { "role": "assistant", "content": whole.text, "refusal": null },
            "logprobs": logprobs.map(|_| token_logprobs(&whole.logprobs)),
            "finish_reason": whole.reason.map(finish_reason),
        }));
    }
    let mut told = head;
    told["object"] = "chat.completion".into();
    told["choices"] = choices.into();
    told["usage"] = usage_of(&usage, 1);
    told["system_fingerprint"] = fingerprint;
    Ok(Json(told).into_response())
}

/// That a model is not known, as clients look for it.
pub(super) fn unknown_model(error: accel_protocol::JobError) -> Refusal {
    Refusal { code: Some("model_not_found"), param: Some("model".to_owned()), ..Refusal::from(error) }
}

/// How many alternatives are reported, if any are.
fn logprobs(body: &Body) -> Result<Option<u8>, Refusal> {
    match (body.logprobs.unwrap_or(false), body.top_logprobs) {
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(Refusal::field("top_logprobs", "top_logprobs: needs logprobs to be true")),
        (true, count) => match count.unwrap_or(0) {
            count @ 0..=TOP_LOGPROBS => Ok(Some(count)),
            count => {
                let words = format!("top_logprobs: expected 0 to {TOP_LOGPROBS}, found {count}");
                Err(Refusal::field("top_logprobs", words))
            }
        },
    }
}

fn conversation(turns: Vec<Turn>) -> Result<(Task, Input), Refusal> {
    let (mut messages, mut pictures) = (Vec::new(), Vec::new());
    for (place, turn) in turns.into_iter().enumerate() {
        let wrong = |words: String| Refusal::field(format!("messages[{place}]"), format!("messages[{place}]: {words}"));
        let role = match turn.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => return Err(wrong(format!("role: expected system, user or assistant, found {other:?}"))),
        };
        if turn.tool_calls.is_some_and(|calls| !calls.is_null()) {
            return Err(wrong("tool_calls: this server calls no tools".to_owned()));
        }
        let mut content = String::new();
        match turn.content {
            None => {}
            Some(Content::Text(text)) => content = text,
            Some(Content::Parts(parts)) => {
                for part in parts {
                    match part {
                        Piece::Text { text } => content.push_str(&text),
                        Piece::ImageUrl { image_url } => pictures.push(picture(&image_url.url).map_err(wrong)?),
                        Piece::Other => {
                            return Err(wrong("content: expected parts of type text or image_url".to_owned()));
                        }
                    }
                }
            }
        }
        messages.push(Message { role, content });
    }
    Ok(if pictures.is_empty() {
        (Task::TextGeneration, Input::Chat(messages))
    } else {
        (Task::ImageTextToText, Input::Pictures(pictures, messages))
    })
}

/// A picture that is inside its address; what strangers name is not fetched.
fn picture(url: &str) -> Result<FileBytes, String> {
    let inside = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    let (_, text) = inside.ok_or("image_url: expected a data: URL with base64; pictures elsewhere are not fetched")?;
    STANDARD.decode(text).map(FileBytes).map_err(|error| format!("image_url: {error}"))
}

struct Form {
    head: Value,
    logprobs: bool,
}

impl Form {
    fn chunk(&self, index: usize, delta: Value, likely: Option<&Likely>, reason: Value) -> Value {
        let mut told = self.head.clone();
        told["object"] = "chat.completion.chunk".into();
        let logprobs = self.logprobs.then(|| likely.map(|likely| token_logprobs(std::slice::from_ref(likely))));
        told["choices"] = json!([{
            "index": index, "delta": delta, "logprobs": logprobs.flatten(), "finish_reason": reason,
        }]);
        told
    }
}

impl Chunks for Form {
    fn begin(&self, index: usize) -> Option<Value> {
        Some(self.chunk(index, json!({ "role": "assistant", "content": "" }), None, Value::Null))
    }

    fn text(&mut self, index: usize, text: &str, likely: Option<&Likely>) -> Value {
        self.chunk(index, json!({ "content": text }), likely, Value::Null)
    }

    fn end(&self, index: usize, reason: &str) -> Value {
        self.chunk(index, json!({}), None, reason.into())
    }

    fn usage(&self, usage: Value) -> Value {
        let mut told = self.head.clone();
        told["object"] = "chat.completion.chunk".into();
        told["choices"] = json!([]);
        told["usage"] = usage;
        told
    }

    fn prompts(&self) -> usize {
        1
    }
}
