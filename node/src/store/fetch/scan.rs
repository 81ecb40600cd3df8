//! What is here of a root, and what is missing.
//!
//! Blocks found here are hashed once a fetch; a damaged one is removed and counts as missing. Everything the walk names
//! is held before it is looked for, so that the collector cannot take it between the look and the pin.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use cid::Cid;

use crate::store::blocks::{Blocks, Hold};
use crate::store::dag::RAW;
use crate::store::error::StoreError;
use crate::store::tree::{self, Absent, FileTree, Missing, Tree};

/// Which blocks are wanted.
#[derive(Debug, Clone)]
pub(super) enum Scope {
    /// All under the root.
    All,
    /// Ranges of one file.
    Ranges { file: String, ranges: Vec<Range<u64>> },
    /// The first bytes of every file.
    EveryFile { bytes: u64 },
    /// Ranges of several files by name, those of each in order and apart.
    Parts(HashMap<String, Vec<Range<u64>>>),
}

/// The state of a root.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub missing: Vec<Missing>,
    /// Blocks that are here, with their bytes.
    pub here: HashMap<Cid, u64>,
}

pub(super) fn scan(
    blocks: &Blocks,
    root: &Cid,
    scope: &Scope,
    hold: &Hold,
    verified: &mut HashSet<Cid>,
) -> Result<Scan, StoreError> {
    let Some(tree) = walk(blocks, root, scope)? else {
        return Ok(Scan { missing: vec![Missing { cid: *root, bytes: None }], here: HashMap::new() });
    };
    // Of a part, each block is counted when it is asked for.
    if matches!(scope, Scope::All) && tree.bytes() > blocks.quota() {
        return Err(StoreError::Quota { quota: blocks.quota(), used: blocks.used(), needed: tree.bytes() });
    }
    let mut scan = Scan { missing: Vec::new(), here: HashMap::new() };
    let mut seen = HashSet::new();
    for missing in &tree.missing {
        hold.keep(&missing.cid);
        if seen.insert(missing.cid) {
            scan.missing.push(*missing);
        }
    }
    for cid in &tree.nodes {
        hold.keep(cid);
        if seen.insert(*cid) {
            look(blocks, cid, None, verified, &mut scan)?;
        }
    }
    for file in &tree.files {
        for segment in &file.segments {
            if !wanted(scope, file, segment.offset..segment.offset + segment.bytes) {
                continue;
            }
            hold.keep(&segment.cid);
            if seen.insert(segment.cid) {
                let bytes = (segment.cid.codec() == RAW).then_some(segment.bytes);
                look(blocks, &segment.cid, bytes, verified, &mut scan)?;
            }
        }
    }
    Ok(scan)
}

/// Walks over what is here, removing damaged nodes; `None` when not even the start is here.
fn walk(blocks: &Blocks, root: &Cid, scope: &Scope) -> Result<Option<Tree>, StoreError> {
    // Each turn removes a damaged block, so there are at most as many turns as blocks.
    loop {
        let walked = match scope {
            Scope::Ranges { file, .. } => walk_file(blocks, root, file),
            _ => tree::walk(blocks, root, Absent::Note).map(Some),
        };
        match walked {
            Err(StoreError::Corrupt { cid, .. }) => blocks.discard(&cid)?,
            other => return other,
        }
    }
}

/// Walks one file and the directories that lead to it.
fn walk_file(blocks: &Blocks, root: &Cid, file: &str) -> Result<Option<Tree>, StoreError> {
    match tree::resolve(blocks, root, file) {
        Ok(target) => tree::walk(blocks, &target, Absent::Note).map(Some),
        Err(StoreError::Missing { cid }) => {
            Ok(Some(Tree { missing: vec![Missing { cid, bytes: None }], ..Tree::default() }))
        }
        Err(error) => Err(error),
    }
}

fn look(
    blocks: &Blocks,
    cid: &Cid,
    bytes: Option<u64>,
    verified: &mut HashSet<Cid>,
    scan: &mut Scan,
) -> Result<(), StoreError> {
    let found = if verified.contains(cid) {
        blocks.len(cid)?
    } else {
        match blocks.read(cid) {
            Ok(block) => block.map(|block| block.len() as u64),
            Err(StoreError::Corrupt { .. }) => {
                blocks.discard(cid)?;
                None
            }
            Err(error) => return Err(error),
        }
    };
    let Some(found) = found else {
        scan.missing.push(Missing { cid: *cid, bytes });
        return Ok(());
    };
    if let Some(declared) = bytes.filter(|&declared| declared != found) {
        let found = format!("a block of {found} bytes where its file declares {declared}");
        return Err(StoreError::NotUnixFs { cid: *cid, found });
    }
    verified.insert(*cid);
    scan.here.insert(*cid, found);
    Ok(())
}

fn wanted(scope: &Scope, file: &FileTree, segment: Range<u64>) -> bool {
    let touches = |range: &Range<u64>| range.start < segment.end && segment.start < range.end;
    match scope {
        Scope::All => true,
        Scope::Ranges { ranges, .. } => ranges.iter().any(touches),
        Scope::EveryFile { bytes } => touches(&(0..(*bytes).min(file.bytes))),
        Scope::Parts(files) => {
            // A lone file has no name under its root.
            let only = files.values().next().filter(|_| file.path.is_empty());
            let ranges = files.get(&file.path).or(only).map_or(&[][..], Vec::as_slice);
            ranges.get(ranges.partition_point(|range| range.end <= segment.start)).is_some_and(touches)
        }
    }
}
