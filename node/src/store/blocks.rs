//! The block files: reading, writing, counting and guarding them.
//!
//! Blocks lie where rust-ipfs keeps them (`blockstore/<2 characters before the last>/<cid>.data`), so bitswap serves
//! what is written here. They are written here all the same, not through the repository: its `put` holds one lock and
//! waits for the disk twice a block, hides whether the block was new, and drops the error of a full disk. A block
//! becomes visible complete (temporary file, then hard link); the disk is waited for once, before a pin is written.
//! A block that a power failure cut short is found by its hash and fetched again.
//!
//! `used` counts bytes of blocks plus bytes promised to running work, so that several fetches cannot pass the quota
//! together. A `Hold` keeps blocks of running work and of open models from garbage collection.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cid::Cid;

use super::dag;
use super::error::StoreError;

/// Larger blocks are refused: they cannot be exchanged by bitswap.
pub(super) const MAX_BLOCK_BYTES: u64 = 2 << 20;

/// A handle on the block files.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    quota: u64,
    used: AtomicU64,
    /// How many holds each block has.
    held: Mutex<HashMap<Cid, u32>>,
    temporary: AtomicU64,
}

/// What was there when a block was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    New,
    Existed,
}

impl Blocks {
    /// Opens the block files under `directory`, counts them once, and removes files that a crash left half written.
    pub fn open(directory: PathBuf, quota: u64) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&directory).map_err(|source| StoreError::Io { path: directory.clone(), source })?;
        let blocks = Self {
            inner: Arc::new(Inner {
                directory,
                quota,
                used: AtomicU64::new(0),
                held: Mutex::default(),
                temporary: AtomicU64::new(0),
            }),
        };
        let mut used = 0;
        blocks.visit(|entry| match entry {
            Found::Block { bytes, .. } => used += bytes,
            Found::Temporary(path) => {
                // Best effort: what stays is a few bytes outside the count, tried again at the next start.
                let _ = std::fs::remove_file(path);
            }
        })?;
        blocks.inner.used.store(used, Ordering::Relaxed);
        Ok(blocks)
    }

    pub fn quota(&self) -> u64 {
        self.inner.quota
    }

    pub fn used(&self) -> u64 {
        self.inner.used.load(Ordering::Relaxed)
    }

    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// Where the block of a canonical CID lies.
    pub fn path(&self, cid: &Cid) -> PathBuf {
        let name = cid.to_string();
        let shard = name.len().checked_sub(3).map_or("_", |start| &name[start..start + 2]);
        self.inner.directory.join(shard).join(format!("{name}.data"))
    }

    /// Bytes of a block's file, if it is here.
    pub fn len(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        let path = self.path(cid);
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// The bytes of a block as they lie on disk, not yet compared with the CID.
    pub fn read_unverified(&self, cid: &Cid) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(cid);
        let read = || -> io::Result<Vec<u8>> {
            let file = std::fs::File::open(&path)?;
            let bytes = file.metadata()?.len();
            let mut data = Vec::with_capacity(bytes.min(MAX_BLOCK_BYTES) as usize + 1);
            file.take(MAX_BLOCK_BYTES + 1).read_to_end(&mut data)?;
            Ok(data)
        };
        match read() {
            Ok(data) => Ok(Some(data)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// The bytes of a block, compared with its CID.
    ///
    /// # Errors
    /// `Corrupt` when they differ.
    pub fn read(&self, cid: &Cid) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(data) = self.read_unverified(cid)? else {
            return Ok(None);
        };
        if dag::matches(cid, &data) {
            return Ok(Some(data));
        }
        Err(StoreError::Corrupt { cid: *cid, found: format!("{} bytes with another hash", data.len()) })
    }

    /// Promises `bytes` of the quota; what is not kept is given back when the promise is dropped.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError> {
        let quota = self.inner.quota;
        self.inner
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|&sum| sum <= quota)
            })
            .map_err(|used| StoreError::Quota { quota, used, needed: bytes })?;
        Ok(Reservation { blocks: self.clone(), bytes: AtomicU64::new(bytes) })
    }

    /// Stores a block that the caller has verified, inside the quota.
    pub fn put(&self, cid: &Cid, data: &[u8]) -> Result<Put, StoreError> {
        self.put_reserved(cid, data, &self.reserve(data.len() as u64)?)
    }

    /// Stores a block that the caller has verified, also over a damaged one.
    pub fn renew(&self, cid: &Cid, data: &[u8]) -> Result<Put, StoreError> {
        match self.read_unverified(cid)? {
            Some(known) if known == data => return Ok(Put::Existed),
            Some(_) => self.discard(cid)?,
            None => {}
        }
        self.put(cid, data)
    }

    /// Stores a block whose bytes are reserved; they are kept in the same breath, so that work which is dropped
    /// meanwhile leaves the count right.
    pub fn put_reserved(&self, cid: &Cid, data: &[u8], reserved: &Reservation) -> Result<Put, StoreError> {
        let path = self.path(cid);
        let serial = self.inner.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("data.{}.{serial}.accel.tmp", std::process::id()));
        let written = write_new(&temporary, data).and_then(|()| match std::fs::hard_link(&temporary, &path) {
            Ok(()) => Ok(Put::New),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Put::Existed),
            Err(error) => Err(error),
        });
        // The link, if it was made, is the block; the temporary name is done with either way.
        let _ = std::fs::remove_file(&temporary);
        if matches!(written, Ok(Put::New)) {
            reserved.keep(data.len() as u64);
        }
        written.map_err(|error| StoreError::writing(path, data.len() as u64, error))
    }

    /// Waits until everything written so far is on the disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        let path = self.directory();
        let sync = || -> io::Result<()> {
            #[cfg(target_os = "linux")]
            rustix::fs::syncfs(std::fs::File::open(path)?)?;
            #[cfg(not(target_os = "linux"))]
            rustix::fs::sync();
            Ok(())
        };
        sync().map_err(|source| StoreError::Io { path: path.to_owned(), source })
    }

    /// Removes a block whatever holds it: for bytes that are not those of the CID.
    pub fn discard(&self, cid: &Cid) -> Result<(), StoreError> {
        self.unlink(cid).map(|_| ())
    }

    /// Removes a block whose bytes were never counted.
    pub fn discard_uncounted(&self, cid: &Cid) -> Result<(), StoreError> {
        let path = self.path(cid);
        std::fs::remove_file(&path).map_err(|source| StoreError::Io { path, source })
    }

    /// Whether a block of the largest size could be written now.
    ///
    /// # Errors
    /// `DiskFull` or `Io`.
    pub fn probe_space(&self) -> Result<(), StoreError> {
        let path = self.directory().join("space.accel.tmp");
        let written = write_new(&path, &vec![0; MAX_BLOCK_BYTES as usize]);
        // The probe has told what it can, whether or not it goes.
        let _ = std::fs::remove_file(&path);
        match written {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|error| StoreError::writing(path, MAX_BLOCK_BYTES, error)),
        }
    }

    /// Removes a block unless running work or an open model holds it; its bytes if it went.
    pub fn remove_unheld(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        // The lock is kept over the removal: work that starts to hold the block now sees it gone.
        let held = self.held();
        if held.contains_key(cid) {
            return Ok(None);
        }
        self.unlink(cid)
    }

    /// Every block here with its bytes, in no order.
    pub fn list(&self) -> Result<Vec<(Cid, u64)>, StoreError> {
        let mut list = Vec::new();
        self.visit(|entry| {
            if let Found::Block { cid, bytes } = entry {
                list.push((cid, bytes));
            }
        })?;
        Ok(list)
    }

    /// A hold on no blocks yet.
    pub fn hold(&self) -> Hold {
        Hold { blocks: self.clone(), cids: Mutex::default() }
    }

    fn unlink(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        let Some(bytes) = self.len(cid)? else {
            return Ok(None);
        };
        let path = self.path(cid);
        match std::fs::remove_file(&path) {
            Ok(()) => {
                self.release(bytes);
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    fn release(&self, bytes: u64) {
        // Saturating: blocks that bitswap stored by itself were never counted.
        let update = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.inner.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Cid, u32>> {
        // A map of counters is whole after any panic of its holder.
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn visit(&self, mut found: impl FnMut(Found)) -> Result<(), StoreError> {
        let directory = self.directory();
        let failed = |path: &Path, source| StoreError::Io { path: path.to_owned(), source };
        for shard in std::fs::read_dir(directory).map_err(|error| failed(directory, error))? {
            let shard = shard.map_err(|error| failed(directory, error))?.path();
            if !shard.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(&shard).map_err(|error| failed(&shard, error))? {
                let file = file.map_err(|error| failed(&shard, error))?;
                let path = file.path();
                let extension = path.extension().and_then(|extension| extension.to_str());
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                match (extension, stem) {
                    (Some("data"), Some(stem)) => {
                        let Ok(cid) = Cid::try_from(stem) else { continue };
                        // A file that went between listing and asking is no longer a block.
                        let Ok(metadata) = file.metadata() else { continue };
                        found(Found::Block { cid, bytes: metadata.len() });
                    }
                    (Some("tmp"), _) => found(Found::Temporary(path)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

enum Found {
    Block { cid: Cid, bytes: u64 },
    Temporary(PathBuf),
}

fn write_new(path: &Path, data: &[u8]) -> io::Result<()> {
    let create = || std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = match create() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(shard) = path.parent() {
                std::fs::create_dir_all(shard)?;
            }
            create()?
        }
        other => other?,
    };
    file.write_all(data)
}

/// Bytes of the quota promised to running work.
#[derive(Debug)]
pub(super) struct Reservation {
    blocks: Blocks,
    bytes: AtomicU64,
}

impl Reservation {
    /// So many of the bytes are on disk now: they stay counted.
    pub fn keep(&self, bytes: u64) {
        let update = |left: u64| Some(left.saturating_sub(bytes));
        let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let left = *self.bytes.get_mut();
        if left > 0 {
            self.blocks.release(left);
        }
    }
}

/// Blocks that must not be collected while this lives.
#[derive(Debug)]
pub(super) struct Hold {
    blocks: Blocks,
    cids: Mutex<HashSet<Cid>>,
}

impl Hold {
    /// Holds a block. To be called before asking whether it is here.
    pub fn keep(&self, cid: &Cid) {
        if self.cids.lock().unwrap_or_else(PoisonError::into_inner).insert(*cid) {
            *self.blocks.held().entry(*cid).or_default() += 1;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let cids = std::mem::take(self.cids.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut held = self.blocks.held();
        for cid in cids {
            if let Some(count) = held.get_mut(&cid) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&cid);
                }
            }
        }
    }
}
