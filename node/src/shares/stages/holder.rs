//! Layers that this node works out for others.
//!
//! A peer opens a stream, says which layers it wants held, and sends tokens to put through them. What it had held, and
//! what was kept of its sequences, goes when its stream closes. Layers that several streams want are in memory once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use accel_backends::tensor::Tensor;
use accel_models::cache::Row;
use accel_models::layers::attention::Source;
use accel_models::share::{Part, Share};
use accel_models::stage::StagePass;
use accel_models::usage::{Choices, Routed};
use accel_protocol::limits::{
    ROUTED_CHOICES, SHARE_EXPERTS, SHARE_REQUESTS, STAGE_LAYERS, STAGE_PIECE_BYTES, STAGE_PIECES_BYTES, STAGE_SEQUENCES,
};
use accel_protocol::stage::STAGES_PROTOCOL;
use accel_protocol::{
    ErrorCode, Floats, JobError, LayerExperts, ModelRef, PeerExperts, ShareAnswer, ShareReply, StageAsk, StageForward,
    StageRequest,
};
use libp2p::PeerId;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::offers::places;
use super::super::serving::{self, Reply};
use super::super::{Fetch, Fetcher};
use super::thread::{Call, Owner, StageThread};
use crate::frames::FrameReader;
use crate::scheduler::Models;
use crate::swarm::SwarmError;

/// What this node works out for others. Clones share it.
#[derive(Clone, Debug)]
pub struct StageHolder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fetch: Fetcher,
    /// The node's own models: those that nobody uses make room.
    loaded: Models,
    serves: bool,
    /// By model, first layer and number of layers; those whose experts are elsewhere belong to one stream alone.
    threads: Mutex<HashMap<(ModelRef, u32, u32), Weak<StageThread>>>,
    owners: AtomicU64,
}

/// What a peer wants held.
struct Wanted {
    model: ModelRef,
    first: u32,
    count: u32,
    share: Share,
    elsewhere: Vec<(PeerId, Share)>,
}

impl StageHolder {
    /// Nothing is held yet.
    pub fn new(fetch: Fetcher, loaded: Models, serves: bool) -> Self {
        let shared = Shared { fetch, loaded, serves, threads: Mutex::default(), owners: AtomicU64::new(1) };
        Self { shared: Arc::new(shared) }
    }

    /// Serves streams until `stop`.
    ///
    /// # Errors
    /// When the swarm has stopped.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SwarmError> {
        let swarm = self.shared.fetch.swarm.clone();
        let read = move |peer, reader, answers| {
            let holder = self.clone();
            async move { holder.read(peer, reader, answers).await }
        };
        serving::serve(&swarm, STAGES_PROTOCOL, stop, read).await
    }

    async fn read(
        &self,
        peer: PeerId,
        mut reader: FrameReader,
        answers: mpsc::Sender<ShareReply>,
    ) -> Result<(), SwarmError> {
        let places = Arc::new(Semaphore::new(SHARE_REQUESTS));
        let holdings = Holdings::default();
        let mut pieces = Pieces::default();
        let loads = TaskTracker::new();
        loop {
            // Models rest at night; a stream for none is of no use.
            let may_rest = || !holdings.is_empty() || !loads.is_empty();
            let Some(StageRequest { id, ask }) = serving::next(&mut reader, may_rest).await? else { return Ok(()) };
            let arrived = Instant::now();
            if let StageAsk::Piece { holding, rows } = ask {
                if holdings.get(holding).is_some() {
                    pieces.add(id, rows);
                }
                continue;
            }
            // A peer that sends faster than this node computes is read no further.
            let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
            let reply = Reply::new(id, &answers, place);
            let nothing = ShareAnswer::Held { memory_bytes: 0, fetched_bytes: 0, here_bytes: 0 };
            match ask {
                StageAsk::Piece { .. } => {}
                StageAsk::Hold { holding, model, first, count, experts, elsewhere } => {
                    let (holder, holdings) = (self.clone(), holdings.clone());
                    loads.spawn(async move {
                        let held = match wanted(model, first, count, &places_of(experts), elsewhere) {
                            Ok(wanted) => reply.busy(holder.hold(peer, wanted, &reply)).await,
                            Err(error) => Err(error),
                        };
                        let answer = match held {
                            Ok((thread, answer)) => {
                                let owner = holder.shared.owners.fetch_add(1, Ordering::Relaxed);
                                holdings.add(holding, Holding { thread, owner });
                                answer
                            }
                            Err(error) => ShareAnswer::Failed(error),
                        };
                        reply.send(answer).await;
                    });
                }
                StageAsk::Forward(forward) => {
                    let (all, routed) = (pieces.take(id), forward.routed);
                    match holdings.pass(*forward, all) {
                        Ok((held, state, pass)) => held.pass(state, pass, routed, arrived, reply),
                        Err(error) => reply.send(ShareAnswer::Failed(error)).await,
                    }
                }
                StageAsk::Change { holding, state, change } => {
                    if let Some(held) = holdings.get(holding) {
                        held.thread.call(Call::Change { owner: held.owner, state, change });
                    }
                    reply.send(nothing).await;
                }
                StageAsk::Echo(rows) => {
                    // By way of another thread, as rows that are computed go.
                    let echo = move || reply.send_blocking(ShareAnswer::Rows { rows, micros: 0 });
                    drop(tokio::task::spawn_blocking(echo));
                }
                StageAsk::Release { holding } => {
                    holdings.remove(holding);
                    reply.send(nothing).await;
                }
            }
        }
    }

    /// Has layers in memory, fetched if need be.
    async fn hold(
        &self,
        peer: PeerId,
        wanted: Wanted,
        reply: &Reply,
    ) -> Result<(Arc<StageThread>, ShareAnswer), JobError> {
        let shared = &self.shared;
        if !shared.serves {
            return Err(JobError::new(ErrorCode::NoWorker, "this peer does not work for others (jobs.serve)"));
        }
        let Wanted { model, first, count, share, elsewhere } = wanted;
        let fetch = Fetch { from: Some(peer), ..shared.fetch.of(&model) };
        let fits = |bytes: u64| shared.loaded.make_room(bytes).map(drop);
        let report = fetch.share(&share, fits, |now| reply.progress(now)).await?;
        let key = elsewhere.is_empty().then(|| (model.clone(), first, count));
        let known = key.as_ref().and_then(|key| self.threads().get(key).and_then(Weak::upgrade));
        let thread = match known {
            Some(known) => known,
            None => {
                let thread = shared.loaded.coordinator().stage_here(&model, &share, &elsewhere, &shared.loaded).await?;
                let mut threads = self.threads();
                threads.retain(|_, thread| thread.strong_count() > 0);
                if let Some(key) = key {
                    threads.insert(key, Arc::downgrade(&thread));
                }
                thread
            }
        };
        let (memory_bytes, fetched_bytes, here_bytes) =
            (thread.memory_bytes(), report.fetched_bytes, report.here_bytes);
        Ok((thread, ShareAnswer::Held { memory_bytes, fetched_bytes, here_bytes }))
    }

    fn threads(&self) -> MutexGuard<'_, HashMap<(ModelRef, u32, u32), Weak<StageThread>>> {
        // Entries come and go whole.
        self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invalid(words: String) -> JobError {
    JobError::new(ErrorCode::InvalidRequest, words)
}

fn places_of(experts: Vec<LayerExperts>) -> Share {
    Share { experts: places(&experts).collect(), ..Share::default() }
}

/// Looks at what a peer wants held.
fn wanted(
    model: ModelRef,
    first: u32,
    count: u32,
    own: &Share,
    elsewhere: Vec<PeerExperts>,
) -> Result<Wanted, JobError> {
    if count == 0 || count > STAGE_LAYERS || elsewhere.len() > STAGE_LAYERS as usize {
        return Err(invalid(format!("expected 1 to {STAGE_LAYERS} layers, found {count}")));
    }
    let last = first.checked_add(count).ok_or_else(|| invalid(format!("layer {first} is none")))?;
    let mut share = own.clone();
    (first..last).for_each(|layer| share.insert(Part::Layer(layer as usize)));
    let of_peer = |of: PeerExperts| {
        let peer = of.peer.parse::<PeerId>().map_err(|_| invalid(format!("{:?} is no peer id", of.peer)))?;
        Ok::<_, JobError>((peer, places_of(of.experts)))
    };
    let elsewhere = elsewhere.into_iter().map(of_peer).collect::<Result<Vec<_>, _>>()?;
    let all = || elsewhere.iter().map(|(_, share)| share).chain([&share]).flat_map(|share| &share.experts);
    if all().count() > SHARE_EXPERTS {
        return Err(invalid(format!("more than {SHARE_EXPERTS} experts")));
    }
    if let Some((layer, expert)) = all().find(|(layer, _)| !share.layers.contains(layer)) {
        return Err(invalid(format!("expert {expert} is of layer {layer}, which is none of those")));
    }
    Ok(Wanted { model, first, count, share, elsewhere })
}

/// What routers chose, in as few messages as it fits; layers with too many tokens for one are not told of.
fn told(choices: Vec<(usize, Vec<i64>)>) -> Vec<Vec<LayerExperts>> {
    let mut messages = Vec::new();
    let (mut message, mut size) = (Vec::new(), 0);
    for (layer, places) in choices {
        // Its number and length count too.
        let more = places.len() + 4;
        if more > ROUTED_CHOICES {
            continue;
        }
        if size + more > ROUTED_CHOICES {
            messages.push(std::mem::take(&mut message));
            size = 0;
        }
        size += more;
        message.push(LayerExperts {
            layer: layer as u32,
            experts: places.into_iter().map(|place| place as u32).collect(),
        });
    }
    messages.extend((!message.is_empty()).then_some(message));
    messages
}

/// Rows that wait for the rest of their passes.
#[derive(Default)]
struct Pieces {
    waiting: HashMap<u64, Vec<f32>>,
    bytes: usize,
}

impl Pieces {
    /// Adds rows; those that are too many are dropped, and their pass will be refused.
    fn add(&mut self, id: u64, rows: Floats) {
        let bytes = 4 * rows.0.len();
        if self.bytes + bytes <= STAGE_PIECES_BYTES {
            self.bytes += bytes;
            self.waiting.entry(id).or_default().extend(rows.0);
        }
    }

    fn take(&mut self, id: u64) -> Vec<f32> {
        let rows = self.waiting.remove(&id).unwrap_or_default();
        self.bytes -= 4 * rows.len();
        rows
    }
}

/// What one stream had held, by its own names. Clones share it.
#[derive(Clone, Default)]
struct Holdings {
    held: Arc<Mutex<HashMap<u32, Arc<Holding>>>>,
}

struct Holding {
    thread: Arc<StageThread>,
    owner: Owner,
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.thread.call(Call::Leave(self.owner));
    }
}

impl Holding {
    /// Has a pass worked out and answered, in pieces where it is large.
    fn pass(&self, state: Option<u32>, pass: StagePass, routed: bool, arrived: Instant, reply: Reply) {
        let wanted = pass.wanted.len();
        let choices = Arc::new(Choices::default());
        let pass = StagePass { routed: routed.then(|| choices.clone() as Arc<dyn Routed>), ..pass };
        let answer = move |made: Result<(Tensor, u64), JobError>| {
            let rows = made.and_then(|(made, micros)| {
                let rows = if wanted == 0 { Ok(Vec::new()) } else { made.to_vec() };
                rows.map(|rows| (rows, micros)).map_err(|error| JobError::new(ErrorCode::Internal, error))
            });
            match rows {
                Ok((mut rows, micros)) => {
                    told(choices.take()).into_iter().for_each(|told| reply.send_blocking(ShareAnswer::Routed(told)));
                    while 4 * rows.len() > STAGE_PIECE_BYTES {
                        let rest = rows.split_off(STAGE_PIECE_BYTES / 4);
                        reply.send_blocking(ShareAnswer::Piece(Floats(std::mem::replace(&mut rows, rest))));
                    }
                    reply.send_blocking(ShareAnswer::Rows { rows: Floats(rows), micros });
                }
                Err(error) => reply.send_blocking(ShareAnswer::Failed(error)),
            }
        };
        self.thread.call(Call::Pass { owner: self.owner, state, pass, arrived, answer: Box::new(answer) });
    }
}

impl Holdings {
    fn all(&self) -> MutexGuard<'_, HashMap<u32, Arc<Holding>>> {
        // Entries come and go whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, holding: u32, held: Holding) {
        self.all().insert(holding, Arc::new(held));
    }

    fn get(&self, holding: u32) -> Option<Arc<Holding>> {
        self.all().get(&holding).cloned()
    }

    fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    fn remove(&self, holding: u32) {
        self.all().remove(&holding);
    }

    /// Looks at what a peer asks before anything is computed.
    fn pass(
        &self,
        forward: StageForward,
        mut floats: Vec<f32>,
    ) -> Result<(Arc<Holding>, Option<u32>, StagePass), JobError> {
        let StageForward { holding, state, rows, wanted, absent, source, routed: _, floats: last } = forward;
        let held = self.get(holding).ok_or_else(|| invalid("nothing is held under that name".into()))?;
        floats.extend(last.0);
        let (engine, hidden) = (held.thread.engine(), held.thread.hidden().max(1));
        if rows.is_empty() || rows.len() > STAGE_SEQUENCES || rows.iter().any(|row| row.len == 0) {
            return Err(invalid(format!("expected 1 to {STAGE_SEQUENCES} rows with tokens, found {}", rows.len())));
        }
        let tokens: usize = rows.iter().map(|row| row.len as usize).sum();
        let positions: usize = source.iter().flat_map(|source| &source.lengths).map(|&length| length as usize).sum();
        if floats.len() != (tokens + positions) * hidden {
            let (expected, found) = (tokens + positions, floats.len());
            return Err(invalid(format!("expected {expected} rows of {hidden} numbers, found {found} numbers")));
        }
        let rows: Vec<Row> = rows
            .iter()
            .map(|row| Row {
                len: row.len as usize,
                past: row.past as usize,
                slot: row.slot as usize,
                horizon: row.horizon as usize,
            })
            .collect();
        let masks = absent.len() == rows.len() || absent.is_empty();
        let fit = absent.iter().zip(&rows).all(|(absent, row)| absent.len() <= row.past + row.len);
        let of_source = source.as_ref().is_none_or(|source| {
            let masks = source.absent.len() == source.lengths.len() || source.absent.is_empty();
            let fit =
                source.absent.iter().zip(&source.lengths).all(|(absent, &length)| absent.len() <= length as usize);
            source.lengths.len() == rows.len() && masks && fit
        });
        if !masks || !fit || !of_source || wanted.len() > tokens || wanted.iter().any(|&token| token as usize >= tokens)
        {
            return Err(invalid("the pass does not fit its rows".into()));
        }
        let tensor = |rows: Vec<f32>, count: usize| {
            Tensor::new(engine, rows, &[count, hidden]).map_err(|error| JobError::new(ErrorCode::Internal, error))
        };
        let of_source = floats.split_off(tokens * hidden);
        let source = source.map(|source| {
            let lengths = source.lengths.iter().map(|&length| length as usize).collect();
            Ok::<_, JobError>(Source { states: tensor(of_source, positions)?, lengths, absent: source.absent })
        });
        let pass = StagePass {
            rows,
            x: tensor(floats, tokens)?,
            wanted: wanted.into_iter().map(|token| token as usize).collect(),
            absent,
            source: source.transpose()?,
            keeps: state.is_some(),
            routed: None,
        };
        Ok((held, state, pass))
    }
}
