//! Models on disk.

use std::path::Path;

use accel_protocol::model::InvalidModelRef;
use accel_protocol::{ErrorCode, JobError, ModelName, ModelRef};

use super::CliError;
use super::output::{Output, bytes, table};
use crate::api::{AddRequest, Added, Api, ApiError, Cut, LoadBody, LoadedView, ModelParts};

/// What names a model, before anybody is asked: what says that it is a CID has to be one.
pub(super) fn named(text: &str) -> Result<String, InvalidModelRef> {
    if text.starts_with("ipfs://") || text.starts_with("/ipfs/") {
        text.parse::<ModelRef>()?;
    }
    Ok(text.to_owned())
}

/// The model that a person names.
pub(super) async fn find(api: &Api, text: &str) -> Result<ModelRef, CliError> {
    // A CID needs nobody who knows it.
    match text.parse() {
        Ok(model) => Ok(model),
        Err(_) => Ok(api.resolve(text).await?),
    }
}

pub(super) fn parse(model: &str) -> Result<ModelRef, CliError> {
    model.parse().map_err(|error| CliError::Usage(format!("{error}")))
}

pub(super) async fn import(
    api: &Api,
    path: &Path,
    chunker: Cut,
    move_source: bool,
    output: &Output,
) -> Result<Added, CliError> {
    // The daemon's directory is another, so it gets the whole path; a link is kept, for --move releases the link.
    let path = std::path::absolute(path).map_err(|source| CliError::File { path: path.to_owned(), source })?;
    if let Err(source) = std::fs::metadata(&path) {
        return Err(CliError::File { path, source });
    }
    let bar = output.bytes_bar("importing");
    let request = AddRequest { path, chunker, move_source };
    Ok(api.add(&request, |now| bar.show(now.done_bytes, now.total_bytes)).await?)
}

pub(super) async fn add(
    api: &Api,
    path: &Path,
    chunker: Cut,
    move_source: bool,
    output: &Output,
) -> Result<(), CliError> {
    let added = import(api, path, chunker, move_source, output).await?;
    tell(&added, output);
    output.value(&added, |added| added.cid.clone())
}

/// Tells a person what an import took.
pub(super) fn tell(added: &Added, output: &Output) {
    let Added { name, new_blocks, .. } = added;
    output.note(&format!("{name}: {}, {new_blocks} new blocks ({})", bytes(added.bytes), bytes(added.new_bytes)));
}

pub(super) async fn pull(api: &Api, model: &ModelRef, output: &Output) -> Result<(), CliError> {
    let bar = output.bytes_bar("fetching");
    let pulled = api.pull(model, |now| bar.show(now.done_bytes, now.total_bytes)).await?;
    drop(bar);
    output.value(&pulled, |pulled| {
        let rate = pulled.fetched_bytes as f64 / 1e6 / pulled.seconds.max(1e-9);
        format!(
            "{}: {} from {} peers in {:.2} s ({rate:.0} MB/s), {} were here",
            pulled.cid,
            bytes(pulled.fetched_bytes),
            pulled.peers.len(),
            pulled.seconds,
            bytes(pulled.here_bytes),
        )
    })
}

pub(super) async fn list(api: &Api, output: &Output) -> Result<(), CliError> {
    let models = api.models().await?;
    output.value(&models, |models| {
        if models.is_empty() {
            return "no models".to_owned();
        }
        let rows = models.iter().map(|model| {
            let state = match (model.complete, model.loaded) {
                (false, _) => "incomplete",
                (true, true) => "in memory",
                (true, false) => "on disk",
            };
            let names = if model.names.is_empty() { model.name.clone() } else { listed(&model.names) };
            vec![names, model.cid.clone(), model.kind.clone(), bytes(model.bytes), state.to_owned()]
        });
        table(&["NAME", "CID", "KIND", "SIZE", "STATE"], rows)
    })
}

fn listed(names: &[ModelName]) -> String {
    names.iter().map(ModelName::as_str).collect::<Vec<_>>().join(", ")
}

pub(super) async fn tag(api: &Api, name: &ModelName, model: &ModelRef, output: &Output) -> Result<(), CliError> {
    let named = api.set_name(name, model).await?;
    output.value(&named, |named| format!("{} is {}", named.name, named.model))
}

pub(super) async fn untag(api: &Api, name: &ModelName, output: &Output) -> Result<(), CliError> {
    let named = api.remove_name(name).await?;
    output.value(&named, |named| format!("{} was {}", named.name, named.model))
}

pub(super) async fn load(
    api: &Api,
    model: &ModelRef,
    keep_alive_seconds: Option<u64>,
    output: &Output,
) -> Result<(), CliError> {
    let bar = output.bytes_bar("fetching");
    let body = LoadBody { keep_alive_seconds };
    let loaded = api.load(model, body, |now| bar.show(now.done_bytes, now.total_bytes)).await?;
    drop(bar);
    output.value(&loaded, |loaded| match loaded {
        Some(loaded) => format!("{} takes {} of memory", loaded.model, bytes(loaded.bytes)),
        None => format!("{model} was loaded, and another model has taken its room"),
    })
}

pub(super) async fn stop(api: &Api, model: &ModelRef, output: &Output) -> Result<(), CliError> {
    let stopped = api.unload(model).await?;
    output.value(&stopped, |stopped| format!("{} gave back {} of memory", stopped.model, bytes(stopped.bytes)))
}

/// The models in memory, as a table.
pub(super) fn in_memory(loaded: &[LoadedView]) -> String {
    if loaded.is_empty() {
        return "no models in memory".to_owned();
    }
    let seconds = |ms: u64| format!("{:.0} s", ms as f64 / 1e3);
    let rows = loaded.iter().map(|loaded| {
        let called = if loaded.names.is_empty() { loaded.model.to_string() } else { listed(&loaded.names) };
        let (used, stays) = match (loaded.busy, loaded.stays_ms) {
            (true, _) => ("now".to_owned(), "while in use".to_owned()),
            (false, stays) => {
                (format!("{} ago", seconds(loaded.idle_ms)), stays.map_or("for ever".to_owned(), seconds))
            }
        };
        vec![called, bytes(loaded.bytes), used, stays]
    });
    table(&["MODEL", "MEMORY", "LAST USE", "STAYS"], rows)
}

pub(super) async fn show(api: &Api, model: &ModelRef, tensors: bool, output: &Output) -> Result<(), CliError> {
    // What is not here is looked up in the swarm, headers only.
    let parts = match api.model(model, false).await {
        Err(ApiError::Refused(JobError { code: ErrorCode::ModelNotFound, .. })) => api.model(model, true).await?,
        other => other?,
    };
    let parts = if tensors { parts } else { ModelParts { tensors: Vec::new(), ..parts } };
    output.value(&parts, |parts| {
        let files = parts.files.iter().map(|file| {
            let name = if file.name.is_empty() { &parts.cid } else { &file.name };
            vec![name.clone(), bytes(file.bytes), share(file.here_bytes, file.bytes)]
        });
        let mut text = format!("{}  {}\n\n{}", parts.cid, parts.kind, table(&["FILE", "SIZE", "HERE"], files));
        if tensors {
            let rows = parts.tensors.iter().map(|tensor| {
                vec![
                    tensor.name.clone(),
                    format!("{:?}", tensor.shape),
                    tensor.dtype.clone(),
                    tensor.bytes.to_string(),
                    share(tensor.here_bytes, tensor.bytes),
                ]
            });
            text.push_str(&format!("\n\n{}", table(&["TENSOR", "SHAPE", "TYPE", "BYTES", "HERE"], rows)));
            for file in &parts.unread {
                text.push_str(&format!(
                    "\n{file}: its header is not here, so its tensors are not known; pull the model"
                ));
            }
        }
        text
    })
}

fn share(here: u64, all: u64) -> String {
    if here >= all { "all".to_owned() } else { format!("{:.0} %", here as f64 / all as f64 * 100.0) }
}

pub(super) async fn remove(api: &Api, model: &ModelRef, output: &Output) -> Result<(), CliError> {
    let freed = api.remove(model).await?;
    output.value(&freed, |freed| format!("freed {} in {} blocks", bytes(freed.bytes), freed.blocks))
}

pub(super) async fn collect(api: &Api, output: &Output) -> Result<(), CliError> {
    let freed = api.collect().await?;
    output.value(&freed, |freed| format!("freed {} in {} blocks", bytes(freed.bytes), freed.blocks))
}
