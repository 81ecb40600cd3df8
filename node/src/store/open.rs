//! Reading a stored model by byte range, straight from its verified blocks.
//!
//! There is no second copy of a model: a range is read from the block files it lies in. A block is hashed whole the
//! first time it is touched after `open`, and read in part from then on. Reading is plain blocking file access, to be
//! called from threads that compute; `open` itself walks the DAG off the runtime. While the files are open their
//! blocks are held, so removing the model frees them only afterwards.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use accel_backends::files::{FileInfo, ModelFiles};
use cid::Cid;

use super::blocks::{Blocks, Hold};
use super::error::StoreError;
use super::roots::RootKind;
use super::tree::{self, Absent, FileTree, Segment};
use super::weights;
use super::{Store, blocking};

/// The files under a CID, readable by range.
#[derive(Debug, Clone)]
pub struct BlockFiles {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    blocks: Blocks,
    cid: Cid,
    infos: Vec<FileInfo>,
    files: Vec<OpenFile>,
    is_directory: bool,
    _hold: Hold,
}

#[derive(Debug)]
struct OpenFile {
    segments: Vec<Segment>,
    /// Which segments' blocks have been hashed.
    verified: Vec<AtomicBool>,
}

impl Store {
    /// Opens the file or directory that `cid` names, or what `path` names inside it.
    ///
    /// Blocks of file contents may be missing; reading them is what fails then.
    ///
    /// # Errors
    /// `Missing` when a directory or inner node is not here, `NoEntry`, `NotUnixFs`, `Corrupt` or `Io`.
    pub async fn open(&self, cid: &Cid, path: Option<&str>) -> Result<BlockFiles, StoreError> {
        let store = self.clone();
        let (cid, path) = (*cid, path.unwrap_or_default().to_owned());
        blocking(move || store.open_blocking(&cid, &path)).await
    }

    pub(super) fn open_blocking(&self, cid: &Cid, path: &str) -> Result<BlockFiles, StoreError> {
        let blocks = self.blocks();
        let only = path.rsplit('/').find(|name| !name.is_empty()).map(str::to_owned);
        let name = only.or_else(|| self.pinned_name(cid));
        let (target, tree, hold) = {
            // No collection between finding the blocks and holding them.
            let _order = self.roots();
            let target = tree::resolve(blocks, cid, path)?;
            let tree = tree::walk(blocks, &target, Absent::Fail)?;
            let hold = blocks.hold();
            tree.blocks().for_each(|block| hold.keep(block));
            (target, tree, hold)
        };
        let mut infos = Vec::with_capacity(tree.files.len());
        let mut files = Vec::with_capacity(tree.files.len());
        for FileTree { path, bytes, segments } in tree.files {
            let name = if path.is_empty() { file_name(blocks, name.as_deref(), &segments)? } else { path };
            infos.push(FileInfo { name, bytes });
            let verified = segments.iter().map(|_| AtomicBool::new(false)).collect();
            files.push(OpenFile { segments, verified });
        }
        let blocks = blocks.clone();
        let is_directory = tree.is_directory;
        Ok(BlockFiles { inner: Arc::new(Inner { blocks, cid: target, infos, files, is_directory, _hold: hold }) })
    }
}

/// A lone file has no name under its CID: the name it was added with, or one that says what it is.
fn file_name(blocks: &Blocks, known: Option<&str>, segments: &[Segment]) -> Result<String, StoreError> {
    if let Some(name) = known.filter(|name| !name.is_empty()) {
        return Ok(name.to_owned());
    }
    let kind = match segments.first() {
        Some(first) => match blocks.read(&first.cid)? {
            Some(block) => weights::file_kind(block.get(first.block_offset as usize..).unwrap_or_default()),
            None => RootKind::File,
        },
        None => RootKind::File,
    };
    Ok(if kind == RootKind::Gguf { "model.gguf".into() } else { "file".into() })
}

impl BlockFiles {
    /// The CID these files lie under, in version 1.
    pub fn cid(&self) -> &Cid {
        &self.inner.cid
    }

    /// Whether they lie in a directory, and are not one file.
    pub fn is_directory(&self) -> bool {
        self.inner.is_directory
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.inner.infos.iter().map(|info| info.bytes).sum()
    }

    /// What the files look like.
    pub fn kind(&self) -> Result<RootKind, StoreError> {
        if self.inner.is_directory {
            return Ok(weights::directory_kind(self.inner.infos.iter().map(|info| info.name.as_str())));
        }
        let mut magic = [0; 4];
        match self.inner.infos.first() {
            Some(info) if info.bytes >= magic.len() as u64 => {
                self.read_at(&info.name, 0, &mut magic)
                    .map_err(|source| StoreError::Io { path: self.inner.blocks.directory().to_owned(), source })?;
                Ok(weights::file_kind(&magic))
            }
            _ => Ok(RootKind::File),
        }
    }

    /// Bytes of a file that are here, in `range`.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn here_bytes(&self, file: usize, range: std::ops::Range<u64>) -> Result<u64, StoreError> {
        let mut here = 0;
        for segment in overlapping(&self.inner.files[file].segments, range.start) {
            if segment.offset >= range.end {
                break;
            }
            if self.inner.blocks.len(&segment.cid)?.is_some() {
                let end = (segment.offset + segment.bytes).min(range.end);
                here += end.saturating_sub(segment.offset.max(range.start));
            }
        }
        Ok(here)
    }

    fn read_segment(&self, file: &OpenFile, index: usize, from: u64, buffer: &mut [u8]) -> io::Result<()> {
        let segment = &file.segments[index];
        let start = segment.block_offset + from;
        if file.verified[index].load(Ordering::Acquire) {
            let mut block =
                std::fs::File::open(self.inner.blocks.path(&segment.cid)).map_err(|e| absent(segment, e))?;
            block.seek(SeekFrom::Start(start))?;
            return block.read_exact(buffer).map_err(|error| absent(segment, error));
        }
        let block = self.inner.blocks.read(&segment.cid).map_err(corrupt)?;
        let block = block.ok_or_else(|| absent(segment, io::ErrorKind::NotFound.into()))?;
        let declared = (segment.block_offset + segment.bytes) as usize;
        if segment.block_offset == 0 && block.len() != declared || block.len() < declared {
            let found = format!("block {}: {} bytes where its file declares {declared}", segment.cid, block.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, found));
        }
        file.verified[index].store(true, Ordering::Release);
        buffer.copy_from_slice(&block[start as usize..start as usize + buffer.len()]);
        Ok(())
    }
}

impl ModelFiles for BlockFiles {
    fn files(&self) -> &[FileInfo] {
        &self.inner.infos
    }

    fn read_at(&self, file: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at =
            self.inner.infos.iter().position(|info| info.name == file).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("{}: no file `{file}`", self.inner.cid))
            })?;
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.inner.infos[at].bytes) {
            let wanted =
                format!("{file}: {} bytes at {offset} pass its end at {}", buffer.len(), self.inner.infos[at].bytes);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, wanted));
        }
        let open = &self.inner.files[at];
        let mut index = first_overlapping(&open.segments, offset);
        let (mut position, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let segment = open.segments.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
            let from = position - segment.offset;
            let bytes = (segment.bytes - from).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(bytes);
            if bytes > 0 {
                self.read_segment(open, index, from, now)?;
            }
            position += bytes as u64;
            rest = later;
            index += 1;
        }
        Ok(())
    }
}

/// Index of the segment that holds `offset`.
fn first_overlapping(segments: &[Segment], offset: u64) -> usize {
    segments.partition_point(|segment| segment.offset + segment.bytes <= offset)
}

fn overlapping(segments: &[Segment], offset: u64) -> &[Segment] {
    &segments[first_overlapping(segments, offset)..]
}

fn absent(segment: &Segment, error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), StoreError::Missing { cid: segment.cid }),
        kind => io::Error::new(kind, format!("block {}: {error}", segment.cid)),
    }
}

fn corrupt(error: StoreError) -> io::Error {
    match error {
        StoreError::Io { source, path } => io::Error::new(source.kind(), format!("{}: {source}", path.display())),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}
