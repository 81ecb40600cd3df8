//! Export: what is stored here, as bytes that leave it: one file, or all blocks under a CID as a CAR file.
//!
//! Everything that will be sent is looked for first, so that what is not here whole fails before the first byte; it is held
//! until the last. A block is compared with its CID when it is read.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use accel_backends::files::ModelFiles;
use bytes::Bytes;
use cid::Cid;
use futures::stream::{self, BoxStream, StreamExt};

use super::blocks::Blocks;
use super::car;
use super::error::StoreError;
use super::open::BlockFiles;
use super::tree::{self, Absent};
use super::{Store, blocking};

/// Bytes of a file that are read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Bytes on their way out.
pub struct Export {
    /// How many there are.
    pub bytes: u64,
    /// They, in pieces.
    pub pieces: BoxStream<'static, io::Result<Bytes>>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Store {
    /// The blocks under a CID, or under what `path` names inside it, as a CAR file: nodes first, then the leaves in the
    /// order of their files, each once.
    ///
    /// # Errors
    /// `Missing` when one is not here, `NoEntry`, `NotUnixFs`, `Corrupt` or `Io`.
    pub async fn export_car(&self, cid: &Cid, path: &str) -> Result<Export, StoreError> {
        let opened = self.open(cid, Some(path)).await?;
        let blocks = self.blocks().clone();
        blocking(move || {
            let root = *opened.cid();
            let header = Bytes::from(car::header(&root)?);
            let mut bytes = header.len() as u64;
            let mut known = HashSet::new();
            let mut sections = Vec::new();
            for cid in tree::walk(&blocks, &root, Absent::Fail)?.blocks().filter(|cid| known.insert(**cid)) {
                let block_bytes = blocks.len(cid)?.ok_or(StoreError::Missing { cid: *cid })?;
                let section = car::section(cid, block_bytes);
                bytes += section.len() as u64 + block_bytes;
                sections.push((*cid, Bytes::from(section)));
            }
            let rest = stream::iter(sections).then(move |(cid, section)| {
                // The blocks are held as long as the files are open.
                let (blocks, opened) = (blocks.clone(), opened.clone());
                async move {
                    let block = blocking(move || block(&blocks, &cid, &opened)).await.map_err(io::Error::other)?;
                    Ok([section, block])
                }
            });
            let rest = rest.flat_map(|pieces: io::Result<[Bytes; 2]>| match pieces {
                Ok(pieces) => stream::iter(pieces.map(Ok)).left_stream(),
                Err(error) => stream::once(async { Err(error) }).right_stream(),
            });
            Ok(Export { bytes, pieces: stream::once(async { Ok(header) }).chain(rest).boxed() })
        })
        .await
    }

    /// The file that a CID, or `path` inside it, names.
    ///
    /// # Errors
    /// `Missing` when a part of it is not here, `NoEntry` when it is a directory, `NotUnixFs`, `Corrupt` or `Io`.
    pub async fn export_file(&self, cid: &Cid, path: &str) -> Result<Export, StoreError> {
        let opened = self.open(cid, Some(path)).await?;
        let blocks = self.blocks().clone();
        let name = match opened.files() {
            [only] if !opened.is_directory() => only.name.clone(),
            files => {
                let entries = files.iter().map(|file| file.name.clone()).collect();
                return Err(StoreError::NoEntry { path: format!("{cid}/{path} as a file"), entries });
            }
        };
        blocking(move || {
            for cid in tree::walk(&blocks, opened.cid(), Absent::Fail)?.blocks() {
                blocks.len(cid)?.ok_or(StoreError::Missing { cid: *cid })?;
            }
            let (bytes, name) = (opened.bytes(), Arc::<str>::from(name));
            let starts = (0..bytes).step_by(PIECE_BYTES as usize);
            let pieces = stream::iter(starts).then(move |start| {
                let (opened, name) = (opened.clone(), name.clone());
                let length = PIECE_BYTES.min(bytes - start);
                async move { piece(opened, name, start, length).await }
            });
            Ok(Export { bytes, pieces: pieces.boxed() })
        })
        .await
    }
}

fn block(blocks: &Blocks, cid: &Cid, _held: &BlockFiles) -> Result<Bytes, StoreError> {
    Ok(blocks.read(cid)?.ok_or(StoreError::Missing { cid: *cid })?.into())
}

async fn piece(opened: BlockFiles, name: Arc<str>, start: u64, length: u64) -> io::Result<Bytes> {
    let read = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; length as usize];
        opened.read_at(&name, start, &mut piece).map(|()| Bytes::from(piece))
    });
    read.await.map_err(io::Error::other)?
}
