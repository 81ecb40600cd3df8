//! Leaves into a balanced tree, as Kubo's and Helia's importers build it.
//!
//! Children fill from the left, every leaf is at one depth, and a file of one leaf is that leaf. Nodes are emitted
//! as soon as they are full, so memory is one unfinished node for each level whatever the file's size. It neither
//! cuts files nor writes blocks: it hands finished nodes to the caller.

use super::dag::{self, DAG_PB, Part};

/// A tree under construction.
#[derive(Debug)]
pub(super) struct Balanced {
    links: usize,
    levels: Vec<Vec<Part>>,
}

impl Balanced {
    /// A tree with at most `links` children a node (two at least, or no tree would end).
    pub fn new(links: usize) -> Self {
        Self { links: links.max(2), levels: vec![Vec::new()] }
    }

    /// Appends a leaf; `emit` stores a finished node under its CID.
    pub fn push<E>(&mut self, leaf: Part, emit: &mut impl FnMut(&Part, &[u8]) -> Result<(), E>) -> Result<(), E> {
        self.push_at(0, leaf, emit)
    }

    /// Ends the file and returns its root, or `None` when no leaf was pushed.
    pub fn finish<E>(mut self, emit: &mut impl FnMut(&Part, &[u8]) -> Result<(), E>) -> Result<Option<Part>, E> {
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            let parts = std::mem::take(&mut self.levels[level]);
            if top && parts.len() <= 1 {
                return Ok(parts.first().copied());
            }
            if !parts.is_empty() {
                let node = close(&parts, emit)?;
                self.push_at(level + 1, node, emit)?;
            }
            level += 1;
        }
    }

    fn push_at<E>(
        &mut self,
        level: usize,
        part: Part,
        emit: &mut impl FnMut(&Part, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        if self.levels[level].len() == self.links {
            // Closed only now, when a sibling follows: a full last node must not be given a parent of its own.
            let parts = std::mem::take(&mut self.levels[level]);
            let node = close(&parts, emit)?;
            self.push_at(level + 1, node, emit)?;
        }
        self.levels[level].push(part);
        Ok(())
    }
}

fn close<E>(parts: &[Part], emit: &mut impl FnMut(&Part, &[u8]) -> Result<(), E>) -> Result<Part, E> {
    let block = dag::encode_file(parts);
    let node = Part {
        cid: dag::cid_of(DAG_PB, &block),
        file_bytes: parts.iter().map(|part| part.file_bytes).sum(),
        dag_bytes: parts.iter().map(|part| part.dag_bytes).sum::<u64>() + block.len() as u64,
    };
    emit(&node, &block)?;
    Ok(node)
}
