//! Models as bytes, on the loopback interface: out of the store as files or as a CAR file, and into it from one.
//!
//! The bytes go through the connection, not through a path, so a daemon that runs as another user needs no right to the
//! files of whoever asks.

use std::io::Read;

use accel_protocol::{ErrorCode, JobError};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::models::{parse, part, path_of, told};
use super::{Refusal, Shared};
use crate::api::{Added, ContentsView};
use crate::store::Export;

pub(super) async fn contents(
    State(shared): State<Shared>,
    Path(model): Path<String>,
) -> Result<Json<ContentsView>, Refusal> {
    let model = parse(&model)?;
    let contents = shared.node.store.contents(&model.cid, path_of(&model).unwrap_or_default()).await?;
    let files = contents.files.into_iter().map(part).collect();
    Ok(Json(ContentsView { is_directory: contents.is_directory, files }))
}

pub(super) async fn car(State(shared): State<Shared>, Path(model): Path<String>) -> Result<Response, Refusal> {
    let model = parse(&model)?;
    let export = shared.node.store.export_car(&model.cid, path_of(&model).unwrap_or_default()).await?;
    Ok(sent(export, "application/vnd.ipld.car; version=1"))
}

pub(super) async fn file(State(shared): State<Shared>, Path(model): Path<String>) -> Result<Response, Refusal> {
    let model = parse(&model)?;
    let export = shared.node.store.export_file(&model.cid, path_of(&model).unwrap_or_default()).await?;
    Ok(sent(export, "application/octet-stream"))
}

fn sent(export: Export, kind: &'static str) -> Response {
    let pieces = export.pieces.inspect_err(|error| tracing::warn!(%error, "an export broke off"));
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_LENGTH, export.bytes.to_string())];
    (headers, Body::from_stream(pieces)).into_response()
}

/// What is read at most of a source that nobody wants any more.
const REST_BYTES: u64 = 256 << 20;

/// A source of which, when nobody wants it any more, some more is read all the same: whoever is still sending would not hear
/// why nobody listens.
struct ToEnd<R: Read>(R);

impl<R: Read> Read for ToEnd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Drop for ToEnd<R> {
    fn drop(&mut self) {
        // One that breaks off has gone, and waits for no answer.
        let _ = std::io::copy(&mut self.0.by_ref().take(REST_BYTES), &mut std::io::sink());
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Import {
    #[serde(default)]
    name: String,
}

pub(super) async fn import(
    State(shared): State<Shared>,
    Query(Import { name }): Query<Import>,
    body: Body,
) -> Result<Json<Vec<Added>>, Refusal> {
    if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        return Err(JobError::new(ErrorCode::InvalidRequest, format!("{name:?} is no file name")).into());
    }
    let pieces = body.into_data_stream().map_err(std::io::Error::other);
    let source = ToEnd(SyncIoBridge::new(StreamReader::new(pieces.boxed())));
    let added = shared.node.store.add_car(source, name).await?;
    Ok(Json(added.into_iter().map(told).collect()))
}
