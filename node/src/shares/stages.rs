//! Layers of a model that are elsewhere, as the thread that works on the model sees them.
//!
//! A relay stands for some layers, whoever works them out now. When that peer is lost, or has become slow, the keeper
//! finds them another place; what was kept of sequences is gone with the old one, and whoever sends the next token is
//! told so and reads them again from their beginnings. What is sent meanwhile waits.

pub mod holder;
pub mod thread;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::stage::{Done, Sequences, Stage, StagePass};
use accel_models::usage::Routed;
use accel_protocol::limits::STAGE_PIECE_BYTES;
use accel_protocol::{
    ErrorCode, Floats, JobError, LayerExperts, ShareAnswer, StageAsk, StageForward, StageRow, StageSource, StateChange,
};
use libp2p::PeerId;
use tokio::sync::Notify;

use super::link::{Closed, Link};
use super::pace::Paced;
use thread::{Call, Owner, StageThread};

/// A pass that takes so many times what it should is late,
const PATIENCE: f64 = 8.0;
/// unless that is less than this.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// Experts that a router chooses for a token at most.
const CHOSEN: usize = 64;
/// Passes that wait for a place at most.
const WAITING: usize = 4096;

/// The owner of what this node keeps for its own models.
const OWN: Owner = 0;

/// Some layers that are worked out elsewhere. Clones are the same.
#[derive(Clone, Debug)]
pub struct Relay {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    range: Range<usize>,
    engine: Engine,
    hidden: usize,
    now: Mutex<Now>,
    /// Told when a peer was lost.
    trouble: Arc<Notify>,
    states: AtomicU32,
    counts: RelayCounts,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct RelayCounts {
    /// Passes that were sent.
    pub passes: AtomicU64,
    /// Bytes of rows sent and received.
    pub bytes: AtomicU64,
    /// Microseconds that the layers were at work.
    pub busy_micros: AtomicU64,
    /// Times that what was kept was lost.
    pub losses: AtomicU64,
}

#[derive(Debug)]
struct Now {
    /// Counts the places: what one kept, no other has.
    life: u64,
    place: Place,
    /// The peer that was lost last.
    lost: Option<PeerId>,
}

/// Where the layers are.
#[derive(Debug)]
enum Place {
    There(Arc<RemoteStage>),
    Here(Arc<StageThread>),
    /// Nowhere; these wait.
    Nowhere(VecDeque<Waiting>),
}

struct Waiting {
    state: Option<u32>,
    pass: StagePass,
    done: Done,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Who works out the layers of a relay.
#[derive(Clone, Debug)]
pub enum Found {
    /// A peer.
    There(Arc<RemoteStage>),
    /// A thread of this node.
    Here(Arc<StageThread>),
}

impl Relay {
    /// Layers that are nowhere yet. Who is told of `trouble` sees to it that they get a place.
    pub fn new(range: Range<usize>, engine: Engine, hidden: usize, trouble: Arc<Notify>) -> Self {
        let now = Mutex::new(Now { life: 0, place: Place::Nowhere(VecDeque::new()), lost: None });
        let (states, counts) = (AtomicU32::new(0), RelayCounts::default());
        Self { shared: Arc::new(Shared { range, engine, hidden, now, trouble, states, counts }) }
    }

    /// The layers, counted through all stacks.
    pub fn range(&self) -> Range<usize> {
        self.shared.range.clone()
    }

    /// What happened so far.
    pub fn counts(&self) -> &RelayCounts {
        &self.shared.counts
    }

    /// The peer that has them, if one has.
    pub fn remote(&self) -> Option<Arc<RemoteStage>> {
        match &self.shared.now().place {
            Place::There(remote) => Some(remote.clone()),
            _ => None,
        }
    }

    /// The peer that was lost last.
    pub fn last_peer(&self) -> Option<PeerId> {
        self.shared.now().lost
    }

    /// Whether they are on this node.
    pub fn is_here(&self) -> bool {
        matches!(self.shared.now().place, Place::Here(_))
    }

    /// Whether somebody has them.
    pub fn has_place(&self) -> bool {
        !matches!(self.shared.now().place, Place::Nowhere(_))
    }

    /// The same without keeping them.
    pub fn downgrade(&self) -> WeakRelay {
        WeakRelay(Arc::downgrade(&self.shared))
    }

    /// Gives them a place. Those who waited go first, one after the other as they came.
    pub fn settle(&self, found: Found) {
        loop {
            let mut now = self.shared.now();
            match &mut now.place {
                Place::Nowhere(waiting) => {
                    if let Some(Waiting { state, pass, done }) = waiting.pop_front() {
                        drop(now);
                        self.shared.give(&found, state, pass, done);
                        continue;
                    }
                }
                // What the old place kept, the new one does not have.
                Place::There(_) | Place::Here(_) => now.life += 1,
            }
            now.place = match found {
                Found::There(remote) => Place::There(remote),
                Found::Here(thread) => Place::Here(thread),
            };
            return;
        }
    }

    /// Tells those who wait that there is no place to be had.
    pub fn despair(&self, reason: &str) {
        let waiting = match &mut self.shared.now().place {
            Place::Nowhere(waiting) => std::mem::take(waiting),
            _ => return,
        };
        for waiting in waiting {
            (waiting.done)(Err(self.shared.nowhere(reason)));
        }
    }

    /// Takes the place away from a peer that was lost.
    pub fn lost(&self, remote: &Arc<RemoteStage>, reason: &str) {
        self.shared.lost(remote, reason);
    }
}

/// A relay whose model may be gone.
#[derive(Clone, Debug)]
pub struct WeakRelay(std::sync::Weak<Shared>);

impl WeakRelay {
    /// The relay, while its model is loaded.
    pub fn upgrade(&self) -> Option<Relay> {
        Some(Relay { shared: self.0.upgrade()? })
    }
}

impl Stage for Relay {
    fn begin(&self) -> Box<dyn Sequences> {
        let state = self.shared.states.fetch_add(1, Ordering::Relaxed);
        let life = self.shared.now().life;
        Box::new(Kept { relay: self.shared.clone(), state, life })
    }
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, Now> {
        // Each change is a whole one.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        format!("layers {} to {}", self.range.start, self.range.end.saturating_sub(1))
    }

    fn gone(&self, reason: &str) -> ModelError {
        ModelError::Lost { part: self.name(), reason: reason.to_owned() }
    }

    fn nowhere(&self, reason: &str) -> ModelError {
        ModelError::Elsewhere { part: self.name(), reason: reason.to_owned() }
    }

    fn lost(&self, remote: &Arc<RemoteStage>, reason: &str) {
        let mut now = self.now();
        if !matches!(&now.place, Place::There(known) if Arc::ptr_eq(known, remote)) {
            return;
        }
        tracing::warn!(peer = %remote.peer, layers = self.name(), reason, "layers lost their peer");
        self.counts.losses.fetch_add(1, Ordering::Relaxed);
        *now = Now { life: now.life + 1, place: Place::Nowhere(VecDeque::new()), lost: Some(remote.peer) };
        drop(now);
        // It may never answer what it was sent.
        for done in remote.abandon() {
            done(Err(self.gone(reason)));
        }
        self.trouble.notify_one();
    }

    /// Passes on what a peer says that the routers of these layers chose for so many tokens.
    fn routed(&self, layers: &[LayerExperts], tokens: usize, hears: &dyn Routed) {
        for LayerExperts { layer, experts } in layers {
            let (layer, places) = (*layer as usize, experts.iter().map(|&expert| i64::from(expert)));
            let places: Vec<i64> = places.collect();
            // A peer may say too little, but neither for tokens that there were not nor of layers that it does not have.
            if self.range.contains(&layer) && places.len() <= tokens * CHOSEN {
                hears.chose(layer, &places);
            }
        }
    }

    /// Hands a pass to who has the layers.
    fn give(self: &Arc<Self>, found: &Found, state: Option<u32>, pass: StagePass, done: Done) {
        self.counts.passes.fetch_add(1, Ordering::Relaxed);
        match found {
            Found::There(remote) => remote.forward(self, state, &pass, done),
            Found::Here(thread) => {
                let relay = self.clone();
                let answer = move |made: Result<(Tensor, u64), JobError>| {
                    let made = made.map(|(made, micros)| {
                        relay.counts.busy_micros.fetch_add(micros, Ordering::Relaxed);
                        made
                    });
                    done(made.map_err(|error| relay.nowhere(&error.to_string())));
                };
                thread.call(Call::Pass { owner: OWN, state, pass, arrived: Instant::now(), answer: Box::new(answer) });
            }
        }
    }
}

/// Sequences of one state with a relay.
#[derive(Debug)]
struct Kept {
    relay: Arc<Shared>,
    state: u32,
    /// The life of the place that keeps them.
    life: u64,
}

impl Kept {
    fn change(&self, change: StateChange) {
        let now = self.relay.now();
        // Another place has nothing to be changed.
        if now.life != self.life {
            return;
        }
        match &now.place {
            Place::There(remote) => {
                let ask = StageAsk::Change { holding: remote.holding, state: self.state, change };
                remote.link.ask(ask, Box::new(|_| {}));
            }
            Place::Here(thread) => thread.call(Call::Change { owner: OWN, state: self.state, change }),
            Place::Nowhere(_) => {}
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.change(StateChange::Forget);
    }
}

impl Sequences for Kept {
    fn send(&mut self, pass: StagePass, done: Done) {
        let relay = self.relay.clone();
        let state = pass.keeps.then_some(self.state);
        let mut now = relay.now();
        if self.life != now.life {
            if pass.rows.iter().any(|row| row.past > 0) {
                drop(now);
                return done(Err(relay.gone("another has them now")));
            }
            self.life = now.life;
        }
        let found = match &mut now.place {
            Place::There(remote) => Found::There(remote.clone()),
            Place::Here(thread) => Found::Here(thread.clone()),
            Place::Nowhere(waiting) if waiting.len() < WAITING => {
                return waiting.push_back(Waiting { state, pass, done });
            }
            Place::Nowhere(_) => {
                drop(now);
                return done(Err(relay.nowhere("too many passes wait for it")));
            }
        };
        drop(now);
        relay.give(&found, state, pass, done);
    }

    fn clear(&mut self, slot: usize) {
        self.change(StateChange::Clear(slot as u32));
    }

    fn reorder(&mut self, from: &[usize]) {
        self.change(StateChange::Reorder(from.iter().map(|&slot| slot as u32).collect()));
    }
}

/// A peer that works out layers.
#[derive(Debug)]
pub struct RemoteStage {
    /// The peer.
    pub peer: PeerId,
    link: Arc<Link<StageAsk>>,
    holding: u32,
    paced: Paced,
    /// Bytes of rows in a second.
    bandwidth: f64,
    under_way: Mutex<UnderWay>,
}

/// Passes that a peer has not answered yet.
struct UnderWay {
    /// With its number and its rows, the oldest first.
    passes: VecDeque<(u64, usize, Done)>,
    next: u64,
    /// When the last was answered, or the first sent after all were.
    moved: Instant,
}

impl std::fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnderWay").field("passes", &self.passes.len()).finish_non_exhaustive()
    }
}

impl UnderWay {
    fn add(&mut self, rows: usize, done: Done) -> u64 {
        if self.passes.is_empty() {
            self.moved = Instant::now();
        }
        let number = self.next;
        self.next += 1;
        self.passes.push_back((number, rows, done));
        number
    }

    /// Who waits for a pass, unless it was abandoned.
    fn take(&mut self, number: u64) -> Option<Done> {
        let place = self.passes.iter().position(|(known, ..)| *known == number)?;
        self.moved = Instant::now();
        self.passes.remove(place).map(|(_, _, done)| done)
    }
}

impl Drop for RemoteStage {
    fn drop(&mut self) {
        // Where the stream has closed, nothing is held any more.
        self.link.ask(StageAsk::Release { holding: self.holding }, Box::new(|_| {}));
    }
}

impl RemoteStage {
    /// A peer that holds layers under that name, and the way to it: seconds there and back, and bytes in a second.
    pub fn new(peer: PeerId, link: Arc<Link<StageAsk>>, holding: u32, (usual, bandwidth): (f64, f64)) -> Self {
        let under_way = Mutex::new(UnderWay { passes: VecDeque::new(), next: 0, moved: Instant::now() });
        Self { peer, link, holding, paced: Paced::new(usual, 0.0), bandwidth, under_way }
    }

    /// Whether it can be asked.
    pub fn is_open(&self) -> bool {
        self.link.is_open()
    }

    /// Whether it answers about as fast as it did at first.
    pub fn is_well(&self) -> bool {
        self.is_open() && self.paced.is_well()
    }

    /// How fast it answers.
    pub fn paced(&self) -> &Paced {
        &self.paced
    }

    /// Whether it has owed an answer for too long.
    pub fn is_late(&self) -> bool {
        let under_way = self.under_way();
        let Some(&(_, rows, _)) = under_way.passes.front() else { return false };
        let patience = Duration::try_from_secs_f64(PATIENCE * self.paced.expected(rows)).unwrap_or(MOST_PATIENCE);
        under_way.moved.elapsed() > patience.clamp(LEAST_PATIENCE, MOST_PATIENCE)
    }

    /// Gives up on all that is under way; who waits for it is to be told.
    fn abandon(&self) -> Vec<Done> {
        self.under_way().passes.drain(..).map(|(_, _, done)| done).collect()
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // Each change is a whole one.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts tokens through the layers.
    fn forward(self: &Arc<Self>, relay: &Arc<Shared>, state: Option<u32>, pass: &StagePass, done: Done) {
        let (pieces, forward) = match self.asked(state, pass) {
            Ok(asked) => asked,
            Err(error) => return done(Err(error)),
        };
        let (count, sent, hidden) = (pass.x.dims().first().copied().unwrap_or(0), Instant::now(), relay.hidden);
        let wanted = pass.wanted.len();
        let bytes = 4 * hidden * (count + wanted);
        relay.counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let number = self.under_way().add(count, done);
        let (remote, relay, routed) = (self.clone(), relay.clone(), pass.routed.clone());
        let mut all = Vec::new();
        let answered = move |answer: Result<ShareAnswer, Closed>| {
            let made = match answer {
                Ok(ShareAnswer::Piece(rows)) if all.len() + rows.0.len() <= wanted * hidden => {
                    all.extend(rows.0);
                    return;
                }
                Ok(ShareAnswer::Routed(layers)) => {
                    if let Some(routed) = &routed {
                        relay.routed(&layers, count, &**routed);
                    }
                    return;
                }
                Ok(ShareAnswer::Rows { rows, micros }) if all.len() + rows.0.len() == wanted * hidden => {
                    // What the bytes take is no fault of the peer.
                    let travel = Duration::try_from_secs_f64(bytes as f64 / remote.bandwidth).unwrap_or_default();
                    let elapsed = sent.elapsed().saturating_sub(travel);
                    remote.paced.took(count, elapsed, Duration::from_micros(micros));
                    relay.counts.busy_micros.fetch_add(micros, Ordering::Relaxed);
                    all.extend(rows.0);
                    let made = Tensor::new(&relay.engine, std::mem::take(&mut all), &[wanted, hidden]);
                    made.map_err(|source| ModelError::Tensor { place: relay.name(), source })
                }
                // Another peer would have no more room for it than this one promised.
                Ok(ShareAnswer::Failed(error)) if error.code == ErrorCode::OutOfResources => {
                    Err(relay.nowhere(&error.to_string()))
                }
                Ok(ShareAnswer::Failed(error)) => Err(relay.gone(&error.to_string())),
                Ok(_) => Err(relay.gone("the peer answered something else")),
                Err(closed) => Err(relay.gone(&closed.to_string())),
            };
            let Some(done) = remote.under_way().take(number) else { return };
            if let Err(ModelError::Lost { reason, .. }) = &made {
                relay.lost(&remote, reason);
            }
            done(made);
        };
        self.link.ask_in_pieces(pieces, StageAsk::Forward(Box::new(forward)), Box::new(answered));
    }

    /// A pass as it is told, and what goes before it.
    fn asked(&self, state: Option<u32>, pass: &StagePass) -> Result<(Vec<StageAsk>, StageForward), ModelError> {
        let at = |source| ModelError::Tensor { place: "stage".into(), source };
        let mut floats = pass.x.to_vec().map_err(at)?;
        if let Some(source) = &pass.source {
            source.states.read(|rows| floats.extend_from_slice(rows)).map_err(at)?;
        }
        let mut pieces = Vec::new();
        while 4 * floats.len() > STAGE_PIECE_BYTES {
            let rest = floats.split_off(STAGE_PIECE_BYTES / 4);
            let rows = Floats(std::mem::replace(&mut floats, rest));
            pieces.push(StageAsk::Piece { holding: self.holding, rows });
        }
        let rows = pass.rows.iter().map(|row| StageRow {
            len: row.len as u32,
            past: row.past as u32,
            slot: row.slot as u32,
            horizon: row.horizon as u32,
        });
        let source = pass.source.as_ref().map(|source| StageSource {
            lengths: source.lengths.iter().map(|&length| length as u32).collect(),
            absent: source.absent.clone(),
        });
        let all_seen = pass.absent.iter().all(Vec::is_empty);
        let forward = StageForward {
            holding: self.holding,
            state,
            rows: rows.collect(),
            wanted: pass.wanted.iter().map(|&token| token as u32).collect(),
            absent: if all_seen { Vec::new() } else { pass.absent.clone() },
            source,
            routed: pass.routed.is_some(),
            floats: Floats(floats),
        };
        Ok((pieces, forward))
    }
}
