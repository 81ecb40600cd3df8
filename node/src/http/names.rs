//! What models are called, on the node's own interface.

use accel_protocol::{ErrorCode, JobError, ModelName, ModelRef};
use axum::Json;
use axum::extract::{Path, State};

use super::{Refusal, Shared};
use crate::names::Named;

pub(super) async fn list(State(shared): State<Shared>) -> Json<Vec<Named>> {
    Json(shared.names.all())
}

pub(super) async fn resolve(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Json<ModelRef>, Refusal> {
    Ok(Json(shared.names.resolve(&shared.node, &name).await?))
}

pub(super) async fn set(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    Json(model): Json<ModelRef>,
) -> Result<Json<Named>, Refusal> {
    let name = parse(&name)?;
    let named = Named { name: name.clone(), model: model.clone() };
    let names = shared.names.clone();
    written(tokio::task::spawn_blocking(move || names.set(name, model)).await)?;
    Ok(Json(named))
}

pub(super) async fn remove(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Json<Named>, Refusal> {
    let name = parse(&name)?;
    let model = taken_away(&shared, name.clone()).await?;
    let unknown = || JobError::new(ErrorCode::ModelNotFound, format!("{name} is no name here; see accel-cli ls"));
    Ok(Json(Named { model: model.ok_or_else(unknown)?, name }))
}

/// Takes a name away; what it stood for, if it was one.
pub(super) async fn taken_away(shared: &Shared, name: ModelName) -> Result<Option<ModelRef>, Refusal> {
    let names = shared.names.clone();
    written(tokio::task::spawn_blocking(move || names.remove(&name)).await)
}

fn parse(name: &str) -> Result<ModelName, Refusal> {
    Ok(name.parse().map_err(|error| JobError::new(ErrorCode::InvalidRequest, error))?)
}

fn written<T>(result: Result<Result<T, crate::names::NamesError>, tokio::task::JoinError>) -> Result<T, Refusal> {
    let broke_off = |error| JobError::new(ErrorCode::Internal, format!("writing the names broke off: {error}"));
    Ok(result.map_err(broke_off)?.map_err(JobError::from)?)
}
