//! `GET /v1/models`: what can be asked here, in memory, on this disk, or with a peer.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::Refusal;
use super::chat::unknown_model;
use crate::http::Shared;
use crate::http::known::{KnownModel, known};

pub(in crate::http) async fn models(State(shared): State<Shared>) -> Result<Json<Value>, Refusal> {
    let data: Vec<Value> = known(&shared).await?.iter().map(told).collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

pub(in crate::http) async fn model(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let model = shared.names.resolve(&shared.node, &name).await.map_err(unknown_model)?;
    let found = known(&shared).await?.into_iter().find(|known| known.model == model);
    let found = found.ok_or_else(|| {
        let words = format!("nobody who can be reached has told that it has {name}");
        unknown_model(accel_protocol::JobError::new(accel_protocol::ErrorCode::ModelNotFound, words))
    })?;
    Ok(Json(told(&KnownModel { id: name, ..found })))
}

fn told(known: &KnownModel) -> Value {
    json!({
        "id": known.id,
        "object": "model",
        "created": known.added_unix_seconds,
        "owned_by": if known.is_here { "this node" } else { "the swarm" },
        "cid": known.model,
        "bytes": known.bytes,
        "loaded": known.loaded,
    })
}
