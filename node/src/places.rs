//! How many places peers hold at this node, with their streams or requests, so that none of them can take all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use libp2p::PeerId;

/// The places of one protocol. Clones share the count.
#[derive(Clone, Debug)]
pub struct Places {
    counts: Arc<Mutex<HashMap<PeerId, usize>>>,
    in_all: usize,
    per_peer: usize,
}

impl Places {
    /// All places are free: `in_all`, and `per_peer` for any one peer.
    pub fn new(in_all: usize, per_peer: usize) -> Self {
        Self { counts: Arc::default(), in_all, per_peer }
    }

    /// A place for one more of `peer`, if there is one.
    pub fn enter(&self, peer: PeerId) -> Option<Place> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = counts.get(&peer).copied().unwrap_or_default();
        if of_peer >= self.per_peer || counts.values().sum::<usize>() >= self.in_all {
            return None;
        }
        counts.insert(peer, of_peer + 1);
        Some(Place { open: self.clone(), peer })
    }
}

/// One place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    open: Places,
    peer: PeerId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}
