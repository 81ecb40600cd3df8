//! Models from the Hugging Face hub into the store: `hf://org/name[@revision][:QUANT]`.
//!
//! A model is downloaded into a directory of its own under the data directory, from where it was left, then imported and
//! named, and the directory goes. What a commit became is kept, so a second pull of it downloads nothing.

mod access;
mod choice;
mod client;
mod download;
mod error;
mod record;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use accel_protocol::{ModelName, ModelRef};
use cid::Cid;

pub use access::HubAccess;
pub use error::HubError;
pub use source::HubModel;

use crate::names::Names;
use crate::store::{AddOptions, Store, StoreError};
use choice::{Choice, choose};
use client::{Client, Repository};
use download::{download, here};
use record::Record;

/// A list that says what belongs to a model.
const LIST_BYTES: u64 = 64 << 20;

/// What the node knows of hubs. Clones share it.
#[derive(Clone, Debug)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Where downloads lie until they are imported.
    downloads: PathBuf,
    record: Record,
    /// Downloads under way, each by its directory's name.
    under_way: Mutex<BTreeSet<String>>,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug)]
pub struct HubProgress {
    /// Bytes that are here, or imported.
    pub done_bytes: u64,
    /// Bytes of the model.
    pub total_bytes: u64,
}

/// What a pull did.
#[derive(Clone, Debug)]
pub struct HubReport {
    /// The root.
    pub cid: Cid,
    /// What it is called here now.
    pub name: ModelName,
    /// The commit of the hub's repository.
    pub commit: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that the hub sent.
    pub downloaded_bytes: u64,
    /// Blocks that were not here before.
    pub new_blocks: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Hub {
    /// What a node with this data directory knows of hubs.
    pub fn new(data_dir: &Path) -> Self {
        let record = Record::new(data_dir.join("hub.json"));
        let (downloads, under_way) = (data_dir.join("downloads"), Mutex::default());
        Self { inner: Arc::new(Inner { downloads, record, under_way }) }
    }

    /// Downloads a model, imports it and names it; what is here already is only named. Dropping the future stops it, and
    /// another call goes on from there. Without `access` this process's environment says which hub and what token.
    ///
    /// # Errors
    /// All of [`HubError`].
    pub async fn pull(
        &self,
        store: &Store,
        names: &Names,
        model: &HubModel,
        access: Option<HubAccess>,
        progress: impl Fn(HubProgress) + Send + Sync + 'static,
    ) -> Result<HubReport, HubError> {
        let (begun, name) = (Instant::now(), model.name()?);
        let access = match access {
            Some(access) => access,
            None => HubAccess::of_environment()?.unwrap_or_default(),
        };
        let client = Client::new(access, model)?;
        let repository = client.describe().await?;
        let quant = model.quant.iter().map(|quant| format!("--{quant}"));
        let key: String = [format!("{}--{}", model.repository.replace('/', "--"), repository.commit)]
            .into_iter()
            .chain(quant)
            .collect();
        let _own = self.begin(&key, model)?;
        let report = |cid, bytes, downloaded_bytes, new_blocks| {
            let (commit, seconds) = (repository.commit.clone(), begun.elapsed().as_secs_f64());
            HubReport { cid, name: name.clone(), commit, bytes, downloaded_bytes, new_blocks, seconds }
        };
        if let Some((cid, bytes)) = self.known(store, &key).await? {
            return named(names, report(cid, bytes, 0, 0)).await;
        }
        let directory = self.inner.downloads.join(&key);
        // The import takes its name from what it is given.
        let inside = directory.join(model.repository.rsplit('/').next().unwrap_or_default());
        let (files, alone, mut downloaded_bytes) = chosen(&client, &repository, model, &inside).await?;
        let source = files.first().filter(|_| alone).map_or_else(|| inside.clone(), |file| inside.join(file));
        let files: Vec<_> =
            files.iter().filter_map(|name| Some((name.as_str(), repository.files.get(name)?))).collect();
        let total_bytes = files.iter().map(|(_, file)| file.bytes).sum();
        let mut done_bytes = files.iter().map(|(name, file)| here(&inside, name, file)).sum();
        self.check_room(store, total_bytes, done_bytes)?;
        progress(HubProgress { done_bytes, total_bytes });
        for (name, file) in files {
            let came = |bytes| {
                done_bytes += bytes;
                downloaded_bytes += bytes;
                progress(HubProgress { done_bytes: done_bytes.min(total_bytes), total_bytes });
            };
            download(&client, &repository, (name, file), &inside, came).await?;
        }
        let options = AddOptions { move_source: true, ..AddOptions::default() };
        let imported = move |now: &crate::store::AddProgress| {
            progress(HubProgress { done_bytes: now.done_bytes, total_bytes: now.total_bytes });
        };
        let added = store.add(&source, options, imported).await?;
        let (hub, cid) = (self.clone(), added.root.cid);
        blocking(move || {
            hub.inner.record.set(&key, &cid)?;
            // What is left are empty directories.
            std::fs::remove_dir_all(&directory).map_err(|source| HubError::File { path: directory, source })
        })
        .await?;
        named(names, report(cid, added.root.bytes, downloaded_bytes, added.new_blocks)).await
    }

    /// Frees downloads that were interrupted, and gives how many bytes they had. Those under way stay.
    ///
    /// # Errors
    /// `File` when the disk says no.
    pub async fn collect(&self) -> Result<u64, HubError> {
        let hub = self.clone();
        blocking(move || {
            let under_way = hub.inner.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            let file = |path: &Path| {
                let path = path.to_owned();
                |source| HubError::File { path, source }
            };
            let downloads = &hub.inner.downloads;
            let entries = match std::fs::read_dir(downloads) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
                other => other.map_err(file(downloads))?,
            };
            let mut freed = 0;
            for entry in entries {
                let entry = entry.map_err(file(downloads))?;
                if entry.file_name().to_str().is_some_and(|key| under_way.contains(key)) {
                    continue;
                }
                let path = entry.path();
                freed += bytes_of(&path).map_err(file(&path))?;
                std::fs::remove_dir_all(&path).map_err(file(&path))?;
            }
            Ok(freed)
        })
        .await
    }

    /// The model that a commit became and its bytes, if it is here whole.
    async fn known(&self, store: &Store, key: &str) -> Result<Option<(Cid, u64)>, HubError> {
        let (hub, key) = (self.clone(), key.to_owned());
        let Some(cid) = blocking(move || hub.inner.record.get(&key)).await? else { return Ok(None) };
        let listed = store.list().await?.into_iter().map(|listed| (listed.root, listed.complete));
        let mut whole = listed.filter(|(root, complete)| root.cid == cid && *complete && !root.part);
        Ok(whole.next().map(|(root, _)| (cid, root.bytes)))
    }

    /// Fails before anything large is downloaded that would not fit in the end.
    fn check_room(&self, store: &Store, total: u64, here: u64) -> Result<(), HubError> {
        let usage = store.usage();
        if usage.used_bytes.saturating_add(total) > usage.quota_bytes {
            let (quota, used) = (usage.quota_bytes, usage.used_bytes);
            return Err(StoreError::Quota { quota, used, needed: total }.into());
        }
        let path = self.inner.downloads.clone();
        let file = |source: std::io::Error| HubError::writing(path.clone(), total, source);
        std::fs::create_dir_all(&path).map_err(file)?;
        let free = rustix::fs::statvfs(&path).map_err(|error| file(error.into()))?;
        // The files go only when all their blocks are there and checked.
        let needed = total.saturating_mul(2).saturating_sub(here);
        if free.f_bavail.saturating_mul(free.f_frsize) < needed {
            return Err(StoreError::DiskFull { path, needed }.into());
        }
        Ok(())
    }

    fn begin(&self, key: &str, model: &HubModel) -> Result<UnderWay, HubError> {
        let mut under_way = self.inner.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if !under_way.insert(key.to_owned()) {
            return Err(HubError::Busy { model: model.to_string() });
        }
        Ok(UnderWay { hub: self.clone(), key: key.to_owned() })
    }
}

/// The files of a model, whether the one file is the model, and how many bytes came for the lists that say so.
async fn chosen(
    client: &Client,
    repository: &Repository,
    model: &HubModel,
    inside: &Path,
) -> Result<(BTreeSet<String>, bool, u64), HubError> {
    let (mut read, mut came) = (BTreeMap::new(), 0);
    // Each turn reads another file of the repository.
    loop {
        let list = match choose(repository, model.quant.as_deref(), &read)? {
            Choice::Files { files, alone } => return Ok((files, alone, came)),
            Choice::Read(list) => list,
        };
        let damaged = |found: &str| HubError::Damaged {
            repository: repository.name.clone(),
            file: list.clone(),
            found: found.to_owned(),
        };
        let file = repository.files.get(&list).ok_or_else(|| damaged("it is not there"))?;
        if file.bytes > LIST_BYTES {
            return Err(damaged(&format!("expected at most {LIST_BYTES} bytes, found {}", file.bytes)));
        }
        download(client, repository, (&list, file), inside, |bytes| came += bytes).await?;
        let path = inside.join(&list);
        let text = std::fs::read(&path).map_err(|source| HubError::File { path, source })?;
        read.insert(list, text);
    }
}

async fn named(names: &Names, report: HubReport) -> Result<HubReport, HubError> {
    let (names, name, model) = (names.clone(), report.name.clone(), ModelRef::from(report.cid));
    blocking(move || Ok(names.set(name, model)?)).await?;
    Ok(report)
}

/// A download's directory, which nobody else may use meanwhile.
struct UnderWay {
    hub: Hub,
    key: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.hub.inner.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// Bytes of the files in a directory, however deep.
fn bytes_of(directory: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_of(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// Runs file work on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| HubError::Failed(error.to_string()))?
}
