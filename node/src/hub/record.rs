//! What was pulled from the hub: which commit became which CID, so that nothing is downloaded twice. One small file,
//! replaced whole.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cid::Cid;

use super::error::HubError;
use crate::data_dir;

/// Lines at most; a line that is lost costs a download.
const LINES: usize = 4096;

/// The file.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    /// Held over reading and writing, so that no line is lost between two who write.
    order: Mutex<()>,
}

impl Record {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, order: Mutex::new(()) }
    }

    /// What a commit became. Blocks on the disk.
    pub(super) fn get(&self, commit: &str) -> Result<Option<Cid>, HubError> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.read()?;
        Ok(table.get(commit).and_then(|cid| cid.parse().ok()))
    }

    /// Notes what a commit became. Blocks on the disk.
    pub(super) fn set(&self, commit: &str, cid: &Cid) -> Result<(), HubError> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = self.read()?;
        if table.len() >= LINES {
            table.clear();
        }
        table.insert(commit.to_owned(), cid.to_string());
        let record = |source| HubError::Record { path: self.path.clone(), source };
        let text = serde_json::to_vec_pretty(&table).map_err(record)?;
        data_dir::replace(&self.path, &text)
            .map_err(|source| HubError::writing(self.path.clone(), text.len() as u64, source))
    }

    fn read(&self) -> Result<BTreeMap<String, String>, HubError> {
        match std::fs::read(&self.path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| HubError::Record { path: self.path.clone(), source })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(source) => Err(HubError::File { path: self.path.clone(), source }),
        }
    }
}
