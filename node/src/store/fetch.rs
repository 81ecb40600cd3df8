//! Fetch: a root's missing blocks from peers, checked, then pinned.
//!
//! A fetch goes level by level: look which blocks under the root are missing, get exactly those, look again, until
//! none is. So the last look is the check of the whole DAG, a fetch that was interrupted goes on where it stopped,
//! and a damaged block here is just a missing one. The looking (`scan`) knows the DAG, the getting (`exchange`) knows
//! peers, and neither knows the other. The repository's own recursive fetch is not used: it has answered with success
//! over missing blocks and never ends over damaged ones.

mod bitswap;
mod exchange;
mod gateway;
mod lane;
mod scan;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use accel_backends::files::{Extent, ModelFiles};
use cid::Cid;
use rust_ipfs::PeerId;

use super::blocks::Hold;
use super::dag;
use super::error::StoreError;
use super::open::BlockFiles;
use super::roots::Root;
use super::{Store, blocking, unix_seconds};
use exchange::Exchange;
use scan::{Scan, Scope};

/// How to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchOptions {
    /// Who is known to have it. Connected peers and the DHT are asked when these do not suffice.
    pub providers: Vec<PeerId>,
    /// Addresses of trustless gateways that may be asked for what peers do not send.
    pub gateways: Vec<String>,
    /// Blocks in flight for each peer.
    pub window: usize,
    /// Give up after this long without a block.
    pub stall: Duration,
    /// Pin the root. Without, its blocks stay until garbage is collected.
    pub pin: bool,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { providers: Vec::new(), gateways: Vec::new(), window: 16, stall: Duration::from_secs(15), pin: true }
    }
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchProgress {
    /// Bytes that came from peers.
    pub fetched_bytes: u64,
    /// Bytes of leaves still known to be missing; grows while the DAG is discovered.
    pub missing_bytes: u64,
    /// Blocks that came from peers.
    pub fetched_blocks: u64,
    /// Peers that send at present.
    pub peers: usize,
}

/// Where blocks come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A peer of ours.
    Peer(PeerId),
    /// Any peer, by bitswap, which does not say from whom.
    Bitswap,
    /// A trustless gateway, by its address.
    Gateway(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Bitswap => f.write_str("bitswap"),
            Self::Gateway(address) => f.write_str(address),
        }
    }
}

/// What came from one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceShare {
    /// The source.
    pub source: Source,
    /// Blocks it sent.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a fetch did.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchReport {
    /// The root.
    pub root: Root,
    /// Bytes that came from peers.
    pub fetched_bytes: u64,
    /// Blocks that came from peers.
    pub fetched_blocks: u64,
    /// Bytes that were here already.
    pub here_bytes: u64,
    /// Blocks that were here already.
    pub here_blocks: u64,
    /// Blocks that came although they were here by then.
    pub duplicate_blocks: u64,
    /// Who sent what.
    pub sources: Vec<SourceShare>,
    /// How long it took.
    pub seconds: f64,
}

impl Store {
    /// Fetches what is missing under `cid`, checks all of it, and pins it.
    ///
    /// Blocks that came stay here when a fetch fails or is dropped, so the next one goes on from there.
    ///
    /// # Errors
    /// `NotFound`, `Quota`, `DiskFull`, `NotUnixFs`, `TooLarge`, `Io` or `Cancelled`.
    pub async fn fetch(
        &self,
        cid: &Cid,
        options: FetchOptions,
        progress: impl FnMut(&FetchProgress) + Send,
    ) -> Result<FetchReport, StoreError> {
        self.finish(Work::new(self, cid, options)?, progress).await
    }

    /// Fetches as [`Store::fetch`] does, but looks at the first blocks before the others are asked for.
    ///
    /// # Errors
    /// What `check` says of files whose headers are here; otherwise as `fetch`.
    pub async fn fetch_checked<E: From<StoreError>>(
        &self,
        cid: &Cid,
        options: FetchOptions,
        check: impl FnOnce(&BlockFiles) -> Result<(), E> + Send,
        progress: impl FnMut(&FetchProgress) + Send,
    ) -> Result<FetchReport, E> {
        let mut work = Work::new(self, cid, options)?;
        check(&work.headers().await?)?;
        Ok(self.finish(work, progress).await?)
    }

    /// Fetches the parts of a root's files that `choose` names once their headers are here, and pins the root as one that
    /// is kept in part.
    ///
    /// # Errors
    /// What `choose` says of files whose headers are here; otherwise as `fetch`.
    pub async fn fetch_parts<E: From<StoreError>>(
        &self,
        cid: &Cid,
        options: FetchOptions,
        choose: impl FnOnce(&BlockFiles) -> Result<Vec<Extent>, E> + Send,
        progress: impl FnMut(&FetchProgress) + Send,
    ) -> Result<FetchReport, E> {
        let mut work = Work::new(self, cid, options)?;
        let files = work.headers().await?;
        let mut parts: HashMap<String, Vec<Range<u64>>> = HashMap::new();
        for Extent { file, offset, bytes } in choose(&files)? {
            parts.entry(file).or_default().push(offset..offset.saturating_add(bytes));
        }
        parts.values_mut().for_each(join);
        Ok(self.finish_scope(work, Scope::Parts(parts), progress).await?)
    }

    async fn finish(&self, work: Work, progress: impl FnMut(&FetchProgress) + Send) -> Result<FetchReport, StoreError> {
        self.finish_scope(work, Scope::All, progress).await
    }

    async fn finish_scope(
        &self,
        mut work: Work,
        scope: Scope,
        mut progress: impl FnMut(&FetchProgress) + Send,
    ) -> Result<FetchReport, StoreError> {
        let part = !matches!(scope, Scope::All);
        let scan = work.complete(scope, &mut progress).await?;
        let opened = work.open("").await?;
        let known = {
            let (store, cid) = (self.clone(), work.root);
            blocking(move || Ok(store.pinned_name(&cid))).await?
        };
        let root = Root {
            cid: work.root,
            name: known.unwrap_or_default(),
            kind: blocking({
                let opened = opened.clone();
                move || opened.kind()
            })
            .await?,
            bytes: opened.bytes(),
            blocks: scan.here.len() as u64,
            added_unix_seconds: unix_seconds(),
            part,
        };
        work.exchange.written_back().await?;
        if work.options.pin {
            let (store, root, hold) = (self.clone(), root.clone(), work.hold.clone());
            blocking(move || {
                store.blocks().sync()?;
                store.pin(root, hold)
            })
            .await?;
        }
        Ok(work.report(root, &scan))
    }

    /// Fetches the blocks of some byte ranges of one file (all inner nodes, and the leaves that the ranges touch) and
    /// opens it. Nothing is pinned: the blocks are held while the files are open.
    ///
    /// # Errors
    /// As `fetch`, and `NoEntry` when `file` is not under the root.
    pub async fn fetch_ranges(
        &self,
        cid: &Cid,
        file: &str,
        ranges: &[Range<u64>],
        options: FetchOptions,
    ) -> Result<BlockFiles, StoreError> {
        let mut work = Work::new(self, cid, options)?;
        work.complete(Scope::Ranges { file: file.to_owned(), ranges: ranges.to_vec() }, &mut |_| {}).await?;
        work.open(file).await
    }

    /// Fetches the headers of a model's weights files, so that `show` can name its tensors, and opens it.
    ///
    /// # Errors
    /// As `fetch`.
    pub async fn fetch_headers(&self, cid: &Cid, options: FetchOptions) -> Result<BlockFiles, StoreError> {
        Work::new(self, cid, options)?.headers().await
    }
}

/// Puts ranges in order, and makes one of those that touch.
fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_by_key(|range| range.start);
    let mut whole: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match whole.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => whole.push(range),
        }
    }
    *ranges = whole;
}

/// A fetch under way.
struct Work {
    store: Store,
    root: Cid,
    options: FetchOptions,
    hold: std::sync::Arc<Hold>,
    /// Blocks whose hash was compared in this fetch.
    verified: HashSet<Cid>,
    fetched: HashSet<Cid>,
    exchange: Exchange,
    started: Instant,
}

impl Work {
    fn new(store: &Store, cid: &Cid, options: FetchOptions) -> Result<Self, StoreError> {
        let root = dag::canonical(cid)?;
        let hold = std::sync::Arc::new(store.blocks().hold());
        hold.keep(&root);
        Ok(Self {
            exchange: Exchange::new(store, root, &options),
            store: store.clone(),
            root,
            options,
            hold,
            verified: HashSet::new(),
            fetched: HashSet::new(),
            started: Instant::now(),
        })
    }

    /// Gets the headers of weights files.
    async fn headers(&mut self) -> Result<BlockFiles, StoreError> {
        /// The header's length is in its first bytes; both formats fit the first leaf unless vocabularies are large.
        const FIRST_BYTES: u64 = 1;
        const STEP_BYTES: u64 = 4 << 20;
        const MAX_HEADER_BYTES: u64 = 128 << 20;
        self.complete(Scope::EveryFile { bytes: FIRST_BYTES }, &mut |_| {}).await?;
        let opened = self.open("").await?;
        let scattered = super::weights::scattered(&opened);
        if !scattered.is_empty() {
            self.complete(Scope::Parts(scattered), &mut |_| {}).await?;
        }
        let mut bytes = 0;
        loop {
            let opened = self.open("").await?;
            let readable = blocking({
                let opened = opened.clone();
                move || Ok(opened.files().iter().all(|info| super::weights::tensors(&opened, &info.name).is_ok()))
            });
            if readable.await? || bytes >= MAX_HEADER_BYTES || bytes >= opened.bytes() {
                return Ok(opened);
            }
            bytes += STEP_BYTES;
            self.complete(Scope::EveryFile { bytes }, &mut |_| {}).await?;
        }
    }

    /// Gets blocks until none in `scope` is missing.
    async fn complete(
        &mut self,
        scope: Scope,
        progress: &mut (dyn FnMut(&FetchProgress) + Send),
    ) -> Result<Scan, StoreError> {
        loop {
            let scan = self.scan(&scope).await?;
            if scan.missing.is_empty() {
                return Ok(scan);
            }
            let got = self.exchange.get(&scan.missing, progress).await?;
            self.verified.extend(got.iter().copied());
            self.fetched.extend(got);
        }
    }

    async fn scan(&mut self, scope: &Scope) -> Result<Scan, StoreError> {
        let (blocks, root, hold, scope) = (self.store.blocks().clone(), self.root, self.hold.clone(), scope.clone());
        let mut verified = std::mem::take(&mut self.verified);
        let (scan, verified) = blocking(move || {
            let scan = scan::scan(&blocks, &root, &scope, &hold, &mut verified)?;
            Ok((scan, verified))
        })
        .await?;
        self.verified = verified;
        Ok(scan)
    }

    async fn open(&self, path: &str) -> Result<BlockFiles, StoreError> {
        self.store.open(&self.root, Some(path)).await
    }

    fn report(&self, root: Root, scan: &Scan) -> FetchReport {
        let here = scan.here.iter().filter(|(cid, _)| !self.fetched.contains(cid));
        let (here_blocks, here_bytes) = here.fold((0, 0), |(blocks, bytes), (_, more)| (blocks + 1, bytes + more));
        FetchReport {
            root,
            fetched_bytes: self.exchange.fetched_bytes(),
            fetched_blocks: self.fetched.len() as u64,
            here_bytes,
            here_blocks,
            duplicate_blocks: self.exchange.duplicate_blocks(),
            sources: self.exchange.shares(),
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }
}
