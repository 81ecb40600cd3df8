//! Letting go: unpinning a root and freeing blocks that no pin holds.
//!
//! Blocks of a pinned root, of running imports and fetches, and of open models stay. The list of roots is locked from
//! the marking to the last removal, and a running import or fetch drops its hold only after it pinned its root under
//! that lock, so a block is held or marked at every moment.

use std::collections::HashSet;

use cid::Cid;

use super::dag;
use super::error::StoreError;
use super::roots::Roots;
use super::tree::{self, Absent};
use super::{Store, blocking};

/// What was freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Blocks removed.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Unpins a root and frees the blocks that were only its own.
    ///
    /// Blocks of a model that is open stay until it is closed and garbage is collected.
    ///
    /// # Errors
    /// `NotPinned`; `Missing` or `Corrupt` when another root is damaged, so that it is not known which blocks it
    /// shares: this root is unpinned then and nothing is freed.
    pub async fn remove(&self, cid: &Cid) -> Result<Freed, StoreError> {
        let store = self.clone();
        let cid = dag::canonical(cid)?;
        blocking(move || {
            let mut roots = store.roots();
            let mut freed = Freed::default();
            let removed = match roots.remove(&cid) {
                // A full disk has no room for the new list of roots either, so the blocks go first. Should the power
                // fail in between, the model is still listed, as incomplete, and can be removed again.
                Err(StoreError::DiskFull { .. }) => {
                    freed = store.free_own(&roots, &cid)?;
                    roots.remove(&cid)?
                }
                removed => removed?,
            };
            if !removed {
                return Err(StoreError::NotPinned { cid });
            }
            store.inner.changed.send_replace(());
            let rest = store.free_own(&roots, &cid)?;
            Ok(Freed { blocks: freed.blocks + rest.blocks, bytes: freed.bytes + rest.bytes })
        })
        .await
    }

    /// Frees the blocks under `cid` that nothing needs, if it is not pinned.
    ///
    /// # Errors
    /// As [`Store::gc`].
    pub async fn free_unpinned(&self, cid: Cid) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || {
            let roots = store.roots();
            if roots.get(&cid).is_some() {
                return Ok(());
            }
            let marked = store.mark(roots.list().iter().map(|root| &root.cid))?;
            // Of what is here in part, the part that can be told goes; the rest is garbage.
            let tree = tree::walk(store.blocks(), &cid, Absent::Note)?;
            store.free(tree.blocks().filter(|block| !marked.contains(*block))).map(drop)
        })
        .await
    }

    /// Frees the blocks under `cid` that no other root holds.
    fn free_own(&self, roots: &Roots, cid: &Cid) -> Result<Freed, StoreError> {
        let others = roots.list().iter().map(|root| &root.cid).filter(|root| *root != cid);
        let marked = self.mark(others)?;
        match tree::walk(self.blocks(), cid, Absent::Note) {
            Ok(tree) if tree.missing.is_empty() => {
                let own: HashSet<Cid> = tree.blocks().filter(|block| !marked.contains(*block)).copied().collect();
                self.free(own.iter())
            }
            // A damaged model does not say what was its own: look at every block.
            _ => self.sweep(&marked),
        }
    }

    /// Frees every block that no pinned root, running work or open model holds.
    ///
    /// # Errors
    /// `Missing` or `Corrupt` when a pinned root is damaged: its blocks cannot be told from garbage until it is
    /// fetched again or removed. Nothing is freed then.
    pub async fn gc(&self) -> Result<Freed, StoreError> {
        let store = self.clone();
        blocking(move || {
            let roots = store.roots();
            let marked = store.mark(roots.list().iter().map(|root| &root.cid))?;
            store.sweep(&marked)
        })
        .await
    }

    fn mark<'a>(&self, roots: impl Iterator<Item = &'a Cid>) -> Result<HashSet<Cid>, StoreError> {
        let mut marked = HashSet::new();
        for root in roots {
            marked.extend(tree::walk(self.blocks(), root, Absent::Fail)?.blocks().copied());
        }
        Ok(marked)
    }

    fn sweep(&self, marked: &HashSet<Cid>) -> Result<Freed, StoreError> {
        let all = self.blocks().list()?;
        self.free(all.iter().map(|(cid, _)| cid).filter(|cid| !marked.contains(*cid)))
    }

    fn free<'a>(&self, cids: impl Iterator<Item = &'a Cid>) -> Result<Freed, StoreError> {
        let mut freed = Freed::default();
        for cid in cids {
            if let Some(bytes) = self.blocks().remove_unheld(cid)? {
                freed.blocks += 1;
                freed.bytes += bytes;
            }
        }
        Ok(freed)
    }
}
