//! How much memory the weights on this node take, of models and of shares of models.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory for weights. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    budget_bytes: u64,
    used_bytes: Arc<AtomicU64>,
}

impl Memory {
    /// Nothing is taken yet.
    pub fn new(budget_bytes: u64) -> Self {
        Self { budget_bytes, used_bytes: Arc::default() }
    }

    /// What all weights together may take.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// What they take.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// What they may still take.
    pub fn left_bytes(&self) -> u64 {
        self.budget_bytes.saturating_sub(self.used_bytes())
    }

    /// Takes memory, if there is so much.
    pub fn reserve(&self, bytes: u64) -> Option<Reserved> {
        let budget = self.budget_bytes;
        let more = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= budget);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Reserved { memory: self.clone(), bytes })
    }
}

/// Memory that is taken; given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    memory: Memory,
    bytes: u64,
}

impl Reserved {
    /// How much.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.memory.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
