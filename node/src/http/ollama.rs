//! What Ollama's clients ask (<https://github.com/ollama/ollama/blob/main/docs/api.md>), answered by the swarm.

use std::time::{Duration, Instant, UNIX_EPOCH};

use accel_protocol::limits::ANSWER_TOKENS;
use accel_protocol::{
    ErrorCode, FileBytes, FinishReason, Generation, Input, JobError, Message, ModelRef, Role, Task, Usage,
};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::stream::{self, StreamExt};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::answers::{Answer, Part};
use super::guard::{self, Denied};
use super::known::{KnownModel, known};
use super::models::pulled;
use super::openai::{spec, vector};
use super::{Shared, hub, lines, retry_after, status};
use crate::api::{Line, Transfer};
use crate::hub::HubModel;
use crate::scheduler::KeepAlive;
use crate::store::RootKind;

/// The paths below `/api`.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/version", get(version))
        .route("/tags", get(tags))
        .route("/ps", get(loaded))
        .route("/show", post(show))
        .route("/chat", post(chat))
        .route("/generate", post(generate))
        .route("/embed", post(embed))
        .route("/pull", post(pull))
        .fallback(unknown)
}

/// Lets pass who may ask.
pub(super) async fn authorise(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match guard::programs(&shared, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(Denied { status, message }) => (status, Json(json!({ "error": message }))).into_response(),
    }
}

async fn unknown(request: Request) -> Response {
    let words = format!("{} {} is not known here", request.method(), request.uri().path());
    (StatusCode::NOT_FOUND, Json(json!({ "error": words }))).into_response()
}

/// An answer other than the result, as Ollama's clients read it.
#[derive(Debug)]
pub(super) struct Refusal(JobError, Option<u64>);

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        Self(error, None)
    }
}

impl From<accel_protocol::Rejection> for Refusal {
    fn from(rejection: accel_protocol::Rejection) -> Self {
        Self(rejection.error, rejection.retry_after_ms)
    }
}

impl From<crate::store::StoreError> for Refusal {
    fn from(error: crate::store::StoreError) -> Self {
        JobError::from(error).into()
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        JobError::new(ErrorCode::InvalidRequest, rejection.body_text()).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(error, wait) = self;
        let status = status(error.code);
        let mut response = (status, Json(json!({ "error": error.message }))).into_response();
        if let Some(seconds) = retry_after(status, wait) {
            response.headers_mut().insert(axum::http::header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

fn invalid(words: impl std::fmt::Display) -> Refusal {
    JobError::new(ErrorCode::InvalidRequest, words).into()
}

async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn tags(State(shared): State<Shared>) -> Result<Json<Value>, Refusal> {
    let models: Vec<Value> = known(&shared).await?.iter().map(told).collect();
    Ok(Json(json!({ "models": models })))
}

async fn loaded(State(shared): State<Shared>) -> Result<Json<Value>, Refusal> {
    let loaded = known(&shared).await?.into_iter().filter(|known| known.is_here && known.loaded);
    let models: Vec<Value> = loaded
        .map(|known| {
            let mut told = told(&known);
            told["size_vram"] = 0.into();
            told
        })
        .collect();
    Ok(Json(json!({ "models": models })))
}

fn told(known: &KnownModel) -> Value {
    let format = match known.kind {
        Some(RootKind::Gguf) => "gguf",
        Some(RootKind::HuggingFace) => "safetensors",
        _ => "",
    };
    json!({
        "name": known.id,
        "model": known.id,
        "modified_at": at(UNIX_EPOCH.into(), Duration::from_secs(known.added_unix_seconds)),
        "size": known.bytes,
        "digest": known.model,
        "details": {
            "parent_model": "", "format": format, "family": "", "families": null, "parameter_size": "",
            "quantization_level": "",
        },
    })
}

#[derive(Debug, Deserialize)]
struct Show {
    /// Older clients call it `name`.
    #[serde(alias = "name")]
    model: String,
}

async fn show(State(shared): State<Shared>, body: Result<Json<Show>, JsonRejection>) -> Result<Json<Value>, Refusal> {
    let Json(Show { model: name }) = body?;
    let model = shared.names.resolve(&shared.node, &name).await?;
    let path = (!model.path.is_empty()).then_some(model.path.as_str());
    let files = shared.node.store.open(&model.cid, path).await?;
    let look = tokio::task::spawn_blocking(move || {
        let kind = files.kind();
        accel_pipelines::summary(std::sync::Arc::new(files)).map(|summary| (summary, kind))
    });
    let broke_off = |error| JobError::new(ErrorCode::Internal, format!("looking at the model broke off: {error}"));
    let (summary, kind) = look.await.map_err(broke_off)?.map_err(JobError::from)?;
    let capabilities: Vec<&str> = summary
        .tasks
        .iter()
        .filter_map(|task| match task {
            Task::TextGeneration => Some("completion"),
            Task::ImageTextToText => Some("vision"),
            Task::Embedding => Some("embedding"),
            _ => None,
        })
        .collect();
    let format = if matches!(kind, Ok(RootKind::Gguf)) { "gguf" } else { "safetensors" };
    Ok(Json(json!({
        "modelfile": format!("FROM {model}\n"),
        "parameters": "",
        "template": "",
        "details": {
            "parent_model": "",
            "format": format,
            "family": summary.class,
            "families": [summary.class],
            "parameter_size": size(summary.parameters),
            "quantization_level": summary.dtype,
        },
        "model_info": {
            "general.architecture": summary.class,
            "general.parameter_count": summary.parameters,
            "accel.cid": model,
            "accel.tasks": summary.tasks,
        },
        "capabilities": capabilities,
    })))
}

/// A number of parameters as people say it.
fn size(parameters: u64) -> String {
    match parameters {
        0..1_000_000 => format!("{:.1}K", parameters as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}M", parameters as f64 / 1e6),
        _ => format!("{:.1}B", parameters as f64 / 1e9),
    }
}

/// What a request says of how to answer.
#[derive(Debug, Deserialize)]
struct Asked {
    model: String,
    #[serde(default = "yes")]
    stream: bool,
    #[serde(default)]
    options: Map<String, Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
struct ChatBody {
    #[serde(default)]
    messages: Vec<Turn>,
    #[serde(flatten)]
    asked: Asked,
}

#[derive(Debug, Deserialize)]
struct Turn {
    role: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    images: Option<Vec<FileBytes>>,
}

#[derive(Debug, Deserialize)]
struct GenerateBody {
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    system: Option<String>,
    #[serde(default)]
    images: Option<Vec<FileBytes>>,
    /// Whether the prompt is to be read as it stands, without the model's chat template.
    #[serde(default)]
    raw: bool,
    #[serde(flatten)]
    asked: Asked,
}

async fn chat(State(shared): State<Shared>, body: Result<Json<ChatBody>, JsonRejection>) -> Result<Response, Refusal> {
    let Json(ChatBody { messages, asked }) = body?;
    if messages.is_empty() {
        return load(&shared, asked, Door::Chat).await;
    }
    let (mut turns, mut pictures) = (Vec::new(), Vec::new());
    for Turn { role, content, images } in messages {
        let role = match role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => return Err(invalid(format!("role: expected system, user or assistant, found {other:?}"))),
        };
        pictures.extend(images.unwrap_or_default());
        turns.push(Message { role, content });
    }
    answer(&shared, asked, Door::Chat, conversation(turns, pictures)).await
}

async fn generate(
    State(shared): State<Shared>,
    body: Result<Json<GenerateBody>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(GenerateBody { prompt, system, images, raw, asked }) = body?;
    let images = images.unwrap_or_default();
    if prompt.is_empty() && images.is_empty() {
        return load(&shared, asked, Door::Generate).await;
    }
    if raw {
        if !images.is_empty() || system.is_some() {
            return Err(invalid("raw: a prompt that is read as it stands has no images and no system beside it"));
        }
        return answer(&shared, asked, Door::Generate, (Task::TextGeneration, Input::Text(prompt))).await;
    }
    let said = |role, content| Message { role, content };
    let system = system.filter(|text| !text.is_empty()).map(|text| said(Role::System, text));
    let turns = system.into_iter().chain([said(Role::User, prompt)]).collect();
    answer(&shared, asked, Door::Generate, conversation(turns, images)).await
}

fn conversation(turns: Vec<Message>, pictures: Vec<FileBytes>) -> (Task, Input) {
    if pictures.is_empty() {
        (Task::TextGeneration, Input::Chat(turns))
    } else {
        (Task::ImageTextToText, Input::Pictures(pictures, turns))
    }
}

/// Which question is answered: the two have the text in different places.
#[derive(Clone, Copy, Debug)]
enum Door {
    Chat,
    Generate,
}

impl Door {
    fn piece(self, model: &str, text: &str) -> Value {
        let now = at(OffsetDateTime::now_utc(), Duration::ZERO);
        let mut told = json!({ "model": model, "created_at": now, "done": false });
        match self {
            Self::Chat => told["message"] = json!({ "role": "assistant", "content": text }),
            Self::Generate => told["response"] = text.into(),
        }
        told
    }
}

/// Brings a model into memory, or drops it: what a request without a question is for.
async fn load(shared: &Shared, asked: Asked, door: Door) -> Result<Response, Refusal> {
    let model = shared.names.resolve(&shared.node, &asked.model).await?;
    let models = shared.node.scheduler.models();
    let keep_alive = keep_alive(&asked.rest)?;
    let reason = if keep_alive == Some(KeepAlive::For(Duration::ZERO)) {
        models.unload(&model);
        "unload"
    } else {
        drop(models.worker(&model, |_| {}).await?);
        "load"
    };
    if let Some(keep_alive) = keep_alive {
        models.keep(&model, keep_alive);
    }
    shared.node.scheduler.tell();
    let mut told = door.piece(&asked.model, "");
    told["done"] = true.into();
    told["done_reason"] = reason.into();
    Ok(Json(told).into_response())
}

/// How long a model is to stay in memory: seconds, a number with a unit such as `5m`, or for ever where it is below 0.
fn keep_alive(rest: &Map<String, Value>) -> Result<Option<KeepAlive>, Refusal> {
    let Some(value) = rest.get("keep_alive").filter(|value| !value.is_null()) else { return Ok(None) };
    let wrong = || invalid(format!("keep_alive: expected seconds, or a text such as 5m, found {value}"));
    let seconds = match value {
        Value::Number(number) => number.as_f64().ok_or_else(wrong)?,
        Value::String(text) => {
            let split = text.find(|c: char| !c.is_ascii_digit() && c != '-' && c != '.').unwrap_or(text.len());
            let (number, unit) = text.split_at(split);
            let unit = match unit {
                "ms" => 1e-3,
                "" | "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
            number.parse::<f64>().map_err(|_| wrong())? * unit
        }
        _ => return Err(wrong()),
    };
    Ok(Some(if seconds < 0.0 {
        KeepAlive::ForEver
    } else {
        KeepAlive::For(Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?)
    }))
}

async fn answer(shared: &Shared, asked: Asked, door: Door, (task, input): (Task, Input)) -> Result<Response, Refusal> {
    check_rest(&asked.rest)?;
    let keep_alive = keep_alive(&asked.rest)?;
    let begun = Instant::now();
    let model: ModelRef = shared.names.resolve(&shared.node, &asked.model).await?;
    let job = spec(&model, task, input, generation(&asked.options)?);
    let mut answer = Answer::submit(shared, job)?;
    let (name, models) = (asked.model, shared.node.scheduler.models().clone());
    // Whoever has the model in memory by then keeps it so long; that may be a peer, who has its own ways.
    let keep = move || keep_alive.map(|keep_alive| models.keep(&model, keep_alive));
    if !asked.stream {
        let whole = answer.whole().await?;
        keep();
        let reason = whole.reason.unwrap_or(FinishReason::EndOfText);
        return Ok(Json(last(door.piece(&name, &whole.text), reason, whole.usage, begun)).into_response());
    }
    // What is wrong before anything has begun is a refusal as any other.
    let first = loop {
        match answer.next().await? {
            Part::Fetching(..) | Part::Begun { .. } => {}
            part => break part,
        }
    };
    let ended = matches!(first, Part::End { .. });
    let rest = if ended { stream::empty().boxed() } else { answer.parts().boxed() };
    let told = stream::iter([Ok(first)]).chain(rest).filter_map(move |part| {
        let piece = match part {
            Ok(Part::Token { text, .. }) if text.is_empty() => None,
            Ok(Part::Token { text, .. }) => Some(door.piece(&name, &text)),
            Ok(Part::End { text, reason, usage, .. }) => {
                keep();
                Some(last(door.piece(&name, &text), reason, usage, begun))
            }
            Ok(Part::Fetching(..) | Part::Begun { .. }) => None,
            Err(error) => Some(json!({ "error": error.message })),
        };
        futures::future::ready(piece)
    });
    Ok(lines(told))
}

/// The last piece of an answer, with what it took, in nanoseconds.
fn last(mut told: Value, reason: FinishReason, usage: Usage, begun: Instant) -> Value {
    let nanoseconds = |ms: f64| (ms * 1e6) as u64;
    let total = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let (prefill, decode) = (nanoseconds(usage.prefill_ms), nanoseconds(usage.decode_ms));
    told["done"] = true.into();
    told["done_reason"] = if reason == FinishReason::Length { "length" } else { "stop" }.into();
    told["total_duration"] = total.into();
    told["load_duration"] = total.saturating_sub(prefill + decode).into();
    told["prompt_eval_count"] = usage.prompt_tokens.into();
    told["prompt_eval_duration"] = prefill.into();
    told["eval_count"] = usage.completion_tokens.into();
    told["eval_duration"] = decode.into();
    told
}

/// Tokens of an answer where nobody says how many.
const TOKENS: u32 = 4096;
/// What Ollama takes where nobody says otherwise.
const TEMPERATURE: f32 = 0.8;
const TOP_K: u32 = 40;
const TOP_P: f32 = 0.9;
/// Options that say how a machine is to work; they change no answer here.
const OF_THE_MACHINE: [&str; 9] =
    ["low_vram", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_keep", "num_thread", "use_mmap", "use_mlock"];

fn generation(options: &Map<String, Value>) -> Result<Generation, Refusal> {
    let mut chosen = Generation {
        max_tokens: TOKENS,
        temperature: TEMPERATURE,
        top_k: TOP_K,
        top_p: TOP_P,
        seed: rand::random(),
        ..Generation::default()
    };
    for (name, value) in options {
        let wrong = |expected| invalid(format!("options.{name}: expected {expected}, found {value}"));
        let number = || value.as_f64().ok_or_else(|| wrong("a number"));
        let whole = || value.as_i64().ok_or_else(|| wrong("a whole number"));
        match name.as_str() {
            "temperature" => chosen.temperature = number()? as f32,
            "top_p" => chosen.top_p = number()? as f32,
            "min_p" => chosen.min_p = number()? as f32,
            "repeat_penalty" => chosen.repetition_penalty = number()? as f32,
            "top_k" => chosen.top_k = u32::try_from(whole()?).map_err(|_| wrong("0 or more"))?,
            "seed" => chosen.seed = whole()?.cast_unsigned(),
            // Below zero: as many as it takes.
            "num_predict" => chosen.max_tokens = u32::try_from(whole()?).unwrap_or(TOKENS).min(ANSWER_TOKENS),
            "stop" => {
                let stop = serde_json::from_value(value.clone())
                    .or_else(|_| serde_json::from_value::<String>(value.clone()).map(|one| vec![one]));
                chosen.stop = stop.map_err(|_| wrong("texts"))?;
            }
            "frequency_penalty" | "presence_penalty" if value.as_f64() == Some(0.0) => {}
            _ if value.is_null() || OF_THE_MACHINE.contains(&name.as_str()) => {}
            _ => return Err(invalid(format!("options.{name}: this server does not do that; leave it out"))),
        }
    }
    Ok(chosen)
}

/// An error for the first field that would be passed over although it asks for something.
fn check_rest(rest: &Map<String, Value>) -> Result<(), Refusal> {
    for (name, value) in rest {
        let asks_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if !asks_nothing && name != "keep_alive" {
            return Err(invalid(format!("{name}: this server does not do that; leave it out")));
        }
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct EmbedBody {
    model: String,
    input: Texts,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    More(Vec<String>),
}

async fn embed(
    State(shared): State<Shared>,
    body: Result<Json<EmbedBody>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Json(EmbedBody { model: name, input }) = body?;
    let begun = Instant::now();
    let model = shared.names.resolve(&shared.node, &name).await?;
    let texts = match input {
        Texts::One(text) => vec![text],
        Texts::More(texts) => texts,
    };
    let job = spec(&model, Task::Embedding, Input::Texts(texts), Generation::default());
    let whole = Answer::submit(&shared, job)?.whole().await?;
    let vectors: Vec<Vec<f32>> = whole.results.into_iter().filter_map(vector).collect();
    let total = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(Json(json!({
        "model": name, "embeddings": vectors, "total_duration": total, "prompt_eval_count": whole.usage.prompt_tokens,
    })))
}

#[derive(Debug, Deserialize)]
struct PullBody {
    #[serde(alias = "name")]
    model: String,
    #[serde(default = "yes")]
    stream: bool,
}

async fn pull(State(shared): State<Shared>, body: Result<Json<PullBody>, JsonRejection>) -> Result<Response, Refusal> {
    let Json(PullBody { model: name, stream: streams }) = body?;
    let told = |line: Line<Transfer, ()>, digest: String| match line {
        Line::Progress(now) => json!({
            "status": format!("pulling {digest}"), "digest": digest, "total": now.total_bytes,
            "completed": now.done_bytes,
        }),
        Line::Result(()) => json!({ "status": "success" }),
        Line::Error(error) => json!({ "error": error.message }),
    };
    let steps = if HubModel::is_meant(&name) {
        let model: HubModel = name.parse().map_err(JobError::from)?;
        let digest = model.to_string();
        hub::pulled(shared, model, None).map(move |line| told(without_result(line), digest.clone())).boxed()
    } else {
        let model = shared.names.resolve(&shared.node, &name).await?;
        let digest = model.to_string();
        pulled(shared, model).map(move |line| told(without_result(line), digest.clone())).boxed()
    };
    if streams {
        return Ok(lines(stream::iter([json!({ "status": "pulling manifest" })]).chain(steps)));
    }
    let end = steps.fold(Value::Null, |_, step| futures::future::ready(step)).await;
    match end.get("error").and_then(Value::as_str) {
        Some(words) => Err(JobError::new(ErrorCode::ModelNotFound, words).into()),
        None => Ok(Json(end).into_response()),
    }
}

fn without_result<R>(line: Line<Transfer, R>) -> Line<Transfer, ()> {
    match line {
        Line::Progress(now) => Line::Progress(now),
        Line::Result(_) => Line::Result(()),
        Line::Error(error) => Line::Error(error),
    }
}

/// A moment as text.
fn at(from: OffsetDateTime, later: Duration) -> String {
    (from + later).format(&Rfc3339).unwrap_or_default()
}
