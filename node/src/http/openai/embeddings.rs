//! `POST /v1/embeddings`

use accel_protocol::{Generation, Input, Task, TaskResult};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::chat::unknown_model;
use super::{OneOrMore, Refusal, spec};
use crate::http::Shared;
use crate::http::answers::Answer;

#[derive(Debug, Deserialize)]
pub(in crate::http) struct Body {
    model: String,
    input: OneOrMore,
    #[serde(default)]
    encoding_format: Encoding,
    /// Vectors of another length than the model's cannot be had.
    #[serde(default)]
    dimensions: Option<usize>,
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

pub(in crate::http) async fn embeddings(
    State(shared): State<Shared>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    let model = shared.names.resolve(&shared.node, &body.model).await.map_err(unknown_model)?;
    let input = match body.input {
        OneOrMore::One(text) => Input::Text(text),
        OneOrMore::More(texts) => Input::Texts(texts),
    };
    let job = spec(&model, Task::Embedding, input, Generation::default());
    let whole = Answer::submit(&shared, job)?.whole().await?;
    let vectors: Vec<Vec<f32>> = whole.results.into_iter().filter_map(vector).collect();
    let width = vectors.first().map_or(0, Vec::len);
    if let Some(asked) = body.dimensions.filter(|asked| *asked != width) {
        let words = format!("dimensions: this model gives vectors of {width}, not of {asked}");
        return Err(Refusal::field("dimensions", words));
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
    let tokens = whole.usage.prompt_tokens;
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(Json(json!({ "object": "list", "data": data, "model": body.model, "usage": usage })).into_response())
}

/// The vector of a text.
pub(in crate::http) fn vector(result: TaskResult) -> Option<Vec<f32>> {
    match result {
        TaskResult::Features { values, .. } => Some(values),
        _ => None,
    }
}
