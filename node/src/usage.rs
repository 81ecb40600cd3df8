//! What the experts of models were chosen for, kept over runs: a file for each model.
//!
//! A model's routers count while it works; what they counted in earlier runs lies in the file, and the sum is written
//! whole (aside, then renamed) when the model is dropped from memory, when the node stops, and now and then in between.
//! Files are small and read and written under one lock, so that a model that is loaded again while it is being dropped
//! misses nothing; none of this is called from async code. Counts say nothing of what was read or answered.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use accel_models::usage::{ExpertUsage, LayerUsage};
use accel_protocol::ModelRef;
use multihash_codetable::{Code, MultihashDigest};
use serde::{Deserialize, Serialize};

use crate::data_dir;

const FORMAT: u32 = 1;
/// Models whose counts are kept; the file that was written longest ago goes first.
const MODELS: usize = 64;
/// No counts take more: those of 64 layers of 256 experts, all their pairs included, take half of it.
const FILE_BYTES: u64 = 64 << 20;
/// Tokens after which a model at work is written.
const TOKENS: u64 = 4096;

/// The counts of all models. Clones share them.
#[derive(Clone, Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    accounts: Mutex<Accounts>,
}

#[derive(Debug, Default)]
struct Accounts {
    of: HashMap<ModelRef, Account>,
    /// Nothing is written any more: the directory may be another process's soon.
    closed: bool,
}

/// A model in memory.
#[derive(Debug)]
struct Account {
    /// What runs counted that have ended.
    ended: ExpertUsage,
    running: Vec<Arc<ExpertUsage>>,
    /// Tokens of what is in the file, summed over layers.
    written: u64,
}

/// A run of a model. What it counted is kept when this is dropped.
#[derive(Debug)]
pub struct Recording {
    ledger: Ledger,
    model: ModelRef,
    usage: Arc<ExpertUsage>,
    /// What is counted when it is next written.
    due: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFormat {
    format: u32,
    model: String,
    layers: Vec<LayerUsage>,
}

/// A file that is not read or written.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("expected {expected}, found {found}")]
    Content { expected: String, found: String },
}

impl Ledger {
    /// The counts of the files in a directory, which is made when there is something to keep.
    pub fn new(directory: PathBuf) -> Self {
        Self { shared: Arc::new(Shared { directory, accounts: Mutex::default() }) }
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        // Accounts come, change and go whole.
        self.shared.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what a run counts, beside what earlier ones did.
    pub fn begin(&self, model: &ModelRef, usage: Arc<ExpertUsage>) -> Recording {
        let recording =
            Recording { ledger: self.clone(), model: model.clone(), usage: usage.clone(), due: step(&usage) };
        let mut accounts = self.accounts();
        let account = accounts.of.entry(model.clone()).or_insert_with(|| {
            let empty = |layer: LayerUsage| LayerUsage::new(layer.layer(), layer.experts(), layer.chosen());
            let ended = ExpertUsage::new(usage.layers().into_iter().map(empty));
            let earlier = self.shared.read(model).unwrap_or_default();
            if let Err(error) = ended.add(&earlier) {
                tracing::warn!(%model, %error, "the usage of experts begins anew");
            }
            Account { written: ended.counted(), ended, running: Vec::new() }
        });
        account.running.push(usage);
        recording
    }

    /// What a model's experts were chosen for in all runs; none for a model that has not run here.
    pub fn total(&self, model: &ModelRef) -> Option<Vec<LayerUsage>> {
        let accounts = self.accounts();
        match accounts.of.get(model) {
            Some(account) => Some(account.total().layers()),
            None => self.shared.read(model),
        }
    }

    /// Writes what is not written yet, the last time.
    pub fn close(&self) {
        let mut accounts = self.accounts();
        for (model, account) in &mut accounts.of {
            self.shared.write(model, account);
        }
        accounts.closed = true;
    }

    fn write(&self, model: &ModelRef) {
        let mut accounts = self.accounts();
        if accounts.closed {
            return;
        }
        if let Some(account) = accounts.of.get_mut(model) {
            self.shared.write(model, account);
        }
    }

    fn end(&self, model: &ModelRef, usage: &Arc<ExpertUsage>) {
        let mut accounts = self.accounts();
        let closed = accounts.closed;
        let Some(account) = accounts.of.get_mut(model) else { return };
        account.running.retain(|run| !Arc::ptr_eq(run, usage));
        if let Err(error) = account.ended.add(&usage.layers()) {
            tracing::warn!(%model, %error, "the usage of experts in a run is not kept");
        }
        if !closed {
            self.shared.write(model, account);
        }
        if account.running.is_empty() && !closed {
            accounts.of.remove(model);
        }
    }
}

impl Account {
    /// Of runs that ended and of those at work.
    fn total(&self) -> ExpertUsage {
        let total = ExpertUsage::new(self.ended.layers());
        for run in &self.running {
            if let Err(error) = total.add(&run.layers()) {
                tracing::warn!(%error, "the usage of experts in a run is not added");
            }
        }
        total
    }
}

impl Shared {
    fn path(&self, model: &ModelRef) -> PathBuf {
        let mut name = model.cid.to_string();
        // A path may be longer than a name, and is checked by what stands in the file.
        if !model.path.is_empty() {
            let digest = Code::Sha2_256.digest(model.path.as_bytes());
            name.push('-');
            name.extend(digest.digest().iter().take(16).map(|byte| format!("{byte:02x}")));
        }
        self.directory.join(format!("{name}.json"))
    }

    /// What a file says; none where there is none, or none that can be used.
    fn read(&self, model: &ModelRef) -> Option<Vec<LayerUsage>> {
        let path = self.path(model);
        match read(&path, model) {
            Ok(layers) => Some(layers),
            Err(FileError::Io(error)) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a file with usage of experts is damaged, and not used");
                None
            }
        }
    }

    /// Writes a model's counts if there are more than in its file.
    fn write(&self, model: &ModelRef, account: &mut Account) {
        let total = account.total();
        if total.counted() == account.written {
            return;
        }
        let path = self.path(model);
        let file = FileFormat { format: FORMAT, model: model.to_string(), layers: total.layers() };
        match write(&path, &file).and_then(|()| Ok(self.prune()?)) {
            Ok(()) => account.written = total.counted(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the usage of experts is not written");
            }
        }
    }

    /// Removes the oldest files while there are too many.
    fn prune(&self) -> std::io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "json") {
                files.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        files.sort();
        let many = files.len().saturating_sub(MODELS);
        files.iter().take(many).try_for_each(|(_, path)| std::fs::remove_file(path))
    }
}

fn read(path: &Path, model: &ModelRef) -> Result<Vec<LayerUsage>, FileError> {
    let content = |expected: String, found: String| Err(FileError::Content { expected, found });
    let file = File::open(path)?;
    let mut text = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return content(format!("at most {FILE_BYTES} bytes"), "more".to_owned());
    }
    let file: FileFormat = serde_json::from_slice(&text)?;
    if file.format != FORMAT {
        return content(format!("format {FORMAT}"), file.format.to_string());
    }
    if file.model != model.to_string() {
        return content(format!("counts of {model}"), file.model);
    }
    if file.layers.is_empty() || !file.layers.is_sorted_by(|one, next| one.layer() < next.layer()) {
        return content("each layer once, in order".to_owned(), format!("{} layers otherwise", file.layers.len()));
    }
    Ok(file.layers)
}

fn write(path: &Path, file: &FileFormat) -> Result<(), FileError> {
    let text = serde_json::to_vec(file)?;
    if text.len() as u64 > FILE_BYTES {
        let expected = format!("at most {FILE_BYTES} bytes");
        return Err(FileError::Content { expected, found: text.len().to_string() });
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    Ok(data_dir::replace(path, &text)?)
}

/// What is counted when so many tokens more have gone through all layers.
fn step(usage: &ExpertUsage) -> u64 {
    usage.counted().saturating_add(TOKENS * usage.layers().len() as u64)
}

impl Recording {
    /// Writes what is counted if that is due. Called between steps, by the thread that computes.
    pub fn stepped(&mut self) {
        if self.usage.counted() >= self.due {
            self.ledger.write(&self.model);
            self.due = step(&self.usage);
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.ledger.end(&self.model, &self.usage);
    }
}
