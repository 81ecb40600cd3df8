//! Models from the Hugging Face hub, on the node's own interface and for Ollama's clients.

use accel_protocol::JobError;
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use futures::Stream;
use tokio::sync::mpsc;

use super::models::{PROGRESS, progress_then_result};
use super::{Refusal, Shared, lines};
use crate::api::{HubBody, HubPulled, Line, Transfer};
use crate::hub::{HubAccess, HubModel};

pub(super) async fn pull(
    State(shared): State<Shared>,
    Json(HubBody { model, access }): Json<HubBody>,
) -> Result<Response, Refusal> {
    let model = model.parse().map_err(JobError::from)?;
    Ok(lines(pulled(shared, model, access)))
}

/// Downloads and imports a model: how far it is, as it comes, then what it took.
pub(super) fn pulled(
    shared: Shared,
    model: HubModel,
    access: Option<HubAccess>,
) -> impl Stream<Item = Line<Transfer, HubPulled>> + Send {
    let (progress, heard) = mpsc::channel(PROGRESS);
    let work = async move {
        let report = move |now: crate::hub::HubProgress| {
            let transfer = Transfer { done_bytes: now.done_bytes, total_bytes: now.total_bytes, peers: 0 };
            // A reader that lags behind misses a step, not the result.
            let _lagging = progress.try_send(transfer);
        };
        let pulled = shared.hub.pull(&shared.node.store, &shared.names, &model, access, report).await?;
        Ok(HubPulled {
            cid: pulled.cid.to_string(),
            name: pulled.name,
            commit: pulled.commit,
            bytes: pulled.bytes,
            downloaded_bytes: pulled.downloaded_bytes,
            new_blocks: pulled.new_blocks,
            seconds: pulled.seconds,
        })
    };
    progress_then_result(heard, work)
}
