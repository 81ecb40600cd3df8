//! The pin set: which roots this node keeps, in one small file.
//!
//! Our own file instead of the repository's pins: those write a file for every block under a root and lose their
//! consistency in a crash. Here the file is replaced whole (written aside, waited for, renamed), so it is the old list
//! or the new one; the blocks under a root are found by walking it. The repository's own collector knows nothing
//! of these pins and must stay off (`with_gc` and `Ipfs::gc` are never called).

use std::io::ErrorKind;
use std::path::PathBuf;

use cid::Cid;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use crate::data_dir;

const FORMAT: u32 = 1;

/// What a root holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RootKind {
    /// One GGUF file.
    Gguf,
    /// A directory with .safetensors files, a `config.json`, or a `model_index.json` of several parts.
    HuggingFace,
    /// Some other file: an input, an output.
    File,
    /// Some other directory.
    Directory,
}

impl std::fmt::Display for RootKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gguf => "gguf",
            Self::HuggingFace => "hugging face",
            Self::File => "file",
            Self::Directory => "directory",
        })
    }
}

/// A pinned root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its CID, in version 1.
    pub cid: Cid,
    /// What people call it: the file's or directory's name at import, or what the fetcher gave.
    pub name: String,
    /// What it holds.
    pub kind: RootKind,
    /// Bytes of the files under it.
    pub bytes: u64,
    /// Blocks under it.
    pub blocks: u64,
    /// When it was pinned, in seconds since 1970.
    pub added_unix_seconds: u64,
    /// Whether only a part of it is kept: what this node does of a model that is spread over several.
    pub part: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFormat {
    format: u32,
    roots: Vec<RootFormat>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootFormat {
    cid: String,
    name: String,
    kind: RootKind,
    bytes: u64,
    blocks: u64,
    added_unix_seconds: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    part: bool,
}

/// The list on disk and in memory.
#[derive(Debug)]
pub(super) struct Roots {
    path: PathBuf,
    list: Vec<Root>,
}

impl Roots {
    /// Reads the list; none yet is an empty one.
    pub fn open(path: PathBuf) -> Result<Self, StoreError> {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self { path, list: Vec::new() }),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        let bad = |found: String| StoreError::Roots { path: path.clone(), found };
        let file: FileFormat = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if file.format != FORMAT {
            return Err(bad(format!("format {}, this program reads {FORMAT}", file.format)));
        }
        let list = file
            .roots
            .into_iter()
            .map(|root| {
                let cid = Cid::try_from(root.cid.as_str()).map_err(|error| bad(format!("`{}`: {error}", root.cid)))?;
                let RootFormat { name, kind, bytes, blocks, added_unix_seconds, part, .. } = root;
                Ok(Root { cid, name, kind, bytes, blocks, added_unix_seconds, part })
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(Self { path, list })
    }

    pub fn list(&self) -> &[Root] {
        &self.list
    }

    pub fn get(&self, cid: &Cid) -> Option<&Root> {
        self.list.iter().find(|root| root.cid == *cid)
    }

    /// Pins a root; one that is pinned already keeps its name unless the new one says more.
    pub fn insert(&mut self, mut root: Root) -> Result<(), StoreError> {
        let mut list = self.list.clone();
        match list.iter_mut().find(|known| known.cid == root.cid) {
            Some(known) => {
                if root.name.is_empty() {
                    root.name.clone_from(&known.name);
                }
                // What is kept whole stays so.
                root.part &= known.part;
                *known = root;
            }
            None => list.push(root),
        }
        self.replace(list)
    }

    /// Unpins a root; false when it was not pinned.
    pub fn remove(&mut self, cid: &Cid) -> Result<bool, StoreError> {
        if self.get(cid).is_none() {
            return Ok(false);
        }
        let list = self.list.iter().filter(|root| root.cid != *cid).cloned().collect();
        self.replace(list)?;
        Ok(true)
    }

    fn replace(&mut self, list: Vec<Root>) -> Result<(), StoreError> {
        let file = FileFormat {
            format: FORMAT,
            roots: list
                .iter()
                .map(|root| RootFormat {
                    cid: root.cid.to_string(),
                    name: root.name.clone(),
                    kind: root.kind,
                    bytes: root.bytes,
                    blocks: root.blocks,
                    added_unix_seconds: root.added_unix_seconds,
                    part: root.part,
                })
                .collect(),
        };
        let text = serde_json::to_vec_pretty(&file)
            .map_err(|error| StoreError::Io { path: self.path.clone(), source: error.into() })?;
        data_dir::replace(&self.path, &text)
            .map_err(|error| StoreError::writing(self.path.clone(), text.len() as u64, error))?;
        self.list = list;
        Ok(())
    }
}
