//! Walking a DAG over the blocks that are here.
//!
//! One walker serves everything that must know what lies under a root: opening, the check after a fetch, garbage
//! collection, and finding what a fetch still lacks. Inner nodes are read and verified; leaves are only named, with
//! the length that their parent declares. A stranger chose these DAGs, so depth, nodes and leaves are bounded and
//! declared sizes must add up. It never asks the network.

use cid::Cid;

use super::blocks::Blocks;
use super::dag::{self, DAG_PB, Entry, Node, Part};
use super::error::StoreError;

/// Deeper DAGs are refused: a terabyte file has a depth of three, a directory tree some more.
const MAX_DEPTH: usize = 32;
/// Leaves and nodes of one root: a tebibyte in blocks of 1 MiB.
const MAX_BLOCKS: usize = 1 << 20;
/// Inner nodes read in one walk, those that are met twice counted twice: the links of some terabytes.
const MAX_NODE_BYTES: u64 = 256 << 20;

/// A stretch of a file that lies in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub cid: Cid,
    /// Where it starts in the file.
    pub offset: u64,
    pub bytes: u64,
    /// Where it starts in the block.
    pub block_offset: u64,
}

/// A file under a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileTree {
    /// Its path under the root with `/` between names; empty when the root is the file.
    pub path: String,
    pub bytes: u64,
    pub segments: Vec<Segment>,
}

/// All that lies under a root.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    pub files: Vec<FileTree>,
    /// Nodes with links, directories among them.
    pub nodes: Vec<Cid>,
    pub is_directory: bool,
    /// Blocks that the walk needed and did not find; empty unless the walk was told to go on.
    pub missing: Vec<Missing>,
}

/// A block that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    pub cid: Cid,
    /// Bytes of the block, known for leaves only.
    pub bytes: Option<u64>,
}

impl Tree {
    /// Every block under the root, some of them more than once.
    pub fn blocks(&self) -> impl Iterator<Item = &Cid> {
        let leaves = self.files.iter().flat_map(|file| &file.segments).map(|segment| &segment.cid);
        self.nodes.iter().chain(leaves)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// What to do about a node that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// Fail with `Missing`.
    Fail,
    /// Note it, leave out what is under it, and go on.
    Note,
}

/// Walks everything under `root`.
///
/// # Errors
/// `Missing`, `Corrupt`, `NotUnixFs`, `TooLarge` or `Io`.
pub(super) fn walk(blocks: &Blocks, root: &Cid, absent: Absent) -> Result<Tree, StoreError> {
    let mut walker = Walker { blocks, root: *root, absent, tree: Tree::default(), visits: 0, read_bytes: 0 };
    let root = dag::canonical(root)?;
    match walker.node(&root)? {
        Some(Node::Directory { entries }) => {
            walker.tree.is_directory = true;
            walker.tree.nodes.push(root);
            walker.directory("", entries, 1)?;
        }
        Some(Node::File { inline, parts, bytes }) => {
            let file = Start { cid: root, node: Node::File { inline, parts, bytes } };
            walker.file(String::new(), file, 1)?;
        }
        None => {}
    }
    Ok(walker.tree)
}

/// Follows `path` from `root` and returns the CID it names.
pub(super) fn resolve(blocks: &Blocks, root: &Cid, path: &str) -> Result<Cid, StoreError> {
    let mut at = dag::canonical(root)?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let block = blocks.read(&at)?.ok_or(StoreError::Missing { cid: at })?;
        let entries = match dag::decode(&at, &block)? {
            Node::Directory { entries } => entries,
            Node::File { .. } => Vec::new(),
        };
        let Some(entry) = entries.iter().find(|entry| entry.name == name) else {
            let entries = entries.into_iter().map(|entry| entry.name).collect();
            return Err(StoreError::NoEntry { path: format!("{root}/{path}"), entries });
        };
        at = dag::canonical(&entry.cid)?;
    }
    Ok(at)
}

struct Walker<'a> {
    blocks: &'a Blocks,
    root: Cid,
    absent: Absent,
    tree: Tree,
    visits: usize,
    read_bytes: u64,
}

struct Start {
    cid: Cid,
    node: Node,
}

impl Walker<'_> {
    fn node(&mut self, cid: &Cid) -> Result<Option<Node>, StoreError> {
        self.count()?;
        match self.blocks.read(cid)? {
            Some(block) => {
                self.read_bytes += block.len() as u64;
                if self.read_bytes > MAX_NODE_BYTES {
                    let what = format!("{}: bytes of inner nodes", self.root);
                    return Err(StoreError::TooLarge { what, found: self.read_bytes, limit: MAX_NODE_BYTES });
                }
                dag::decode(cid, &block).map(Some)
            }
            None if self.absent == Absent::Note => {
                self.tree.missing.push(Missing { cid: *cid, bytes: None });
                Ok(None)
            }
            None => Err(StoreError::Missing { cid: *cid }),
        }
    }

    fn count(&mut self) -> Result<(), StoreError> {
        self.visits += 1;
        if self.visits > MAX_BLOCKS {
            let what = format!("{}: number of blocks", self.root);
            return Err(StoreError::TooLarge { what, found: self.visits as u64, limit: MAX_BLOCKS as u64 });
        }
        Ok(())
    }

    fn deeper(&self, depth: usize) -> Result<usize, StoreError> {
        if depth >= MAX_DEPTH {
            let what = format!("{}: depth of the DAG", self.root);
            return Err(StoreError::TooLarge { what, found: depth as u64 + 1, limit: MAX_DEPTH as u64 });
        }
        Ok(depth + 1)
    }

    fn directory(&mut self, path: &str, entries: Vec<Entry>, depth: usize) -> Result<(), StoreError> {
        let depth = self.deeper(depth)?;
        for entry in entries {
            let path = if path.is_empty() { entry.name } else { format!("{path}/{}", entry.name) };
            let cid = dag::canonical(&entry.cid)?;
            match self.node(&cid)? {
                Some(Node::Directory { entries }) => {
                    self.tree.nodes.push(cid);
                    self.directory(&path, entries, depth)?;
                }
                Some(node) => self.file(path, Start { cid, node }, depth)?,
                None => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, path: String, start: Start, depth: usize) -> Result<(), StoreError> {
        let mut segments = Vec::new();
        let bytes = self.parts(&start.cid, start.node, 0, depth, &mut segments)?;
        self.tree.files.push(FileTree { path, bytes, segments });
        Ok(())
    }

    /// Appends the segments of a file node at `offset` and returns the node's bytes.
    fn parts(
        &mut self,
        cid: &Cid,
        node: Node,
        offset: u64,
        depth: usize,
        segments: &mut Vec<Segment>,
    ) -> Result<u64, StoreError> {
        let refuse = |found: &str| StoreError::NotUnixFs { cid: *cid, found: found.to_owned() };
        let Node::File { inline, parts, bytes } = node else {
            return Err(refuse("a directory inside a file"));
        };
        if parts.is_empty() {
            let block_offset = inline.start as u64;
            segments.push(Segment { cid: *cid, offset, bytes: inline.len() as u64, block_offset });
            return Ok(bytes);
        }
        if !inline.is_empty() {
            return Err(refuse("a file node with both links and bytes of its own"));
        }
        self.tree.nodes.push(*cid);
        let depth = self.deeper(depth)?;
        let mut at = offset;
        for part in parts {
            self.part(&part, at, depth, segments)?;
            at = at.checked_add(part.file_bytes).ok_or_else(|| refuse("a file of more than 2^64 bytes"))?;
        }
        Ok(bytes)
    }

    fn part(&mut self, part: &Part, at: u64, depth: usize, segments: &mut Vec<Segment>) -> Result<(), StoreError> {
        let cid = dag::canonical(&part.cid)?;
        if cid.codec() != DAG_PB {
            self.count()?;
            segments.push(Segment { cid, offset: at, bytes: part.file_bytes, block_offset: 0 });
            return Ok(());
        }
        let Some(node) = self.node(&cid)? else {
            return Ok(());
        };
        let found = self.parts(&cid, node, at, depth, segments)?;
        if found != part.file_bytes {
            let found = format!("{found} bytes where its parent declares {}", part.file_bytes);
            return Err(StoreError::NotUnixFs { cid, found });
        }
        Ok(())
    }
}
