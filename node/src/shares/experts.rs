//! Experts of one model on several machines, as the thread that works on the model sees them.
//!
//! All calls of a layer leave at once; the experts that are here work meanwhile. A call that fails or is late goes to a
//! replica, and where there is none to this node, which fetches the expert and goes on: slower, and never with another
//! result, since rows come back unweighted and are summed by whoever asks, in the order of choices.

pub mod holder;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use accel_backends::tensor::Tensor;
use accel_models::ModelError;
use accel_models::layers::mlp::Mlp;
use accel_models::layers::moe::Experts;
use accel_models::share::{Part, Parts, Share};
use accel_protocol::limits::share_rows;
use accel_protocol::{ErrorCode, ExpertAsk, Floats, JobError, ShareAnswer};
use libp2p::PeerId;
use tokio::sync::Notify;

use super::Fetch;
use super::link::Link;
use super::pace::{Pace, Paced};
use crate::memory::{Memory, Reserved};

/// An expert by its layer and number.
pub type Place = (usize, usize);

/// The experts of one model, here and elsewhere.
pub struct Spread {
    parts: Arc<Parts>,
    fetch: Fetch,
    memory: Memory,
    /// The layers whose experts these are.
    layers: BTreeSet<usize>,
    /// Those that belong here.
    here: RwLock<HashMap<Place, Arc<Mlp>>>,
    /// Memory of those that were settled here later.
    settled: Mutex<Vec<Reserved>>,
    /// Those of others that this node stands in for, the one used last at the end.
    borrowed: Mutex<VecDeque<Borrowed>>,
    /// Who else has an expert.
    routes: RwLock<HashMap<Place, Vec<Arc<Remote>>>>,
    /// Told when a peer was lost or late.
    trouble: Arc<Notify>,
    counts: Counts,
}

struct Borrowed {
    place: Place,
    expert: Arc<Mlp>,
    _memory: Option<Reserved>,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Layers that were asked of others: each takes one round trip, however many are asked.
    pub rounds: AtomicU64,
    /// Rounds that had to be asked again.
    pub repeats: AtomicU64,
    /// Rows that others answered.
    pub rows: AtomicU64,
    /// Bytes of rows sent and received.
    pub bytes: AtomicU64,
    /// Experts that this node stood in for.
    pub borrowed: AtomicU64,
}

/// A peer that has experts of the model.
#[derive(Debug)]
pub struct Remote {
    /// The peer.
    pub peer: PeerId,
    link: Arc<Link<ExpertAsk>>,
    holding: u32,
    paced: Paced,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Where the stream has closed, nothing is held any more.
        self.link.ask(ExpertAsk::Release { holding: self.holding }, Box::new(|_| {}));
    }
}

impl Remote {
    /// A peer that holds experts under that name; `usual` seconds away, and with `row` seconds for a row.
    pub fn new(peer: PeerId, link: Arc<Link<ExpertAsk>>, holding: u32, usual: f64, row: f64) -> Self {
        Self { peer, link, holding, paced: Paced::new(usual, row) }
    }

    /// Whether it can be asked.
    pub fn is_open(&self) -> bool {
        self.link.is_open()
    }

    /// Whether it answers, and about as fast as it did at first.
    pub fn is_well(&self) -> bool {
        self.is_open() && self.paced.is_well()
    }

    /// How fast it answers.
    pub fn pace(&self) -> Pace {
        self.paced.pace()
    }

    /// Puts rows through experts; `answered` hears how that went.
    fn forward(
        self: &Arc<Self>,
        layer: usize,
        call: &Call,
        rows: Vec<f32>,
        answered: impl FnOnce(Option<Vec<f32>>) + Send + 'static,
    ) {
        let (sent, remote, count) = (Instant::now(), self.clone(), call.slots.len());
        let mut answered = Some(answered);
        let layer = u32::try_from(layer).unwrap_or(u32::MAX);
        let ask = ExpertAsk::Forward { holding: self.holding, layer, places: call.places.clone(), rows: Floats(rows) };
        self.link.ask(
            ask,
            Box::new(move |answer| {
                let rows = match answer {
                    Ok(ShareAnswer::Rows { rows, micros }) => {
                        remote.paced.took(count, sent.elapsed(), Duration::from_micros(micros));
                        Some(rows.0)
                    }
                    Ok(ShareAnswer::Failed(error)) => {
                        tracing::warn!(peer = %remote.peer, %error, "experts failed");
                        None
                    }
                    Ok(_) => None,
                    Err(error) => {
                        tracing::debug!(%error, "experts are gone");
                        None
                    }
                };
                if let Some(answered) = answered.take() {
                    answered(rows);
                }
            }),
        );
    }
}

/// What one peer is asked of one layer.
struct Call {
    remote: Arc<Remote>,
    /// Which row goes through which expert.
    places: Vec<(u32, u32)>,
    /// The tokens whose rows are sent.
    tokens: Vec<usize>,
    /// Where each row of the answer belongs.
    slots: Vec<usize>,
    sent: Instant,
}

impl std::fmt::Debug for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spread").field("counts", &self.counts).finish_non_exhaustive()
    }
}

fn not_had(place: Place, reason: impl std::fmt::Display) -> ModelError {
    ModelError::Elsewhere { part: format!("expert {} of layer {}", place.1, place.0), reason: reason.to_string() }
}

impl Spread {
    /// The experts of a model, none of them anywhere yet. Who is told of `trouble` sees to it that experts that lost their
    /// peers get others.
    pub fn new(parts: Arc<Parts>, fetch: Fetch, memory: Memory, layers: BTreeSet<usize>, trouble: Arc<Notify>) -> Self {
        Self {
            parts,
            fetch,
            memory,
            layers,
            here: RwLock::default(),
            settled: Mutex::default(),
            borrowed: Mutex::default(),
            routes: RwLock::default(),
            trouble,
            counts: Counts::default(),
        }
    }

    /// Whether these are the experts of a layer.
    pub fn covers(&self, layer: usize) -> bool {
        self.layers.contains(&layer)
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Reads experts that belong here; their blocks are here.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn load(&self, places: impl IntoIterator<Item = Place>) -> Result<(), ModelError> {
        for place in places {
            let expert = Arc::new(self.parts.expert(place.0, place.1)?);
            self.here.write().unwrap_or_else(PoisonError::into_inner).insert(place, expert);
        }
        Ok(())
    }

    /// Has experts of others belong here from now on, if there is memory for them.
    ///
    /// # Errors
    /// When there is none, or they cannot be had.
    pub async fn settle(self: &Arc<Self>, share: &Share) -> Result<(), JobError> {
        let bytes = self.parts.anatomy().share_bytes(share);
        let no_room = || {
            let words = format!("{bytes} bytes of experts do not fit the memory that is left here (jobs.memory_bytes)");
            JobError::new(ErrorCode::OutOfResources, words)
        };
        let memory = self.memory.reserve(bytes).ok_or_else(no_room)?;
        self.fetch.share(share, |_| Ok(()), |_| {}).await?;
        let (spread, share) = (self.clone(), share.clone());
        let load = tokio::task::spawn_blocking(move || spread.load(share.experts.iter().copied()));
        let broke_off = |error| JobError::new(ErrorCode::Internal, format!("loading experts broke off: {error}"));
        load.await.map_err(broke_off)?.map_err(accel_pipelines::PipelineError::Model)?;
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        Ok(())
    }

    /// Adds a peer that has experts; of several, the one that is expected to be quickest is asked.
    pub fn add(&self, remote: &Arc<Remote>, places: impl IntoIterator<Item = Place>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        for place in places {
            routes.entry(place).or_default().push(remote.clone());
        }
    }

    /// Takes a peer away.
    pub fn remove(&self, remote: &Arc<Remote>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.values_mut().for_each(|remotes| remotes.retain(|other| !Arc::ptr_eq(other, remote)));
    }

    /// The peers that have experts, each with what it has.
    pub fn remotes(&self) -> Vec<(Arc<Remote>, Vec<Place>)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<(Arc<Remote>, Vec<Place>)> = Vec::new();
        for (place, remotes) in routes.iter() {
            for remote in remotes {
                match all.iter_mut().find(|(known, _)| Arc::ptr_eq(known, remote)) {
                    Some((_, places)) => places.push(*place),
                    None => all.push((remote.clone(), vec![*place])),
                }
            }
        }
        all
    }

    /// The experts that are here because they belong here.
    pub fn here(&self) -> Vec<Place> {
        self.here.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// An expert of this node, or one that it stands in for.
    fn expert(&self, place: Place) -> Result<Arc<Mlp>, ModelError> {
        if let Some(expert) = self.here.read().unwrap_or_else(PoisonError::into_inner).get(&place) {
            return Ok(expert.clone());
        }
        let mut borrowed = self.borrowed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = borrowed.iter().position(|borrowed| borrowed.place == place)
            && let Some(known) = borrowed.remove(known)
        {
            let expert = known.expert.clone();
            borrowed.push_back(known);
            return Ok(expert);
        }
        let bytes = self.parts.anatomy().bytes(Part::Expert(place.0, place.1));
        // Where memory is short, those go that were not used for longest; the last is held without room for it.
        let memory = loop {
            let memory = self.memory.reserve(bytes);
            if memory.is_some() || borrowed.pop_front().is_none() {
                break memory;
            }
        };
        self.counts.borrowed.fetch_add(1, Ordering::Relaxed);
        let expert = match self.parts.expert(place.0, place.1) {
            Ok(expert) => expert,
            Err(ModelError::Weights(_)) => {
                let mut share = Share::default();
                share.insert(Part::Expert(place.0, place.1));
                self.fetch.blocking(&share).map_err(|error| not_had(place, error))?;
                self.parts.expert(place.0, place.1)?
            }
            Err(error) => return Err(error),
        };
        let expert = Arc::new(expert);
        borrowed.push_back(Borrowed { place, expert: expert.clone(), _memory: memory });
        Ok(expert)
    }

    /// Says who is asked for which of the open slots; those that nobody is asked for are worked out here.
    fn assign(&self, layer: usize, open: &[usize], chosen: &Chosen<'_>, avoid: &HashSet<PeerId>) -> Assigned {
        let here = self.here.read().unwrap_or_else(PoisonError::into_inner);
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let mut of_expert: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        open.iter().for_each(|&slot| of_expert.entry(chosen.expert(slot)).or_default().push(slot));
        let able = |expert: usize| {
            let remotes = routes.get(&(layer, expert)).filter(|_| !here.contains_key(&(layer, expert)));
            let able = remotes.into_iter().flatten();
            able.filter(|remote| remote.is_open() && !remote.paced.is_late() && !avoid.contains(&remote.peer)).cloned()
        };
        let mut all: Vec<(usize, Vec<usize>, Vec<Arc<Remote>>)> =
            of_expert.into_iter().map(|(expert, slots)| (expert, slots, able(expert).collect())).collect();
        // Where there is a choice it follows from what has none.
        all.sort_by_key(|(_, _, able)| able.len());
        let mut assigned = Assigned::default();
        for (expert, slots, able) in all {
            // Asking one more peer costs whoever asks another way.
            let cost = |remote: &Arc<Remote>| match assigned.rows(remote) {
                0 => remote.paced.expected(slots.len()) + remote.pace().transport,
                rows => remote.paced.expected(rows + slots.len()),
            };
            match able.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).cloned() {
                Some(remote) => assigned.give(remote, slots),
                None => assigned.here.push((expert, slots)),
            }
        }
        assigned
    }
}

/// Which experts tokens go through.
struct Chosen<'a> {
    experts: &'a [i64],
    of_token: usize,
}

impl Chosen<'_> {
    fn expert(&self, slot: usize) -> usize {
        usize::try_from(self.experts[slot]).unwrap_or(usize::MAX)
    }

    fn token(&self, slot: usize) -> usize {
        slot / self.of_token
    }
}

/// Who works out what.
#[derive(Default)]
struct Assigned {
    /// Experts of this node, with their slots.
    here: Vec<(usize, Vec<usize>)>,
    elsewhere: Vec<(Arc<Remote>, Vec<usize>)>,
}

impl Assigned {
    fn rows(&self, remote: &Arc<Remote>) -> usize {
        let known = self.elsewhere.iter().find(|(known, _)| Arc::ptr_eq(known, remote));
        known.map_or(0, |(_, slots)| slots.len())
    }

    fn give(&mut self, remote: Arc<Remote>, slots: Vec<usize>) {
        match self.elsewhere.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &remote)) {
            Some((_, known)) => known.extend(slots),
            None => self.elsewhere.push((remote, slots)),
        }
    }
}

impl Experts for Spread {
    fn forward(&self, layer: usize, x: &Tensor, places: &Tensor) -> Result<Tensor, ModelError> {
        let at = |source| ModelError::Tensor { place: format!("experts of layer {layer}"), source };
        let ([tokens, hidden], [_, of_token]) = (x.sizes().map_err(at)?, places.sizes().map_err(at)?);
        let (rows, experts) = (x.to_vec().map_err(at)?, places.to_whole().map_err(at)?);
        let chosen = Chosen { experts: &experts, of_token };
        let mut out = vec![0.0; tokens * of_token * hidden];
        let mut open: Vec<usize> = (0..tokens * of_token).collect();
        let mut avoid = HashSet::new();
        while !open.is_empty() {
            let assigned = self.assign(layer, &open, &chosen, &avoid);
            let ill = assigned.elsewhere.iter().any(|(remote, _)| !remote.is_well());
            let asked = !assigned.elsewhere.is_empty();
            let round = self.ask(layer, assigned.elsewhere, &chosen, (&rows, hidden));
            for (expert, slots) in assigned.here {
                let expert = self.expert((layer, expert))?;
                let taken: Vec<usize> = slots.iter().map(|&slot| chosen.token(slot)).collect();
                let made = expert.forward(&x.pick(0, &taken).map_err(at)?)?;
                made.read(|made| place(made, &slots, hidden, &mut out)).map_err(at)?;
            }
            open = round.collect(hidden, &mut out, &mut avoid);
            if asked {
                self.counts.rounds.fetch_add(1, Ordering::Relaxed);
            }
            if !open.is_empty() {
                self.counts.repeats.fetch_add(1, Ordering::Relaxed);
            }
            if ill || !open.is_empty() {
                self.trouble.notify_one();
            }
        }
        Tensor::new(x.engine(), out, &[tokens, of_token, hidden]).map_err(at)
    }
}

/// Puts rows where they belong.
fn place(rows: &[f32], slots: &[usize], hidden: usize, out: &mut [f32]) {
    for (slot, row) in slots.iter().zip(rows.chunks_exact(hidden)) {
        out[slot * hidden..][..hidden].copy_from_slice(row);
    }
}

impl Spread {
    /// Sends all calls of a layer.
    fn ask(
        &self,
        layer: usize,
        mut elsewhere: Vec<(Arc<Remote>, Vec<usize>)>,
        chosen: &Chosen<'_>,
        (rows, hidden): (&[f32], usize),
    ) -> Round {
        let (send, answers) = channel();
        let mut calls = Vec::new();
        // One frame leaves after the other, so whoever has most to do hears first.
        elsewhere.sort_by_key(|(_, slots)| std::cmp::Reverse(slots.len()));
        for (remote, slots) in elsewhere {
            for slots in slots.chunks(share_rows(hidden).max(1)) {
                let mut call = Call {
                    remote: remote.clone(),
                    places: Vec::new(),
                    tokens: Vec::new(),
                    slots: slots.to_vec(),
                    sent: Instant::now(),
                };
                let mut of_token: HashMap<usize, u32> = HashMap::new();
                for &slot in slots {
                    let token = chosen.token(slot);
                    let row = *of_token.entry(token).or_insert_with(|| {
                        call.tokens.push(token);
                        call.tokens.len() as u32 - 1
                    });
                    call.places.push((row, chosen.expert(slot) as u32));
                }
                let mut sent = Vec::with_capacity(call.tokens.len() * hidden);
                call.tokens.iter().for_each(|token| sent.extend_from_slice(&rows[token * hidden..][..hidden]));
                let bytes = 4 * (sent.len() + slots.len() * hidden) as u64;
                self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.counts.rows.fetch_add(slots.len() as u64, Ordering::Relaxed);
                let (number, send) = (calls.len(), send.clone());
                // Who waits no longer does not want the answer.
                remote.forward(layer, &call, sent, move |rows| drop(send.send((number, rows))));
                calls.push(Some(call));
            }
        }
        Round { calls, answers }
    }
}

/// Calls that are under way.
struct Round {
    calls: Vec<Option<Call>>,
    answers: Receiver<(usize, Option<Vec<f32>>)>,
}

impl Round {
    /// Waits for the answers; those that do not come leave their slots open, and their peers are to be avoided.
    fn collect(mut self, hidden: usize, out: &mut [f32], avoid: &mut HashSet<PeerId>) -> Vec<usize> {
        let mut open = Vec::new();
        loop {
            let end = |call: &Call| call.sent + call.remote.paced.patience(call.slots.len());
            let Some(first) = self.calls.iter().flatten().map(end).min() else { return open };
            match self.answers.recv_timeout(first.saturating_duration_since(Instant::now())) {
                Ok((number, rows)) => {
                    let Some(call) = self.calls.get_mut(number).and_then(Option::take) else { continue };
                    match rows.filter(|rows| rows.len() == call.slots.len() * hidden) {
                        Some(rows) => place(&rows, &call.slots, hidden, out),
                        None => {
                            avoid.insert(call.remote.peer);
                            open.extend(call.slots);
                        }
                    }
                }
                Err(why) => {
                    // Nobody is left who could answer, or it is too late for some.
                    let (now, nobody) = (Instant::now(), why == RecvTimeoutError::Disconnected);
                    let over = |call: &&mut Option<Call>| call.as_ref().is_some_and(|call| nobody || end(call) <= now);
                    for call in self.calls.iter_mut().filter(over) {
                        let Some(call) = call.take() else { continue };
                        call.remote.paced.was_late();
                        avoid.insert(call.remote.peer);
                        open.extend(call.slots);
                    }
                }
            }
        }
    }
}
