//! What this node holds of models that others work on, and the threads that compute with it.
//!
//! A peer opens a stream, says which experts it wants held, and sends rows to put through them. What it had held goes
//! when its stream closes. Experts that several streams want are in memory once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use accel_backends::tensor::Tensor;
use accel_models::ModelError;
use accel_models::layers::mlp::Mlp;
use accel_models::share::{Part, Parts, Share};
use accel_protocol::limits::{SHARE_EXPERTS, SHARE_REQUESTS, share_rows};
use accel_protocol::share::EXPERTS_PROTOCOL;
use accel_protocol::{
    ErrorCode, ExpertAsk, ExpertRequest, Floats, JobError, LayerExperts, ModelRef, ShareAnswer, ShareReply,
};
use libp2p::PeerId;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::serving::{self, Reply, STREAMS};
use super::super::{Fetch, Fetcher};
use crate::frames::FrameReader;
use crate::memory::Reserved;
use crate::scheduler::Models;
use crate::store::BlockFiles;
use crate::swarm::SwarmError;

/// What this node holds for others. Clones share it.
#[derive(Clone, Debug)]
pub struct ExpertHolder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fetch: Fetcher,
    /// The node's own models: those that nobody uses make room.
    loaded: Models,
    serves: bool,
    models: Mutex<HashMap<ModelRef, Weak<Held>>>,
}

/// The experts of one model that are in memory, and their thread.
#[derive(Debug)]
struct Held {
    parts: Parts,
    experts: Mutex<HashMap<(usize, usize), Weak<Expert>>>,
    calls: SyncSender<Call>,
}

#[derive(Debug)]
struct Expert {
    mlp: Mlp,
    memory: Reserved,
}

/// Rows to be put through experts.
struct Call {
    work: Work,
    arrived: Instant,
    reply: Reply,
}

/// An expert with its places: which of the answer's rows it makes, of which row.
type Turn = (Arc<Expert>, Vec<(usize, usize)>);

/// What a call computes.
struct Work {
    held: Arc<Held>,
    experts: Vec<Turn>,
    rows: Vec<f32>,
    /// Numbers of a row.
    hidden: usize,
    /// Rows of the answer.
    answers: usize,
}

impl ExpertHolder {
    /// Nothing is held yet.
    pub fn new(fetch: Fetcher, loaded: Models, serves: bool) -> Self {
        Self { shared: Arc::new(Shared { fetch, loaded, serves, models: Mutex::default() }) }
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
        serving::serve(&swarm, EXPERTS_PROTOCOL, stop, read).await
    }

    async fn read(
        &self,
        peer: PeerId,
        mut reader: FrameReader,
        answers: mpsc::Sender<ShareReply>,
    ) -> Result<(), SwarmError> {
        let places = Arc::new(Semaphore::new(SHARE_REQUESTS));
        let holdings = Holdings::default();
        let loads = TaskTracker::new();
        loop {
            // Models rest at night; a stream for none is of no use.
            let may_rest = || !holdings.is_empty() || !loads.is_empty();
            let request = serving::next(&mut reader, may_rest).await?;
            let Some(ExpertRequest { id, ask }) = request else { return Ok(()) };
            let arrived = Instant::now();
            // A peer that sends faster than this node computes is read no further.
            let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
            let reply = Reply::new(id, &answers, place);
            match ask {
                ExpertAsk::Hold { holding, model, experts } => {
                    let (holder, holdings) = (self.clone(), holdings.clone());
                    loads.spawn(async move {
                        let held = reply.busy(holder.hold(peer, &model, experts, &reply)).await;
                        let answer = match held {
                            Ok((held, experts, answer)) => {
                                holdings.add(holding, held, experts);
                                answer
                            }
                            Err(error) => ShareAnswer::Failed(error),
                        };
                        reply.send(answer).await;
                    });
                }
                ExpertAsk::Forward { holding, layer, places, rows } => {
                    match holdings.work(holding, layer as usize, &places, rows.0) {
                        Ok(work) => {
                            let calls = work.held.calls.clone();
                            let sent = calls.try_send(Call { work, arrived, reply });
                            if let Err(TrySendError::Full(call) | TrySendError::Disconnected(call)) = sent {
                                let error = JobError::new(ErrorCode::Internal, "the thread of the experts broke down");
                                call.reply.send(ShareAnswer::Failed(error)).await;
                            }
                        }
                        Err(error) => reply.send(ShareAnswer::Failed(error)).await,
                    }
                }
                ExpertAsk::Echo(rows) => {
                    // By way of another thread, as rows that are computed go.
                    let echo = move || reply.send_blocking(ShareAnswer::Rows { rows, micros: 0 });
                    drop(tokio::task::spawn_blocking(echo));
                }
                ExpertAsk::Release { holding } => {
                    holdings.remove(holding);
                    reply.send(ShareAnswer::Held { memory_bytes: 0, fetched_bytes: 0, here_bytes: 0 }).await;
                }
            }
        }
    }

    /// Has experts in memory, fetched if need be.
    async fn hold(
        &self,
        peer: PeerId,
        model: &ModelRef,
        experts: Vec<LayerExperts>,
        reply: &Reply,
    ) -> Result<(Arc<Held>, Vec<((usize, usize), Arc<Expert>)>, ShareAnswer), JobError> {
        let shared = &self.shared;
        if !shared.serves {
            return Err(JobError::new(ErrorCode::NoWorker, "this peer does not work for others (jobs.serve)"));
        }
        let mut share = Share::default();
        for LayerExperts { layer, experts } in experts {
            experts.into_iter().for_each(|expert| share.insert(Part::Expert(layer as usize, expert as usize)));
        }
        if share.experts.is_empty() || share.experts.len() > SHARE_EXPERTS {
            let words = format!("expected 1 to {SHARE_EXPERTS} experts, found {}", share.experts.len());
            return Err(JobError::new(ErrorCode::InvalidRequest, words));
        }
        let fetch = Fetch { from: Some(peer), ..shared.fetch.of(model) };
        let fits = |bytes: u64| shared.loaded.make_room(bytes).map(drop);
        let report = fetch.share(&share, fits, |now| {
            reply.progress(now);
        });
        let report = report.await?;
        let files = shared.fetch.store.open(&model.cid, None).await?;
        let (holder, model) = (self.clone(), model.clone());
        let load = move || -> Result<_, JobError> {
            let held = holder.held(&model, files)?;
            let experts = share.experts.iter().map(|&place| Ok((place, holder.expert(&held, place)?)));
            let experts = experts.collect::<Result<Vec<_>, JobError>>()?;
            Ok((held, experts))
        };
        let broke_off = |error| JobError::new(ErrorCode::Internal, format!("loading experts broke off: {error}"));
        let (held, experts) = tokio::task::spawn_blocking(load).await.map_err(broke_off)??;
        let memory_bytes = experts.iter().map(|(_, expert)| expert.memory.bytes()).sum();
        let (fetched_bytes, here_bytes) = (report.fetched_bytes, report.here_bytes);
        Ok((held, experts, ShareAnswer::Held { memory_bytes, fetched_bytes, here_bytes }))
    }

    fn models(&self) -> MutexGuard<'_, HashMap<ModelRef, Weak<Held>>> {
        // Entries come and go whole.
        self.shared.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held of a model; its thread starts with the first that is.
    fn held(&self, model: &ModelRef, files: BlockFiles) -> Result<Arc<Held>, JobError> {
        if let Some(held) = self.models().get(model).and_then(Weak::upgrade) {
            return Ok(held);
        }
        let parts = accel_pipelines::open(Arc::new(files), self.shared.loaded.threads())?;
        let (calls, inbox) = sync_channel(STREAMS * SHARE_REQUESTS);
        let start = std::thread::Builder::new().name("accel-experts".to_owned()).spawn(move || work(&inbox));
        start.map_err(|error| JobError::new(ErrorCode::OutOfResources, format!("no thread for experts: {error}")))?;
        let held = Arc::new(Held { parts, experts: Mutex::default(), calls });
        let mut models = self.models();
        models.retain(|_, held| held.strong_count() > 0);
        // Of two that were opened at once, one stays.
        if let Some(other) = models.get(model).and_then(Weak::upgrade) {
            return Ok(other);
        }
        models.insert(model.clone(), Arc::downgrade(&held));
        Ok(held)
    }

    fn expert(&self, held: &Held, place: (usize, usize)) -> Result<Arc<Expert>, JobError> {
        if let Some(expert) = held.experts().get(&place).and_then(Weak::upgrade) {
            return Ok(expert);
        }
        let bytes = held.parts.anatomy().bytes(Part::Expert(place.0, place.1));
        let memory = self.shared.loaded.make_room(bytes)?;
        let mlp = held.parts.expert(place.0, place.1).map_err(accel_pipelines::PipelineError::Model)?;
        let expert = Arc::new(Expert { mlp, memory });
        held.experts().insert(place, Arc::downgrade(&expert));
        Ok(expert)
    }
}

impl Held {
    fn experts(&self) -> MutexGuard<'_, HashMap<(usize, usize), Weak<Expert>>> {
        // Entries come and go whole.
        self.experts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers of a row.
    fn hidden(&self) -> usize {
        let spec = &self.parts.description().spec;
        accel_models::share::stacks(spec).first().map_or(0, |(_, stack)| stack.hidden)
    }
}

/// What one stream had held, by its own names. Clones share it.
#[derive(Clone, Default)]
struct Holdings {
    held: Arc<Mutex<HashMap<u32, Holding>>>,
}

struct Holding {
    held: Arc<Held>,
    experts: HashMap<(usize, usize), Arc<Expert>>,
}

impl Holdings {
    fn all(&self) -> MutexGuard<'_, HashMap<u32, Holding>> {
        // Entries come and go whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, holding: u32, held: Arc<Held>, experts: Vec<((usize, usize), Arc<Expert>)>) {
        let mut all = self.all();
        let holding = all.entry(holding).or_insert_with(|| Holding { held: held.clone(), experts: HashMap::new() });
        if !Arc::ptr_eq(&holding.held, &held) {
            *holding = Holding { held, experts: HashMap::new() };
        }
        holding.experts.extend(experts);
    }

    fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    fn remove(&self, holding: u32) {
        self.all().remove(&holding);
    }

    /// Looks at what a peer asks before anything is computed.
    fn work(&self, holding: u32, layer: usize, places: &[(u32, u32)], rows: Vec<f32>) -> Result<Work, JobError> {
        let invalid = |words: String| JobError::new(ErrorCode::InvalidRequest, words);
        let all = self.all();
        let holding = all.get(&holding).ok_or_else(|| invalid("nothing is held under that name".into()))?;
        let hidden = holding.held.hidden();
        let count = rows.len().checked_div(hidden).unwrap_or(0);
        if count * hidden != rows.len() {
            return Err(invalid(format!("expected rows of {hidden} numbers, found {} numbers", rows.len())));
        }
        if places.len() > share_rows(hidden) {
            return Err(invalid(format!("an answer of {} rows would not fit a frame", places.len())));
        }
        let mut experts: BTreeMap<u32, Turn> = BTreeMap::new();
        for (slot, &(row, expert)) in places.iter().enumerate() {
            let row = row as usize;
            if row >= count {
                return Err(invalid(format!("row {row} of {count}")));
            }
            let known = || holding.experts.get(&(layer, expert as usize)).cloned();
            let of_expert = match experts.entry(expert) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let held =
                        known().ok_or_else(|| invalid(format!("expert {expert} of layer {layer} is not held")))?;
                    entry.insert((held, Vec::new()))
                }
            };
            of_expert.1.push((slot, row));
        }
        let experts = experts.into_values().collect();
        Ok(Work { held: holding.held.clone(), experts, rows, hidden, answers: places.len() })
    }
}

impl Work {
    /// Puts the rows through the experts.
    fn run(&self) -> Result<Vec<f32>, ModelError> {
        let (engine, hidden) = (self.held.parts.engine(), self.hidden);
        let at = |source| ModelError::Tensor { place: "experts".into(), source };
        let mut answers = vec![0.0; self.answers * hidden];
        for (expert, places) in &self.experts {
            let mut rows = Vec::with_capacity(places.len() * hidden);
            places.iter().for_each(|(_, row)| rows.extend_from_slice(&self.rows[row * hidden..][..hidden]));
            let x = Tensor::new(engine, rows, &[places.len(), hidden]).map_err(at)?;
            let write = |made: &[f32]| {
                for ((slot, _), row) in places.iter().zip(made.chunks_exact(hidden)) {
                    answers[slot * hidden..][..hidden].copy_from_slice(row);
                }
            };
            expert.mlp.forward(&x)?.read(write).map_err(at)?;
        }
        Ok(answers)
    }
}

/// The thread that computes; it ends when nothing of its model is held any more.
fn work(calls: &Receiver<Call>) {
    while let Ok(Call { work, arrived, reply }) = calls.recv() {
        let answer = match work.run() {
            Ok(rows) => {
                let micros = arrived.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                ShareAnswer::Rows { rows: Floats(rows), micros }
            }
            Err(error) => ShareAnswer::Failed(JobError::new(ErrorCode::Internal, error)),
        };
        reply.send_blocking(answer);
    }
    accel_backends::cpu::give_back();
}
