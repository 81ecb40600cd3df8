//! Import: files and directories of this machine into pinned blocks.
//!
//! One blocking thread reads, hashes and writes, a block at a time, so memory does not grow with the file. A block
//! that is here already is compared and not written again, which makes a second import, or one after an interruption,
//! cheap. Until the root is pinned nothing but a hold keeps the new blocks: an import that stops leaves only garbage
//! for the collector. Names that begin with a dot are left out, as Kubo does; links to files are followed,
//! because a Hugging Face cache consists of them.

use std::fs::Metadata;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cid::Cid;

use super::blocks::{Blocks, Hold, Put};
use super::cut::{self, LEAF_BYTES};
use super::dag::{self, DAG_PB, Entry, Part, RAW};
use super::error::StoreError;
use super::layout::Balanced;
use super::roots::{Root, RootKind};
use super::tree::{self, Absent};
use super::weights;
use super::{Store, blocking, unix_seconds};

const MAX_LINKS: usize = 8192;
const MAX_ENTRIES: usize = 100_000;
const MAX_DIRECTORY_DEPTH: usize = 16;
/// Importers switch to sharded directories here; a model has some dozens of files.
const MAX_DIRECTORY_BYTES: usize = 256 << 10;

/// How files are cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunker {
    /// Weights files at their tensors, all else as `Fixed` with the default profile.
    Tensor,
    /// Every file in pieces of one size, so that the CID equals that of other importers.
    Fixed {
        /// Bytes of a leaf, 1 MiB at most.
        chunk_bytes: u64,
        /// Children of a node.
        links: usize,
    },
}

impl Chunker {
    /// The profile of Helia and of Kubo's `unixfs-v1-2025`: 1 MiB leaves, 1024 links.
    pub const UNIXFS_2025: Self = Self::Fixed { chunk_bytes: 1 << 20, links: 1024 };
    /// The older profile of Kubo with version 1 CIDs: 256 KiB leaves, 174 links.
    pub const COMPATIBLE: Self = Self::Fixed { chunk_bytes: 256 << 10, links: 174 };

    fn links(self) -> usize {
        match self {
            Self::Tensor => 1024,
            Self::Fixed { links, .. } => links,
        }
    }

    fn check(self) -> Result<(), StoreError> {
        let Self::Fixed { chunk_bytes, links } = self else {
            return Ok(());
        };
        if !(1..=LEAF_BYTES).contains(&chunk_bytes) {
            return Err(StoreError::TooLarge { what: "chunk size".into(), found: chunk_bytes, limit: LEAF_BYTES });
        }
        if !(2..=MAX_LINKS).contains(&links) {
            return Err(StoreError::TooLarge {
                what: "links of a node".into(),
                found: links as u64,
                limit: MAX_LINKS as u64,
            });
        }
        Ok(())
    }
}

/// How to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddOptions {
    /// How files are cut.
    pub chunker: Chunker,
    /// Delete the source once its blocks are verified and pinned.
    pub move_source: bool,
    /// Keep it until it is removed.
    pub pin: bool,
}

impl Default for AddOptions {
    fn default() -> Self {
        Self { chunker: Chunker::Tensor, move_source: false, pin: true }
    }
}

/// How far an import is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddProgress {
    /// Bytes of the source that are blocks now.
    pub done_bytes: u64,
    /// Bytes of the source.
    pub total_bytes: u64,
    /// Blocks so far.
    pub blocks: u64,
    /// Of those, blocks that were not here before.
    pub new_blocks: u64,
    /// Bytes of the new blocks.
    pub new_bytes: u64,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq)]
pub struct AddReport {
    /// The root.
    pub root: Root,
    /// Blocks that were not here before.
    pub new_blocks: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Store {
    /// Imports a file or directory. Dropping the future stops the import.
    ///
    /// # Errors
    /// `Source`, `Weights`, `Quota`, `DiskFull`, `TooLarge`, `Io` or `Cancelled`.
    pub async fn add(
        &self,
        path: impl AsRef<Path>,
        options: AddOptions,
        progress: impl FnMut(&AddProgress) + Send + 'static,
    ) -> Result<AddReport, StoreError> {
        Ok(self.add_held(path, options, progress).await?.0)
    }

    /// Imports, and holds the blocks of what is not pinned.
    pub(super) async fn add_held(
        &self,
        path: impl AsRef<Path>,
        options: AddOptions,
        progress: impl FnMut(&AddProgress) + Send + 'static,
    ) -> Result<(AddReport, Option<Hold>), StoreError> {
        options.chunker.check()?;
        let path = path.as_ref().to_owned();
        let store = self.clone();
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let stopped = stop.0.clone();
        blocking(move || import(&store, &path, options, Box::new(progress), &stopped)).await
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn import(
    store: &Store,
    path: &Path,
    options: AddOptions,
    progress: Box<dyn FnMut(&AddProgress)>,
    stopped: &AtomicBool,
) -> Result<(AddReport, Option<Hold>), StoreError> {
    let started = Instant::now();
    let source = Source::scan(path, options.move_source, 0, &mut 0)?;
    let blocks = store.blocks();
    let mut importer = Importer {
        blocks,
        hold: blocks.hold(),
        chunker: options.chunker,
        stopped,
        progress,
        so_far: AddProgress { total_bytes: source.bytes(), ..AddProgress::default() },
        buffer: Vec::new(),
    };
    let top = importer.source(&source)?;
    let (so_far, hold) = (importer.so_far, importer.hold);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let root = Root {
        cid: top.cid,
        name: name.unwrap_or_default(),
        kind: source.kind()?,
        bytes: so_far.total_bytes,
        blocks: so_far.blocks,
        added_unix_seconds: unix_seconds(),
        part: false,
    };
    blocks.sync()?;
    if options.move_source {
        verify(blocks, &top.cid)?;
        source.check_unchanged()?;
    }
    let mut hold = Some(hold);
    if options.pin {
        store.pin(root.clone(), hold.take())?;
    }
    if options.move_source {
        source.delete()?;
    }
    let report = AddReport {
        root,
        new_blocks: so_far.new_blocks,
        new_bytes: so_far.new_bytes,
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok((report, hold))
}

/// Reads every block under `root` back from the disk.
fn verify(blocks: &Blocks, root: &Cid) -> Result<(), StoreError> {
    for cid in tree::walk(blocks, root, Absent::Fail)?.blocks() {
        blocks.read(cid)?.ok_or(StoreError::Missing { cid: *cid })?;
    }
    Ok(())
}

struct Importer<'a> {
    blocks: &'a Blocks,
    hold: Hold,
    chunker: Chunker,
    stopped: &'a AtomicBool,
    progress: Box<dyn FnMut(&AddProgress)>,
    so_far: AddProgress,
    buffer: Vec<u8>,
}

impl Importer<'_> {
    fn source(&mut self, source: &Source) -> Result<Part, StoreError> {
        match &source.content {
            Content::File => self.file(source),
            Content::Directory(entries) => self.directory(source, entries),
        }
    }

    fn file(&mut self, source: &Source) -> Result<Part, StoreError> {
        let bytes = source.metadata.len();
        let leaves = match self.chunker {
            Chunker::Tensor => match weights::extents(&source.path)? {
                Some(tensors) => cut::by_tensor(bytes, tensors),
                None => cut::fixed(bytes, LEAF_BYTES),
            },
            Chunker::Fixed { chunk_bytes, .. } => cut::fixed(bytes, chunk_bytes),
        };
        let mut file = std::fs::File::open(&source.path).map_err(|error| source.error(error))?;
        let mut tree = Balanced::new(self.chunker.links());
        for leaf_bytes in leaves {
            let leaf = self.leaf(source, &mut file, leaf_bytes)?;
            tree.push(leaf, &mut |node, block| self.store(&node.cid, block))?;
        }
        // One byte more would mean a file that grew while it was read.
        if file.read(&mut [0]).map_err(|error| source.error(error))? != 0 {
            return Err(source.error(io::Error::other("the file grew during import; add it again when it is still")));
        }
        let root = tree.finish(&mut |node, block| self.store(&node.cid, block))?;
        root.ok_or_else(|| source.error(io::Error::other("the file has no leaves")))
    }

    fn leaf(&mut self, source: &Source, file: &mut std::fs::File, bytes: u64) -> Result<Part, StoreError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(bytes as usize, 0);
        file.read_exact(&mut buffer).map_err(|error| source.error(error))?;
        let cid = dag::cid_of(RAW, &buffer);
        self.store(&cid, &buffer)?;
        self.so_far.done_bytes += bytes;
        (self.progress)(&self.so_far);
        self.buffer = buffer;
        Ok(Part { cid, file_bytes: bytes, dag_bytes: bytes })
    }

    fn directory(&mut self, source: &Source, entries: &[(String, Source)]) -> Result<Part, StoreError> {
        let mut children = Vec::with_capacity(entries.len());
        let mut dag_bytes = 0;
        for (name, entry) in entries {
            let part = self.source(entry)?;
            dag_bytes += part.dag_bytes;
            children.push(Entry { name: name.clone(), cid: part.cid, dag_bytes: part.dag_bytes });
        }
        let block = dag::encode_directory(&children);
        if block.len() > MAX_DIRECTORY_BYTES {
            return Err(StoreError::TooLarge {
                what: format!("{}: the list of entries in bytes", source.path.display()),
                found: block.len() as u64,
                limit: MAX_DIRECTORY_BYTES as u64,
            });
        }
        let cid = dag::cid_of(DAG_PB, &block);
        self.store(&cid, &block)?;
        Ok(Part { cid, file_bytes: 0, dag_bytes: dag_bytes + block.len() as u64 })
    }

    fn store(&mut self, cid: &Cid, data: &[u8]) -> Result<(), StoreError> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(StoreError::Cancelled);
        }
        self.hold.keep(cid);
        self.so_far.blocks += 1;
        if self.blocks.renew(cid, data)? == Put::New {
            self.so_far.new_blocks += 1;
            self.so_far.new_bytes += data.len() as u64;
        }
        Ok(())
    }
}

/// What is to be imported, as it was when it was first looked at.
struct Source {
    path: PathBuf,
    metadata: Metadata,
    content: Content,
}

enum Content {
    File,
    Directory(Vec<(String, Source)>),
}

impl Source {
    fn scan(path: &Path, move_source: bool, depth: usize, count: &mut usize) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Source { path: path.to_owned(), source };
        let refuse = |found: String| failed(io::Error::new(io::ErrorKind::InvalidInput, found));
        *count += 1;
        if *count > MAX_ENTRIES || depth > MAX_DIRECTORY_DEPTH {
            return Err(refuse(format!("over {MAX_ENTRIES} files, or deeper than {MAX_DIRECTORY_DEPTH} directories")));
        }
        let is_link = std::fs::symlink_metadata(path).map_err(failed)?.is_symlink();
        if is_link && move_source {
            return Err(refuse("a symbolic link cannot be moved: its target would stay; add it without moving".into()));
        }
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_file() {
            return Ok(Self { path: path.to_owned(), metadata, content: Content::File });
        }
        if !metadata.is_dir() || (is_link && depth > 0) {
            return Err(refuse("expected a file, a directory, or a link to a file".into()));
        }
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                return Err(refuse(format!("the name {:?} is not UTF-8", entry.file_name())));
            };
            if name.starts_with('.') {
                continue;
            }
            if !dag::is_plain_name(&name) {
                return Err(refuse(format!("the name {name:?} cannot be stored on every system")));
            }
            entries.push((name, Self::scan(&entry.path(), move_source, depth + 1, count)?));
        }
        entries.sort_by(|left, right| left.0.cmp(&right.0));
        Ok(Self { path: path.to_owned(), metadata, content: Content::Directory(entries) })
    }

    fn error(&self, source: io::Error) -> StoreError {
        StoreError::Source { path: self.path.clone(), source }
    }

    fn bytes(&self) -> u64 {
        match &self.content {
            Content::File => self.metadata.len(),
            Content::Directory(entries) => entries.iter().map(|(_, entry)| entry.bytes()).sum(),
        }
    }

    fn kind(&self) -> Result<RootKind, StoreError> {
        match &self.content {
            Content::Directory(entries) => Ok(weights::directory_kind(entries.iter().map(|(name, _)| name.as_str()))),
            Content::File => {
                let mut magic = [0; 4];
                let mut file = std::fs::File::open(&self.path).map_err(|error| self.error(error))?;
                // A file of fewer bytes is no GGUF; other errors showed when it was read.
                let read = file.read_exact(&mut magic);
                Ok(if read.is_ok() { weights::file_kind(&magic) } else { RootKind::File })
            }
        }
    }

    /// Fails when a file is another than the one that was imported.
    fn check_unchanged(&self) -> Result<(), StoreError> {
        match &self.content {
            Content::File => {
                let now = std::fs::metadata(&self.path).map_err(|error| self.error(error))?;
                let same_time = match (now.modified(), self.metadata.modified()) {
                    (Ok(now), Ok(then)) => now == then,
                    _ => true,
                };
                if now.len() != self.metadata.len() || !same_time {
                    return Err(self.error(io::Error::other("the file changed during import; nothing was deleted")));
                }
                Ok(())
            }
            Content::Directory(entries) => entries.iter().try_for_each(|(_, entry)| entry.check_unchanged()),
        }
    }

    /// Deletes the files that were imported and the directories that are empty then.
    fn delete(&self) -> Result<(), StoreError> {
        match &self.content {
            Content::File => std::fs::remove_file(&self.path).map_err(|error| self.error(error)),
            Content::Directory(entries) => {
                entries.iter().try_for_each(|(_, entry)| entry.delete())?;
                match std::fs::remove_dir(&self.path) {
                    // What was not imported (hidden files) is not ours to delete.
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                    other => other.map_err(|error| self.error(error)),
                }
            }
        }
    }
}
