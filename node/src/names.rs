//! What models are called on this node, kept in one small file.
//!
//! The file is replaced whole, so it is the old table or the new one.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel_protocol::{ErrorCode, JobError, ModelName, ModelRef};
use serde::{Deserialize, Serialize};

use crate::data_dir;
use crate::hub::HubModel;
use crate::store::Store;

/// Names at most, so that the file stays small.
const NAMES: usize = 4096;

/// Names that cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{}: {source}; mend the file, or remove it to begin without names", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// There are as many names as there can be.
    #[error("this node has {NAMES} names, and no room for another; remove one")]
    Full,
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// What people call it.
    pub name: ModelName,
    /// What it is.
    pub model: ModelRef,
}

/// The names of a node. Clones share them.
#[derive(Clone, Debug)]
pub struct Names {
    path: PathBuf,
    table: Arc<Mutex<BTreeMap<ModelName, ModelRef>>>,
}

impl Names {
    /// The names in a file; none where there is no file yet.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn open(path: PathBuf) -> Result<Self, NamesError> {
        let table = match std::fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| NamesError::Damaged { path: path.clone(), source })?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(NamesError::File { path, source }),
        };
        Ok(Self { path, table: Arc::new(Mutex::new(table)) })
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<ModelName, ModelRef>> {
        // The table is replaced whole, so a panic elsewhere leaves nothing half-done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All names, in their order.
    pub fn all(&self) -> Vec<Named> {
        self.table().iter().map(|(name, model)| Named { name: name.clone(), model: model.clone() }).collect()
    }

    /// The names of a model.
    pub fn of(&self, model: &ModelRef) -> Vec<ModelName> {
        self.table().iter().filter(|(_, named)| *named == model).map(|(name, _)| name.clone()).collect()
    }

    /// Gives a model a name, which another may have had. Blocks on the disk.
    ///
    /// # Errors
    /// When there is no room for another name, or the file cannot be written.
    pub fn set(&self, name: ModelName, model: ModelRef) -> Result<(), NamesError> {
        let mut table = self.table();
        if table.len() >= NAMES && !table.contains_key(&name) {
            return Err(NamesError::Full);
        }
        let mut changed = table.clone();
        changed.insert(name, model);
        self.replace(&mut table, changed)
    }

    /// Takes a name away; what it stood for, if it was one. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remove(&self, name: &ModelName) -> Result<Option<ModelRef>, NamesError> {
        let mut table = self.table();
        let mut changed = table.clone();
        let removed = changed.remove(name);
        self.replace(&mut table, changed)?;
        Ok(removed)
    }

    fn replace(
        &self,
        table: &mut BTreeMap<ModelName, ModelRef>,
        changed: BTreeMap<ModelName, ModelRef>,
    ) -> Result<(), NamesError> {
        let text = serde_json::to_vec_pretty(&changed)
            .map_err(|source| NamesError::Damaged { path: self.path.clone(), source })?;
        data_dir::replace(&self.path, &text).map_err(|source| NamesError::File { path: self.path.clone(), source })?;
        *table = changed;
        Ok(())
    }

    /// The model that a text names: by its CID, by a name given here, or by what its file or directory was called when
    /// it was imported, if only one was called so.
    ///
    /// # Errors
    /// When nothing here is called so, or several things are.
    pub async fn resolve(&self, store: &Store, text: &str) -> Result<ModelRef, JobError> {
        if let Ok(model) = text.parse() {
            return Ok(model);
        }
        // What came from the hub is known by the hub's name too, as whoever pulled it wrote it.
        let of_hub = text.parse().ok().and_then(|model: HubModel| model.name().ok());
        let name: Option<ModelName> = of_hub.or_else(|| text.parse().ok());
        if let Some(model) = name.and_then(|name| self.table().get(&name).cloned()) {
            return Ok(model);
        }
        let pinned = store.pinned().await.map_err(JobError::from)?;
        let called: Vec<_> = pinned.iter().filter(|root| root.name == text).collect();
        let words = match called.as_slice() {
            [one] => return Ok(ModelRef::from(one.cid)),
            [] => format!("{text:?} is no model that is known here; name one by its CID, or see accel-cli ls"),
            several => format!("{text:?} is what {} models here were called; name one by its CID", several.len()),
        };
        Err(JobError::new(ErrorCode::ModelNotFound, words))
    }
}

impl From<NamesError> for JobError {
    fn from(error: NamesError) -> Self {
        let code = match &error {
            NamesError::Full => ErrorCode::OutOfResources,
            NamesError::File { source, .. } if source.kind() == ErrorKind::StorageFull => ErrorCode::OutOfResources,
            NamesError::File { .. } | NamesError::Damaged { .. } => ErrorCode::Internal,
        };
        Self::new(code, error)
    }
}
