//! Who is asked for which block.
//!
//! One queue of wanted blocks, several lanes that take from it: the lane with the least in flight gets the next one, so
//! peers share the work by their speed and no block is asked of two. Peers of ours get a lane each; for the rest
//! there is one bitswap lane, and one for each gateway that may be asked. A block that a lane does not have goes to another; a lane that stays silent is closed and
//! its blocks go back to the queue; every so often all are asked again, and connected peers and the DHT are searched for
//! more. Only when no block has come for the stall time is the fetch given up, with the names of those asked.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cid::Cid;
use rust_ipfs::PeerId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::lane::{self, Event, Order, Reports};
use super::{FetchOptions, FetchProgress, Source, SourceShare, bitswap, gateway};
use crate::store::Store;
use crate::store::blocks::{Put, Reservation};
use crate::store::error::{NotFound, StoreError};
use crate::store::tree::Missing;

/// Direct lanes at once.
const MAX_LANES: usize = 8;
/// Blocks in flight over all lanes; times 1 MiB this bounds memory.
const MAX_IN_FLIGHT: usize = 48;
/// Blocks asked for by bitswap, or of a gateway, while streams of ours are open too.
const OTHERS_BESIDE: usize = 2;
/// How far into the queue a lane looks for a block it has not denied.
const LOOK_AHEAD: usize = 256;
/// How often silence is looked at and denied blocks are asked for again.
const TICK: Duration = Duration::from_millis(250);
/// Time without a block after which more peers are looked for.
const SEARCH_AFTER: Duration = Duration::from_secs(1);
const SEARCH_EVERY: Duration = Duration::from_secs(3);
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
/// A lane is opened this many times at most.
const MAX_OPENINGS: u32 = 4;
/// Bytes after which the disk is set to work on them, so that little is left to wait for at the end.
const WRITE_BACK_BYTES: u64 = 16 << 20;
/// Blocks with wrong bytes after which a peer is not asked again.
const MAX_WRONG: u32 = 3;

/// The lanes and their queue.
pub(super) struct Exchange {
    store: Store,
    root: Cid,
    window: usize,
    stall: Duration,
    lanes: Vec<Lane>,
    known: HashMap<Source, Known>,
    queue: VecDeque<Want>,
    asked: HashMap<Cid, (usize, Want)>,
    events: mpsc::Receiver<(usize, Event)>,
    report_to: mpsc::Sender<(usize, Event)>,
    lookup: Option<JoinHandle<Vec<PeerId>>>,
    searched: Option<Instant>,
    last_block: Instant,
    fetched_bytes: u64,
    fetched_blocks: u64,
    missing_bytes: u64,
    duplicate_blocks: u64,
    unwritten_bytes: u64,
    write_back: Option<JoinHandle<Result<(), StoreError>>>,
}

struct Lane {
    source: Source,
    wants: Option<mpsc::Sender<Order>>,
    ready: bool,
    in_flight: usize,
    last_heard: Instant,
    blocks: u64,
    bytes: u64,
    task: JoinHandle<()>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A peer or gateway that may be asked.
#[derive(Default)]
struct Known {
    openings: u32,
    wrong: u32,
    bitswap_only: bool,
    last_reason: Option<String>,
}

struct Want {
    block: Missing,
    denied_by: Vec<usize>,
}

fn is_peer(source: &Source) -> bool {
    matches!(source, Source::Peer(_))
}

impl Exchange {
    pub fn new(store: &Store, root: Cid, options: &FetchOptions) -> Self {
        let (report_to, events) = mpsc::channel(64);
        let peers = options.providers.iter().copied().map(Source::Peer);
        let gateways = options.gateways.iter().cloned().map(Source::Gateway);
        let known = peers.chain(gateways).map(|source| (source, Known::default())).collect();
        Self {
            store: store.clone(),
            root,
            window: options.window.clamp(1, MAX_IN_FLIGHT),
            stall: options.stall,
            lanes: Vec::new(),
            known,
            queue: VecDeque::new(),
            asked: HashMap::new(),
            events,
            report_to,
            lookup: None,
            searched: None,
            last_block: Instant::now(),
            fetched_bytes: 0,
            fetched_blocks: 0,
            missing_bytes: 0,
            duplicate_blocks: 0,
            unwritten_bytes: 0,
            write_back: None,
        }
    }

    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes
    }

    pub fn duplicate_blocks(&self) -> u64 {
        self.duplicate_blocks
    }

    /// Who sent what, most first.
    pub fn shares(&self) -> Vec<SourceShare> {
        let mut shares: HashMap<&Source, (u64, u64)> = HashMap::new();
        for lane in self.lanes.iter().filter(|lane| lane.blocks > 0) {
            let share = shares.entry(&lane.source).or_default();
            share.0 += lane.blocks;
            share.1 += lane.bytes;
        }
        let share = |(source, (blocks, bytes)): (&Source, _)| SourceShare { source: source.clone(), blocks, bytes };
        let mut shares: Vec<_> = shares.into_iter().map(share).collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        shares
    }

    /// Gets these blocks, all of them.
    pub async fn get(
        &mut self,
        missing: &[Missing],
        progress: &mut (dyn FnMut(&FetchProgress) + Send),
    ) -> Result<Vec<Cid>, StoreError> {
        self.missing_bytes = missing.iter().filter_map(|block| block.bytes).sum();
        let reserved = Arc::new(self.store.blocks().reserve(self.missing_bytes)?);
        self.queue = missing.iter().map(|&block| Want { block, denied_by: Vec::new() }).collect();
        self.asked.clear();
        self.last_block = Instant::now();
        let mut got = Vec::with_capacity(missing.len());
        if !self.known.keys().any(is_peer) {
            self.learn_connected().await;
        }
        self.open_lanes();
        let mut tick = tokio::time::interval(TICK);
        while got.len() < missing.len() {
            self.assign(&reserved);
            tokio::select! {
                Some((lane, event)) = self.events.recv() => {
                    if let Some(cid) = self.take(lane, event)? {
                        got.push(cid);
                        progress(&self.progress());
                    }
                }
                _ = tick.tick() => self.look_after().await?,
            }
            if self.unwritten_bytes >= WRITE_BACK_BYTES {
                self.write_back().await?;
            }
        }
        Ok(got)
    }

    /// Has the disk take what came so far, unless it is still at work.
    async fn write_back(&mut self) -> Result<(), StoreError> {
        if self.write_back.as_ref().is_some_and(|under_way| !under_way.is_finished()) {
            return Ok(());
        }
        self.written_back().await?;
        self.unwritten_bytes = 0;
        let blocks = self.store.blocks().clone();
        self.write_back = Some(tokio::task::spawn_blocking(move || blocks.sync()));
        Ok(())
    }

    /// Waits for the disk. A disk reports an error once, so none of its answers may be lost.
    pub async fn written_back(&mut self) -> Result<(), StoreError> {
        match self.write_back.take() {
            Some(under_way) => under_way.await.unwrap_or(Err(StoreError::Cancelled)),
            None => Ok(()),
        }
    }

    fn progress(&self) -> FetchProgress {
        FetchProgress {
            fetched_bytes: self.fetched_bytes,
            missing_bytes: self.missing_bytes,
            fetched_blocks: self.fetched_blocks,
            peers: self.lanes.iter().filter(|lane| lane.ready && is_peer(&lane.source)).count(),
        }
    }

    /// Hands wants to the lanes with the least in flight.
    fn assign(&mut self, reserved: &Arc<Reservation>) {
        let mut full = HashSet::new();
        let direct = self.lanes.iter().any(|lane| lane.ready && is_peer(&lane.source));
        let is_live = |(_, lane): &(usize, &Lane)| is_peer(&lane.source) && lane.wants.is_some();
        let peers: Vec<usize> = self.lanes.iter().enumerate().filter(is_live).map(|(number, _)| number).collect();
        // Beside streams of ours, others must not sit on blocks that they would have brought by now.
        let window = |lane: &Lane| if direct && !is_peer(&lane.source) { OTHERS_BESIDE } else { self.window };
        while self.asked.len() < MAX_IN_FLIGHT && !self.queue.is_empty() {
            let free = self
                .lanes
                .iter()
                .enumerate()
                .filter(|(number, lane)| lane.ready && lane.in_flight < window(lane) && !full.contains(number));
            // Bitswap sits on a block that nobody has for seconds; a gateway says so.
            let last = |lane: &Lane| lane.source == Source::Bitswap && !direct;
            let Some((number, _)) = free.min_by_key(|(_, lane)| (last(lane), lane.in_flight)) else {
                return;
            };
            let mut ahead = self.queue.iter().take(LOOK_AHEAD);
            // A gateway is told only of what no peer of ours has.
            let first = if matches!(self.lanes[number].source, Source::Gateway(_)) { &*peers } else { &[] };
            let may =
                |want: &Want| !want.denied_by.contains(&number) && first.iter().all(|of| want.denied_by.contains(of));
            let Some(place) = ahead.position(may) else {
                full.insert(number);
                continue;
            };
            let Some(want) = self.queue.remove(place) else { return };
            let lane = &mut self.lanes[number];
            let order = Order { block: want.block, reserved: reserved.clone() };
            let sent = lane.wants.as_ref().is_some_and(|wants| wants.try_send(order).is_ok());
            if !sent {
                // The lane has ended and its notice is on the way.
                self.queue.push_front(want);
                full.insert(number);
                continue;
            }
            if lane.in_flight == 0 {
                lane.last_heard = Instant::now();
            }
            lane.in_flight += 1;
            self.asked.insert(want.block.cid, (number, want));
        }
    }

    /// Takes a lane's report; the block it stored, if it was wanted still.
    fn take(&mut self, number: usize, event: Event) -> Result<Option<Cid>, StoreError> {
        self.lanes[number].last_heard = Instant::now();
        match event {
            Event::Ready => self.lanes[number].ready = true,
            Event::Stored { cid, bytes, put } => {
                self.last_block = Instant::now();
                if put == Put::Existed {
                    self.duplicate_blocks += 1;
                }
                let lane = &mut self.lanes[number];
                lane.blocks += 1;
                lane.bytes += bytes;
                self.unwritten_bytes += bytes;
                self.fetched_bytes += bytes;
                self.fetched_blocks += 1;
                let Some(want) = self.wanted(&cid) else {
                    return Ok(None);
                };
                self.missing_bytes -= want.block.bytes.unwrap_or_default();
                return Ok(Some(cid));
            }
            Event::Absent { cid } => self.deny(number, &cid),
            Event::Wrong { cid } => {
                self.deny(number, &cid);
                if let Some(known) = self.known.get_mut(&self.lanes[number].source) {
                    known.wrong += 1;
                    known.last_reason = Some("sent other bytes than the CID's".into());
                    if known.wrong >= MAX_WRONG {
                        self.close(number);
                    }
                }
            }
            Event::Failed(error) => return Err(error),
            Event::Closed { unsupported, reason } => {
                if let Some(known) = self.known.get_mut(&self.lanes[number].source) {
                    known.bitswap_only |= unsupported;
                    known.last_reason = Some(reason);
                }
                self.close(number);
                if unsupported {
                    self.open_bitswap();
                }
            }
        }
        Ok(None)
    }

    /// The want for this block, taken off the list. A late answer of a closed lane serves as well as that of the lane
    /// which was asked since.
    fn wanted(&mut self, cid: &Cid) -> Option<Want> {
        if let Some((asked, want)) = self.asked.remove(cid) {
            self.lanes[asked].in_flight = self.lanes[asked].in_flight.saturating_sub(1);
            return Some(want);
        }
        let place = self.queue.iter().position(|want| want.block.cid == *cid)?;
        self.queue.remove(place)
    }

    fn deny(&mut self, number: usize, cid: &Cid) {
        if self.asked.get(cid).is_none_or(|(asked, _)| *asked != number) {
            return;
        }
        if let Some((_, mut want)) = self.asked.remove(cid) {
            self.lanes[number].in_flight = self.lanes[number].in_flight.saturating_sub(1);
            want.denied_by.push(number);
            self.queue.push_back(want);
        }
    }

    fn close(&mut self, number: usize) {
        let lane = &mut self.lanes[number];
        lane.ready = false;
        lane.wants = None;
        lane.in_flight = 0;
        lane.task.abort();
        let lost: Vec<Cid> =
            self.asked.iter().filter(|(_, (asked, _))| *asked == number).map(|(cid, _)| *cid).collect();
        for cid in lost {
            if let Some((_, want)) = self.asked.remove(&cid) {
                self.queue.push_front(want);
            }
        }
    }

    fn is_live(&self, source: &Source) -> bool {
        self.lanes.iter().any(|lane| lane.source == *source && lane.wants.is_some())
    }

    fn open_lanes(&mut self) {
        let is_far = |source: &Source| match source {
            Source::Peer(peer) => self.store.peers().is_only_relayed(peer),
            Source::Bitswap | Source::Gateway(_) => false,
        };
        let far: Vec<Source> = self.known.keys().filter(|source| is_far(source)).cloned().collect();
        for source in &far {
            if let Some(known) = self.known.get_mut(source) {
                known.last_reason = Some("is reached by a relay only, and blocks go by none".into());
            }
        }
        let live = self.lanes.iter().filter(|lane| is_peer(&lane.source) && lane.wants.is_some()).count();
        let peers = self.idle(|source| is_peer(source) && !far.contains(source));
        for source in peers.into_iter().take(MAX_LANES.saturating_sub(live)) {
            let Source::Peer(peer) = source else { continue };
            let (wants, reports) = self.lane_ends();
            let (ipfs, blocks) = (self.store.ipfs().clone(), self.store.blocks().clone());
            let task = tokio::spawn(lane::direct(ipfs, peer, blocks, wants.1, reports));
            self.push_lane(source, wants.0, task);
        }
    }

    /// Those that may be asked and have no lane.
    fn idle(&self, of: impl Fn(&Source) -> bool) -> Vec<Source> {
        let may = |known: &Known| !known.bitswap_only && known.openings < MAX_OPENINGS && known.wrong < MAX_WRONG;
        let idle = self.known.iter().filter(|(source, known)| may(known) && of(source) && !self.is_live(source));
        idle.map(|(source, _)| source.clone()).collect()
    }

    fn open_bitswap(&mut self) {
        // The IPFS library asks all connected peers, and whoever is behind a relay would answer by it.
        if self.is_live(&Source::Bitswap) || self.store.peers().any_only_relayed() {
            return;
        }
        let (wants, reports) = self.lane_ends();
        let speaks_it = |(source, known): (&Source, &Known)| match source {
            Source::Peer(peer) => known.bitswap_only.then_some(*peer),
            Source::Bitswap | Source::Gateway(_) => None,
        };
        let providers = self.known.iter().filter_map(speaks_it).collect();
        let (ipfs, blocks) = (self.store.ipfs().clone(), self.store.blocks().clone());
        let task = tokio::spawn(bitswap::run(ipfs, providers, blocks, wants.1, reports));
        self.push_lane(Source::Bitswap, wants.0, task);
    }

    fn open_gateways(&mut self) {
        for source in self.idle(|source| matches!(source, Source::Gateway(_))) {
            let Source::Gateway(address) = &source else { continue };
            let (wants, reports) = self.lane_ends();
            let task = tokio::spawn(gateway::run(address.clone(), self.store.blocks().clone(), wants.1, reports));
            self.push_lane(source, wants.0, task);
        }
    }

    fn lane_ends(&self) -> ((mpsc::Sender<Order>, mpsc::Receiver<Order>), Reports) {
        (mpsc::channel(self.window), Reports { lane: self.lanes.len(), events: self.report_to.clone() })
    }

    fn push_lane(&mut self, source: Source, wants: mpsc::Sender<Order>, task: JoinHandle<()>) {
        if let Some(known) = self.known.get_mut(&source) {
            known.openings += 1;
        }
        self.lanes.push(Lane {
            source,
            wants: Some(wants),
            ready: false,
            in_flight: 0,
            last_heard: Instant::now(),
            blocks: 0,
            bytes: 0,
            task,
        });
    }

    /// Acts on silence: closes dumb lanes, asks again, looks for more peers, gives up.
    async fn look_after(&mut self) -> Result<(), StoreError> {
        let silent = self.last_block.elapsed();
        if silent > self.stall {
            return Err(self.give_up().await);
        }
        let patience = (self.stall / 2).min(Duration::from_secs(10));
        for number in 0..self.lanes.len() {
            let lane = &self.lanes[number];
            if lane.ready
                && lane.source != Source::Bitswap
                && lane.in_flight > 0
                && lane.last_heard.elapsed() > patience
            {
                if let Some(known) = self.known.get_mut(&lane.source) {
                    known.last_reason = Some(format!("silent for {patience:.1?}"));
                }
                self.close(number);
            }
        }
        for want in &mut self.queue {
            want.denied_by.clear();
        }
        self.open_lanes();
        // A lane that is being opened has its chance first: bitswap is slower and does not say who sent what.
        let no_lane = !self.lanes.iter().any(|lane| lane.wants.is_some());
        if silent > SEARCH_AFTER || no_lane {
            self.open_gateways();
            let opening =
                |lane: &Lane| matches!(lane.source, Source::Gateway(_)) && lane.wants.is_some() && !lane.ready;
            if !self.lanes.iter().any(opening) {
                self.open_bitswap();
            }
            self.search().await;
        }
        Ok(())
    }

    async fn search(&mut self) {
        if let Some(lookup) = self.lookup.take_if(|lookup| lookup.is_finished()) {
            for peer in lookup.await.unwrap_or_default() {
                self.known.entry(Source::Peer(peer)).or_default();
            }
        }
        if self.searched.is_some_and(|at| at.elapsed() < SEARCH_EVERY) {
            return;
        }
        self.searched = Some(Instant::now());
        self.learn_connected().await;
        if self.lookup.is_none() {
            let (store, root) = (self.store.clone(), self.root);
            // A node without a DHT finds nobody there; its other peers are asked all the same.
            let lookup = async move { store.find_providers(&root, LOOKUP_LIMIT).await.unwrap_or_default() };
            self.lookup = Some(tokio::spawn(lookup));
        }
    }

    async fn learn_connected(&mut self) {
        for peer in self.store.ipfs().connected().await.unwrap_or_default() {
            self.known.entry(Source::Peer(peer)).or_default();
        }
    }

    async fn give_up(&self) -> StoreError {
        let blocks = self.store.blocks().clone();
        // Bitswap drops the error of a block it cannot write, so a silent fetch may be a full disk.
        if let Err(error) = crate::store::blocking(move || blocks.probe_space()).await {
            return error;
        }
        let name = |(source, known): (&Source, &Known)| match &known.last_reason {
            Some(reason) => format!("{source} ({reason})"),
            None => source.to_string(),
        };
        let missing = self.queue.front().or_else(|| self.asked.values().map(|(_, want)| want).next());
        StoreError::NotFound(Box::new(NotFound {
            cid: self.root,
            missing: missing.map_or(self.root, |want| want.block.cid),
            asked: self.known.iter().map(name).collect(),
            waited: self.last_block.elapsed(),
        }))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(lookup) = &self.lookup {
            lookup.abort();
        }
    }
}
