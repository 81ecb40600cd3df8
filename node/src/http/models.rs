//! Models on the loopback interface.

use accel_protocol::{ErrorCode, JobError, JobEvent, ModelRef};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use futures::Stream;
use futures::stream;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Refusal, Shared, lines};
use crate::api::{
    AddRequest, Added, Cut, FilePart, FreedView, Line, LoadBody, LoadedView, ModelParts, ModelView, Pulled, TensorPart,
    Transfer,
};
use crate::scheduler::KeepAlive;
use crate::store::{AddOptions, AddReport, Chunker, FetchOptions, Freed, ShownFile, Source};

/// Progress that waits to be sent; what comes while it is full is left out.
pub(super) const PROGRESS: usize = 16;

pub(super) async fn list(State(shared): State<Shared>) -> Result<Json<Vec<ModelView>>, Refusal> {
    let loaded = shared.node.scheduler.models().loaded();
    let listed = shared.node.store.list().await?;
    let view = listed.into_iter().map(|listed| ModelView {
        loaded: loaded.iter().any(|model| model.cid == listed.root.cid),
        names: shared.names.of(&ModelRef::from(listed.root.cid)),
        cid: listed.root.cid.to_string(),
        name: listed.root.name,
        kind: listed.root.kind.to_string(),
        bytes: listed.root.bytes,
        complete: listed.complete,
    });
    Ok(Json(view.collect()))
}

#[derive(Debug, Deserialize)]
pub(super) struct Show {
    #[serde(default)]
    fetch: bool,
}

pub(super) async fn show(
    State(shared): State<Shared>,
    Path(model): Path<String>,
    Query(Show { fetch }): Query<Show>,
) -> Result<Json<ModelParts>, Refusal> {
    let model = parse(&model)?;
    let store = &shared.node.store;
    if fetch {
        let providers = shared.node.swarm.providers(&model).await;
        store.fetch_headers(&model.cid, FetchOptions { providers, pin: false, ..shared.fetch.clone() }).await?;
    }
    let shown = store.show(&model.cid, path_of(&model)).await?;
    let files = shown.files.into_iter();
    let tensors = shown.tensors.into_iter();
    Ok(Json(ModelParts {
        cid: shown.cid.to_string(),
        unread: shown.unread,
        kind: shown.kind.to_string(),
        files: files.map(part).collect(),
        tensors: tensors
            .map(|tensor| TensorPart {
                name: tensor.name,
                shape: tensor.dims,
                dtype: tensor.dtype,
                bytes: tensor.bytes,
                here_bytes: tensor.here_bytes,
            })
            .collect(),
    }))
}

pub(super) async fn add(State(shared): State<Shared>, Json(request): Json<AddRequest>) -> Result<Response, Refusal> {
    if !request.path.is_absolute() {
        let relative = format!("{}: the path must be absolute", request.path.display());
        return Err(JobError::new(ErrorCode::InvalidRequest, relative).into());
    }
    let (progress, heard) = mpsc::channel(PROGRESS);
    let work = async move {
        let chunker = match request.chunker {
            Cut::Tensor => Chunker::Tensor,
            Cut::Fixed => Chunker::UNIXFS_2025,
            Cut::Fixed256k => Chunker::COMPATIBLE,
        };
        let options = AddOptions { chunker, move_source: request.move_source, ..AddOptions::default() };
        let report = move |now: &crate::store::AddProgress| {
            let transfer = Transfer { done_bytes: now.done_bytes, total_bytes: now.total_bytes, peers: 0 };
            // A reader that lags behind misses a step, not the result.
            let _lagging = progress.try_send(transfer);
        };
        let added = shared.node.store.add(&request.path, options, report).await?;
        Ok(told(added))
    };
    Ok(lines(progress_then_result(heard, work)))
}

/// What an import did.
pub(super) fn told(AddReport { root, new_blocks, new_bytes, .. }: AddReport) -> Added {
    Added { cid: root.cid.to_string(), name: root.name, bytes: root.bytes, new_blocks, new_bytes }
}

/// A file, and how much of it is here.
pub(super) fn part(file: ShownFile) -> FilePart {
    FilePart { name: file.name, bytes: file.bytes, here_bytes: file.here_bytes }
}

pub(super) async fn pull(State(shared): State<Shared>, Path(model): Path<String>) -> Result<Response, Refusal> {
    let model = parse(&model)?;
    Ok(lines(pulled(shared, model)))
}

/// Fetches a model: how far it is, as it comes, then what it took.
pub(super) fn pulled(shared: Shared, model: ModelRef) -> impl Stream<Item = Line<Transfer, Pulled>> + Send {
    let (progress, heard) = mpsc::channel(PROGRESS);
    let work = async move {
        let providers = shared.node.swarm.providers(&model).await;
        let options = FetchOptions { providers, ..shared.fetch.clone() };
        let report = move |now: &crate::store::FetchProgress| {
            let total_bytes = now.fetched_bytes + now.missing_bytes;
            // A reader that lags behind misses a step, not the result.
            let transfer = Transfer { done_bytes: now.fetched_bytes, total_bytes, peers: now.peers };
            let _lagging = progress.try_send(transfer);
        };
        let fetched = shared.node.store.fetch(&model.cid, options, report).await?;
        Ok(Pulled {
            cid: fetched.root.cid.to_string(),
            fetched_bytes: fetched.fetched_bytes,
            here_bytes: fetched.here_bytes,
            duplicate_blocks: fetched.duplicate_blocks,
            peers: fetched.sources.iter().map(|share| (named(&share.source), share.bytes)).collect(),
            seconds: fetched.seconds,
        })
    };
    progress_then_result(heard, work)
}

/// Who sent, where that is known.
fn named(source: &Source) -> Option<String> {
    (*source != Source::Bitswap).then(|| source.to_string())
}

pub(super) async fn remove(
    State(shared): State<Shared>,
    Path(model): Path<String>,
) -> Result<Json<FreedView>, Refusal> {
    let model = parse(&model)?;
    if !model.path.is_empty() {
        let words = format!("{model}: a part cannot be removed; name the whole, {}", model.cid);
        return Err(JobError::new(ErrorCode::InvalidRequest, words).into());
    }
    let freed = shared.node.store.remove(&model.cid).await?;
    // Names of what is no longer here would lead nowhere.
    for name in shared.names.of(&model) {
        super::names::taken_away(&shared, name).await?;
    }
    Ok(Json(view(freed)))
}

pub(super) async fn in_memory(State(shared): State<Shared>) -> Json<Vec<LoadedView>> {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let loaded = shared.node.scheduler.models().in_memory().into_iter().map(|loaded| LoadedView {
        names: shared.names.of(&loaded.model),
        model: loaded.model,
        bytes: loaded.bytes,
        idle_ms: ms(loaded.idle),
        busy: loaded.busy,
        stays_ms: loaded.stays.map(ms),
    });
    Json(loaded.collect())
}

/// Fetches a model if need be, and brings it into memory.
pub(super) async fn load(
    State(shared): State<Shared>,
    Path(model): Path<String>,
    Json(LoadBody { keep_alive_seconds }): Json<LoadBody>,
) -> Result<Response, Refusal> {
    let model = parse(&model)?;
    if !shared.node.scheduler.serves() {
        let words = "this node runs no models (jobs.serve), so it loads none";
        return Err(JobError::new(ErrorCode::NoWorker, words).into());
    }
    let (progress, heard) = mpsc::channel(PROGRESS);
    let work = async move {
        let models = shared.node.scheduler.models();
        let report = |event| {
            if let JobEvent::Fetching { done_bytes, total_bytes, peers } = event {
                let peers = usize::try_from(peers).unwrap_or(usize::MAX);
                // A reader that lags behind misses a step, not the result.
                let _lagging = progress.try_send(Transfer { done_bytes, total_bytes, peers });
            }
        };
        drop(models.worker(&model, report).await?);
        if let Some(seconds) = keep_alive_seconds {
            models.keep(&model, KeepAlive::seconds(seconds));
        }
        shared.node.scheduler.tell();
        Ok(in_memory(State(shared.clone())).await.0.into_iter().find(|loaded| loaded.model == model))
    };
    Ok(lines(progress_then_result(heard, work)))
}

/// Drops a model from memory, unless a job is at work on it.
pub(super) async fn unload(
    State(shared): State<Shared>,
    Path(model): Path<String>,
) -> Result<Json<LoadedView>, Refusal> {
    let model = parse(&model)?;
    let found = in_memory(State(shared.clone())).await.0.into_iter().find(|loaded| loaded.model == model);
    let absent = || JobError::new(ErrorCode::ModelNotFound, format!("{model} is not in memory"));
    let found = found.ok_or_else(absent)?;
    if !shared.node.scheduler.models().unload(&model) {
        let words = format!("a job is at work on {model}; cancel it first, see accel-cli ps");
        return Err(JobError::new(ErrorCode::OutOfResources, words).into());
    }
    shared.node.scheduler.tell();
    Ok(Json(found))
}

pub(super) async fn collect(State(shared): State<Shared>) -> Result<Json<FreedView>, Refusal> {
    let downloads = shared.hub.collect().await.map_err(JobError::from)?;
    let freed = view(shared.node.store.gc().await?);
    Ok(Json(FreedView { bytes: freed.bytes + downloads, ..freed }))
}

fn view(freed: Freed) -> FreedView {
    FreedView { blocks: freed.blocks, bytes: freed.bytes }
}

pub(super) fn parse(model: &str) -> Result<ModelRef, Refusal> {
    Ok(model.parse().map_err(|error| JobError::new(ErrorCode::InvalidRequest, error))?)
}

pub(super) fn path_of(model: &ModelRef) -> Option<&str> {
    (!model.path.is_empty()).then_some(model.path.as_str())
}

/// The progress of `work` as it comes, then how it ended. Dropping the stream drops the work.
pub(super) fn progress_then_result<R: Send + 'static>(
    heard: mpsc::Receiver<Transfer>,
    work: impl Future<Output = Result<R, JobError>> + Send + 'static,
) -> impl Stream<Item = Line<Transfer, R>> + Send {
    stream::unfold(Some((heard, Box::pin(work))), |state| async move {
        let (mut heard, mut work) = state?;
        tokio::select! {
            biased;
            Some(transfer) = heard.recv() => Some((Line::Progress(transfer), Some((heard, work)))),
            result = &mut work => {
                let last = result.map_or_else(Line::Error, Line::Result);
                Some((last, None))
            }
        }
    })
}
