//! Looking: which models are pinned, what a model consists of, and how much of it is here.

use accel_backends::files::{FileInfo, ModelFiles};
use cid::Cid;

use super::error::StoreError;
use super::open::BlockFiles;
use super::roots::{Root, RootKind};
use super::tree::{self, Absent};
use super::weights;
use super::{Store, blocking};

/// A pinned root and whether all of it is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The root.
    pub root: Root,
    /// False when blocks are missing or damaged: fetch it again.
    pub complete: bool,
}

/// A model and its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The CID, in version 1.
    pub cid: Cid,
    /// What it is.
    pub kind: RootKind,
    /// Its files, in the order of their names.
    pub files: Vec<ShownFile>,
    /// Its tensors, in the order of their files.
    pub tensors: Vec<ShownTensor>,
    /// Files whose header is not here, so that their tensors are not known.
    pub unread: Vec<String>,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownFile {
    /// Its path under the root.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// Of those, bytes that are here.
    pub here_bytes: u64,
}

/// What a CID names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Whether it is a directory, and not one file.
    pub is_directory: bool,
    /// Its files, in the order of their names.
    pub files: Vec<ShownFile>,
}

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownTensor {
    /// Its name in the file.
    pub name: String,
    /// Its element type, as the format calls it.
    pub dtype: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// The file it lies in.
    pub file: String,
    /// Where it starts in the file.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Of those, bytes that are here.
    pub here_bytes: u64,
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of blocks, and bytes promised to running imports and fetches.
    pub used_bytes: u64,
    /// Bytes it may hold.
    pub quota_bytes: u64,
}

impl Store {
    /// The pinned roots, in the order in which they came.
    ///
    /// # Errors
    /// `Io`, or `Cancelled` when the runtime stops.
    pub async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let store = self.clone();
        blocking(move || {
            let roots = store.roots().list().to_vec();
            Ok(roots.into_iter().map(|root| Listed { complete: store.is_complete(&root.cid), root }).collect())
        })
        .await
    }

    /// Bytes used and allowed.
    pub fn usage(&self) -> Usage {
        Usage { used_bytes: self.blocks().used(), quota_bytes: self.blocks().quota() }
    }

    /// The files and tensors of a model that is here, or of one whose headers are (`fetch_ranges`).
    ///
    /// # Errors
    /// `NotAModel`, `Missing`, `Weights`, `NotUnixFs`, `Corrupt` or `Io`.
    pub async fn show(&self, cid: &Cid, path: Option<&str>) -> Result<Shown, StoreError> {
        let store = self.clone();
        let (cid, path) = (*cid, path.unwrap_or_default().to_owned());
        blocking(move || store.show_blocking(&cid, &path)).await
    }

    /// The files under a CID, or under what `path` names inside it, whatever they are.
    ///
    /// # Errors
    /// `Missing`, `NoEntry`, `NotUnixFs`, `Corrupt` or `Io`.
    pub async fn contents(&self, cid: &Cid, path: &str) -> Result<Contents, StoreError> {
        let opened = self.open(cid, Some(path)).await?;
        blocking(move || {
            let files = (0..opened.files().len()).map(|index| file_of(&opened, index)).collect::<Result<_, _>>()?;
            Ok(Contents { is_directory: opened.is_directory(), files })
        })
        .await
    }

    fn show_blocking(&self, cid: &Cid, path: &str) -> Result<Shown, StoreError> {
        let opened = self.open_blocking(cid, path)?;
        let mut shown = Shown {
            cid: *opened.cid(),
            kind: RootKind::File,
            files: Vec::new(),
            tensors: Vec::new(),
            unread: Vec::new(),
        };
        for (index, info) in opened.files().iter().enumerate() {
            let file = file_of(&opened, index)?;
            let here_bytes = file.here_bytes;
            shown.files.push(file);
            match weights::tensors(&opened, &info.name) {
                Ok(tensors) => {
                    for tensor in tensors.unwrap_or_default() {
                        let range = tensor.offset..tensor.offset.saturating_add(tensor.bytes);
                        shown.tensors.push(ShownTensor {
                            here_bytes: opened.here_bytes(index, range)?,
                            name: tensor.name,
                            dtype: tensor.dtype.name().to_owned(),
                            dims: tensor.dims,
                            file: tensor.file,
                            offset: tensor.offset,
                            bytes: tensor.bytes,
                        });
                    }
                }
                // A header can be read when its blocks are here; otherwise its absence is the news, not an error.
                Err(_) if here_bytes < info.bytes => shown.unread.push(info.name.clone()),
                Err(error) => return Err(error),
            }
        }
        if shown.tensors.is_empty() && shown.unread.is_empty() {
            let found = match opened.kind()? {
                RootKind::HuggingFace => "a Hugging Face directory without weights".into(),
                _ => format!("{} file(s) of {} bytes without weights", shown.files.len(), opened.bytes()),
            };
            return Err(StoreError::NotAModel { cid: shown.cid, found });
        }
        if shown.unread.is_empty() || opened.kind().is_ok() {
            shown.kind = opened.kind()?;
        }
        Ok(shown)
    }

    fn is_complete(&self, root: &Cid) -> bool {
        let blocks = self.blocks();
        let Ok(tree) = tree::walk(blocks, root, Absent::Fail) else {
            return false;
        };
        let segments = tree.files.iter().flat_map(|file| &file.segments);
        segments.into_iter().all(|segment| match blocks.len(&segment.cid) {
            Ok(Some(bytes)) => bytes >= segment.block_offset + segment.bytes,
            _ => false,
        })
    }
}

fn file_of(opened: &BlockFiles, index: usize) -> Result<ShownFile, StoreError> {
    let FileInfo { name, bytes } = opened.files()[index].clone();
    Ok(ShownFile { here_bytes: opened.here_bytes(index, 0..bytes)?, name, bytes })
}
