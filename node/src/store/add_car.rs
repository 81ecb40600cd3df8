//! Import: the blocks of a CAR file.
//!
//! A block is stored as it comes, under a hold; a root is pinned once all that lies under it is here, be it from this file
//! or from before. What no root needs is garbage.

use std::io::Read;
use std::time::Instant;

use cid::Cid;

use super::add::AddReport;
use super::blocks::Put;
use super::car::CarReader;
use super::dag;
use super::error::StoreError;
use super::roots::Root;
use super::tree::{self, Absent};
use super::{Store, blocking, unix_seconds};

/// Roots of one file.
const MAX_ROOTS: usize = 256;

impl Store {
    /// Imports a CAR file from a source that may block, and pins its roots, called `name`.
    ///
    /// # Errors
    /// `Car` when it is none, names no root, or lacks blocks of one; `NotUnixFs`, `TooLarge`, `Quota`, `DiskFull` or `Io`.
    pub async fn add_car(
        &self,
        source: impl Read + Send + 'static,
        name: String,
    ) -> Result<Vec<AddReport>, StoreError> {
        let store = self.clone();
        blocking(move || import(&store, source, &name)).await
    }
}

fn import(store: &Store, source: impl Read, name: &str) -> Result<Vec<AddReport>, StoreError> {
    let started = Instant::now();
    let blocks = store.blocks();
    let hold = blocks.hold();
    let mut car = CarReader::open(source)?;
    let mut roots: Vec<Cid> = car.roots().iter().map(dag::canonical).collect::<Result<_, _>>()?;
    roots.sort_unstable();
    roots.dedup();
    if roots.is_empty() || roots.len() > MAX_ROOTS {
        return Err(StoreError::Car { found: format!("{} roots, expected 1 to {MAX_ROOTS}", roots.len()) });
    }
    let (mut new_blocks, mut new_bytes) = (0, 0);
    while let Some((cid, block)) = car.next()? {
        hold.keep(&cid);
        if blocks.renew(&cid, &block)? == Put::New {
            new_blocks += 1;
            new_bytes += block.len() as u64;
        }
    }
    blocks.sync()?;
    let mut reports = Vec::with_capacity(roots.len());
    for cid in roots {
        let root = whole(store, &cid, name)?;
        store.pin(root.clone(), ())?;
        // What is new belongs to the file and not to one of its roots.
        let (new_blocks, new_bytes) = (std::mem::take(&mut new_blocks), std::mem::take(&mut new_bytes));
        reports.push(AddReport { root, new_blocks, new_bytes, seconds: started.elapsed().as_secs_f64() });
    }
    drop(hold);
    Ok(reports)
}

/// A root all of whose blocks are here.
fn whole(store: &Store, cid: &Cid, name: &str) -> Result<Root, StoreError> {
    let lacks = |lacking: &Cid| StoreError::Car { found: format!("no block {lacking}, which its root {cid} needs") };
    let tree = tree::walk(store.blocks(), cid, Absent::Note)?;
    if let Some(missing) = tree.missing.first() {
        return Err(lacks(&missing.cid));
    }
    let mut count = 0;
    for block in tree.blocks() {
        count += 1;
        if store.blocks().len(block)?.is_none() {
            return Err(lacks(block));
        }
    }
    let opened = store.open_blocking(cid, "")?;
    Ok(Root {
        cid: *cid,
        name: name.to_owned(),
        kind: opened.kind()?,
        bytes: opened.bytes(),
        blocks: count,
        added_unix_seconds: unix_seconds(),
        part: false,
    })
}
