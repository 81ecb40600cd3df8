//! Import: the blocks of a CAR file.
//!
//! A block is stored as it comes, under a hold; a root is pinned once all that lies under it is here, be it from this file
//! or from before. What no root needs is garbage.

use std::collections::HashSet;
use std::io::Read;
use std::time::Instant;

use cid::Cid;

use super::add::AddReport;
use super::blocks::Put;
use super::car::CarReader;
use super::dag::{self, RAW};
use super::error::StoreError;
use super::open::BlockFiles;
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
    let mut verified = HashSet::new();
    while let Some((cid, block)) = car.next()? {
        hold.keep(&cid);
        verified.insert(cid);
        if blocks.renew(&cid, &block)? == Put::New {
            new_blocks += 1;
            new_bytes += block.len() as u64;
        }
    }
    blocks.sync()?;
    let mut reports = Vec::with_capacity(roots.len());
    for cid in roots {
        let (root, held) = whole(store, &cid, name, &verified)?;
        store.pin(root.clone(), held)?;
        // What is new belongs to the file and not to one of its roots.
        let (new_blocks, new_bytes) = (std::mem::take(&mut new_blocks), std::mem::take(&mut new_bytes));
        reports.push(AddReport { root, new_blocks, new_bytes, seconds: started.elapsed().as_secs_f64() });
    }
    drop(hold);
    Ok(reports)
}

/// A root all of whose blocks are here as its files declare them, and what holds those that the file did not bring.
fn whole(store: &Store, cid: &Cid, name: &str, verified: &HashSet<Cid>) -> Result<(Root, BlockFiles), StoreError> {
    let lacks = |lacking: &Cid| StoreError::Car { found: format!("no block {lacking}, which its root {cid} needs") };
    let opened = match store.open_blocking(cid, "") {
        Err(StoreError::Missing { cid }) => return Err(lacks(&cid)),
        opened => opened?,
    };
    let blocks = store.blocks();
    let tree = tree::walk(blocks, cid, Absent::Fail)?;
    for segment in tree.files.iter().flat_map(|file| &file.segments) {
        let found = match verified.contains(&segment.cid) {
            true => blocks.len(&segment.cid)?,
            false => blocks.read(&segment.cid)?.map(|block| block.len() as u64),
        };
        let found = found.ok_or_else(|| lacks(&segment.cid))?;
        let declared = segment.block_offset + segment.bytes;
        if found < declared || (segment.cid.codec() == RAW && found > declared) {
            let found = format!("a block of {found} bytes where its file declares {declared}");
            return Err(StoreError::NotUnixFs { cid: segment.cid, found });
        }
    }
    let known = store.pinned_name(cid).filter(|name| !name.is_empty());
    let root = Root {
        cid: *cid,
        name: known.unwrap_or_else(|| name.to_owned()),
        kind: opened.kind()?,
        bytes: opened.bytes(),
        blocks: tree.blocks().count() as u64,
        added_unix_seconds: unix_seconds(),
        part: false,
    };
    Ok((root, opened))
}
