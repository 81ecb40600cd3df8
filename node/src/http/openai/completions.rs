//! `POST /v1/completions`

use accel_protocol::limits::ANSWER_TOKENS;
use accel_protocol::{Input, Task};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::unknown_model;
use super::stream::{Chunks, chunks};
use super::{Choosing, OneOrMore, Refusal, finish_reason, spec, usage_of};
use crate::http::answers::{Answer, Likely};
use crate::http::{Shared, unix_seconds};

/// OpenAI's default.
const TOKENS: u32 = 16;
/// Alternatives of each token at most, as OpenAI has it.
const LOGPROBS: u8 = 5;
/// Prompts of one request at most.
const PROMPTS: usize = 128;

#[derive(Debug, Deserialize)]
pub(in crate::http) struct Body {
    model: String,
    prompt: Prompt,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    logprobs: Option<u8>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(flatten)]
    choosing: Choosing,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Texts(OneOrMore),
    Tokens(serde::de::IgnoredAny),
}

pub(in crate::http) async fn completions(
    State(shared): State<Shared>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    body.choosing.check_rest()?;
    let model = shared.names.resolve(&shared.node, &body.model).await.map_err(unknown_model)?;
    let prompts = match body.prompt {
        Prompt::Texts(texts) => texts.into_vec(),
        Prompt::Tokens(_) => return Err(Refusal::field("prompt", "prompt: expected a text or several, not tokens")),
    };
    if !(1..=PROMPTS).contains(&prompts.len()) {
        let words = format!("prompt: expected 1 to {PROMPTS} texts, found {}", prompts.len());
        return Err(Refusal::field("prompt", words));
    }
    if let Some(count) = body.logprobs.filter(|count| *count > LOGPROBS) {
        return Err(Refusal::field("logprobs", format!("logprobs: expected 0 to {LOGPROBS}, found {count}")));
    }
    let echo = body.echo.unwrap_or(false);
    if echo && body.logprobs.is_some() {
        return Err(Refusal::field("echo", "echo: the tokens of a prompt have no log probabilities here"));
    }
    let max_tokens = body.max_tokens.unwrap_or(TOKENS).min(ANSWER_TOKENS);
    let (seed, choices) = (body.choosing.seed(), body.choosing.choices()?);
    let each = prompts.iter().flat_map(|prompt| (0..choices).map(move |choice| (prompt, choice)));
    let answers: Vec<Answer> = each
        .map(|(prompt, choice)| {
            let generation = body.choosing.generation(max_tokens, body.logprobs, choice, seed);
            Answer::submit(&shared, spec(&model, Task::TextGeneration, Input::Text(prompt.clone()), generation))
        })
        .collect::<Result<_, _>>()?;
    let id = format!("cmpl-{}", answers.first().map(|answer| answer.id().to_string()).unwrap_or_default());
    let head = json!({
        "id": id, "object": "text_completion", "created": unix_seconds(), "model": body.model,
    });
    let count = prompts.len();
    // What the answer of each number begins with.
    let begins = |index: usize| match prompts.get(index / choices as usize) {
        Some(prompt) if echo => prompt.clone(),
        _ => String::new(),
    };
    if body.choosing.streams() {
        let said = (0..answers.len()).map(begins).collect();
        let form = Form { head, said, lengths: vec![0; answers.len()], prompts: count };
        return chunks(answers, form, body.choosing.include_usage()).await;
    }
    let (mut told, mut usage) = (Vec::new(), Vec::new());
    for (index, answer) in answers.into_iter().enumerate() {
        let whole = answer.whole().await?;
        usage.push(whole.usage);
        told.push(json!({
            "index": index,
            "text": begins(index) + &whole.text,
            "logprobs": body.logprobs.map(|_| logprobs(&whole.logprobs, 0)),
            "finish_reason": whole.reason.map(finish_reason),
        }));
    }
    let mut answer = head;
    answer["choices"] = told.into();
    answer["usage"] = usage_of(&usage, count);
    Ok(Json(answer).into_response())
}

/// How likely tokens were, as completions tell it; the first begins after so many characters.
fn logprobs(tokens: &[Likely], mut offset: usize) -> Value {
    let (mut texts, mut values, mut offsets, mut tops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for likely in tokens {
        texts.push(likely.token.clone());
        values.push(likely.logprob);
        offsets.push(offset);
        offset += likely.token.chars().count();
        tops.push(likely.top.iter().map(|(text, value)| (text.clone(), json!(value))).collect::<Map<_, _>>());
    }
    json!({ "tokens": texts, "token_logprobs": values, "text_offset": offsets, "top_logprobs": tops })
}

struct Form {
    head: Value,
    /// What each answer begins with.
    said: Vec<String>,
    /// Characters of each answer so far.
    lengths: Vec<usize>,
    prompts: usize,
}

impl Form {
    fn chunk(&self, index: usize, text: &str, logprobs: Option<Value>, reason: Option<&str>) -> Value {
        let mut told = self.head.clone();
        told["choices"] = json!([{ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason }]);
        told
    }
}

impl Chunks for Form {
    fn begin(&self, index: usize) -> Option<Value> {
        let said = self.said.get(index).filter(|said| !said.is_empty())?;
        Some(self.chunk(index, said, None, None))
    }

    fn text(&mut self, index: usize, text: &str, likely: Option<&Likely>) -> Value {
        let offset = self.lengths.get(index).copied().unwrap_or_default();
        let told = likely.map(|likely| logprobs(std::slice::from_ref(likely), offset));
        if let (Some(length), Some(likely)) = (self.lengths.get_mut(index), likely) {
            *length += likely.token.chars().count();
        }
        self.chunk(index, text, told, None)
    }

    fn end(&self, index: usize, reason: &str) -> Value {
        self.chunk(index, "", None, Some(reason))
    }

    fn usage(&self, usage: Value) -> Value {
        let mut told = self.head.clone();
        told["choices"] = json!([]);
        told["usage"] = usage;
        told
    }

    fn prompts(&self) -> usize {
        self.prompts
    }
}
