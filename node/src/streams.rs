//! How many streams peers hold open at this node, so that none of them can take all places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use libp2p::PeerId;

/// The open streams of one protocol. Clones share the count.
#[derive(Clone, Debug)]
pub struct OpenStreams {
    counts: Arc<Mutex<HashMap<PeerId, usize>>>,
    in_all: usize,
    per_peer: usize,
}

impl OpenStreams {
    /// No streams yet; at most `in_all`, and `per_peer` of any one peer.
    pub fn new(in_all: usize, per_peer: usize) -> Self {
        Self { counts: Arc::default(), in_all, per_peer }
    }

    /// A place for one more stream of `peer`, if there is one.
    pub fn enter(&self, peer: PeerId) -> Option<OpenStream> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = counts.get(&peer).copied().unwrap_or_default();
        if of_peer >= self.per_peer || counts.values().sum::<usize>() >= self.in_all {
            return None;
        }
        counts.insert(peer, of_peer + 1);
        Some(OpenStream { open: self.clone(), peer })
    }
}

/// One stream's place; given back when dropped.
#[derive(Debug)]
pub struct OpenStream {
    open: OpenStreams,
    peer: PeerId,
}

impl Drop for OpenStream {
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
