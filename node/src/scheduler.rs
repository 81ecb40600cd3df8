//! Which jobs run, where, and when: admission, placement, and the way of each job to its one end.

mod models;
mod search;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use accel_protocol::limits::{BLOB_INPUT_BYTES, INLINE_INPUT_BYTES};
use accel_protocol::{
    Arithmetic, Device, ErrorCode, Input, JobError, JobEvent, JobId, JobSpec, JobState, Load, Rejection,
};
use libp2p::PeerId;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::client::{self, Answered, Errand};
use crate::config::JobsConfig;
use crate::jobs::{Entered, Job, Jobs, Owner, REMEMBERED};
use crate::metrics::Metrics;
use crate::store::{Lent, Store};
use crate::swarm::Swarm;

pub use models::{KeepAlive, Models};
use search::Place;
use worker::Assignment;

/// What a peer that is turned away for lack of room is told to wait.
const RETRY_AFTER_MS: u64 = 2_000;

/// The scheduler of a node; clones share it.
#[derive(Clone, Debug)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    jobs: Jobs,
    models: Models,
    store: Store,
    swarm: Swarm,
    config: JobsConfig,
    /// One permit for each job at work here.
    desks: Semaphore,
    draining: AtomicBool,
    changed: watch::Sender<()>,
    tasks: TaskTracker,
    metrics: Metrics,
    /// What this machine offers.
    devices: Vec<Device>,
    /// A job of this node has left its place with a peer.
    freed: Notify,
}

impl Scheduler {
    /// A scheduler with nothing to do.
    pub fn new(config: &JobsConfig, models: Models, store: Store, swarm: Swarm, devices: Vec<Device>) -> Self {
        Self {
            shared: Arc::new(Shared {
                jobs: Jobs::default(),
                models,
                store,
                swarm,
                desks: Semaphore::new(config.running),
                config: config.clone(),
                draining: AtomicBool::new(false),
                changed: watch::Sender::default(),
                tasks: TaskTracker::new(),
                metrics: Metrics::default(),
                devices,
                freed: Notify::new(),
            }),
        }
    }

    /// All jobs.
    pub fn jobs(&self) -> &Jobs {
        &self.shared.jobs
    }

    /// The models in memory.
    pub fn models(&self) -> &Models {
        &self.shared.models
    }

    /// What is measured of the jobs.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// How busy this node is.
    pub fn load(&self) -> Load {
        self.load_beside(None)
    }

    /// How busy it is with other jobs than one that is to be placed.
    fn load_beside(&self, job: Option<JobId>) -> Load {
        let (queued, running) = self.shared.jobs.load(job);
        Load { running, queued, capacity: u32::try_from(self.capacity()).unwrap_or(u32::MAX) }
    }

    /// Whether this node takes jobs from its peers now.
    pub fn serves(&self) -> bool {
        self.shared.config.serve && !self.shared.draining.load(Ordering::Relaxed)
    }

    /// Wakes when the load or the models in memory have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Says that the load or the models in memory have changed.
    pub fn tell(&self) {
        self.shared.changed.send_replace(());
    }

    fn capacity(&self) -> usize {
        self.shared.config.running + self.shared.config.queued
    }

    /// Takes a job from this node's own interface, to run wherever it runs best, or on `first` if that peer can.
    ///
    /// # Errors
    /// When the job is not valid or the node is stopping.
    pub fn submit(&self, spec: JobSpec, first: Option<PeerId>) -> Result<Arc<Job>, Rejection> {
        spec.validate_local()?;
        self.enter(spec, Owner::Local, move |scheduler, job| async move { scheduler.drive(job, first).await })
    }

    /// Takes a job from a peer, to run here.
    ///
    /// # Errors
    /// When the job is not valid, this node does not run jobs for peers, or it has no room.
    pub fn accept(&self, peer: PeerId, spec: JobSpec) -> Result<Arc<Job>, Rejection> {
        if !self.shared.config.serve {
            return Err(refusal(ErrorCode::NoWorker, "this peer does not run jobs for others (jobs.serve)", None));
        }
        spec.validate()?;
        self.enter(spec, Owner::Peer(peer), move |scheduler, job| async move {
            let spec = job.spec.clone();
            if let Err(error) = scheduler.run_here(&job, spec, Some(peer), false).await {
                job.fail(error);
            }
        })
    }

    fn enter<F>(
        &self,
        spec: JobSpec,
        owner: Owner,
        way: impl FnOnce(Self, Arc<Job>) -> F,
    ) -> Result<Arc<Job>, Rejection>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Submitting twice is harmless, also when there is no room for another.
        if let Some(known) = self.shared.jobs.get(spec.id, owner).filter(|job| job.owner == owner) {
            return Ok(known);
        }
        if self.shared.draining.load(Ordering::Relaxed) {
            return Err(refusal(ErrorCode::ShuttingDown, "this node is stopping", None));
        }
        let open = self.shared.jobs.open_of(owner);
        let (load, full) = match owner {
            // Jobs of this node's own users may go to peers, so they need no place here.
            Owner::Local => (self.load(), open >= REMEMBERED),
            // One peer does not take all places.
            Owner::Peer(_) => {
                let load = self.load();
                (load, load.running + load.queued >= load.capacity || open >= self.capacity().div_ceil(2))
            }
        };
        if full {
            let full = format!("the places for your jobs are taken; this node has {}", load.capacity);
            return Err(refusal(ErrorCode::OutOfResources, &full, Some(RETRY_AFTER_MS)));
        }
        let job = match self.shared.jobs.enter(spec, owner) {
            Entered::New(job) => job,
            Entered::Known(job) => return Ok(job),
            Entered::Taken => {
                return Err(refusal(ErrorCode::InvalidRequest, "this job id belongs to another's job", None));
            }
        };
        let run = way(self.clone(), job.clone());
        self.shared.tasks.spawn(finish(self.clone(), job.clone(), run));
        self.shared.changed.send_replace(());
        Ok(job)
    }

    /// A job's way when it was submitted here: from place to place until one brings it to an end.
    async fn drive(&self, job: Arc<Job>, first: Option<PeerId>) {
        let own = self.shared.swarm.id();
        // Who says how a model is to run on this node wants it to run on this node.
        let wished = || self.shared.config.serve && self.shared.models.coordinator().has_wish(&job.spec.model);
        let mut first = match first {
            Some(peer) if peer != own => Some(Place::Peer(peer)),
            Some(_) => Some(Place::Here),
            None => wished().then_some(Place::Here),
        };
        let mut tried = Vec::new();
        let mut answered = Answered::default();
        let mut lent = None;
        let mut last_error = None;
        let mut full = Full::default();
        while !job.cancel.is_cancelled() {
            let place = match first.take() {
                Some(first) => Some(first),
                None if full.is_empty() => search::choose(self, &job.spec, &tried, answered.arithmetic()).await,
                // Others are known, or those that were full are asked again.
                None => search::best(self, &job.spec, &tried, answered.arithmetic()).await,
            };
            let Some(place) = place else {
                if full.is_empty() {
                    break;
                }
                tokio::select! {
                    () = self.shared.freed.notified() => {}
                    () = tokio::time::sleep(full.wait()) => {}
                }
                tried.retain(|place| !full.places.contains(place));
                full.places.clear();
                continue;
            };
            tried.push(place);
            let spec = answered.rest_of(&job.spec);
            let begun_with = answered.arithmetic().cloned();
            let outcome = match place {
                Place::Here => {
                    job.set_peer(None);
                    let (continues, before) = (answered.has_begun(), job.log.tokens());
                    match self.run_here(&job, spec, None, continues).await {
                        // What was said here is not among what another place would go on from.
                        Err(error) if job.log.tokens() > before => return job.fail(error),
                        outcome => outcome,
                    }
                }
                Place::Peer(peer) => {
                    job.set_peer(Some(peer));
                    let errand = Errand {
                        swarm: &self.shared.swarm,
                        peer,
                        job: &job,
                        answered: &mut answered,
                        stuck: Duration::from_secs(self.shared.config.stuck_seconds),
                        elsewhere: || search::elsewhere(self, &tried, begun_with.as_ref()),
                    };
                    let ran = match self.portable(spec, &mut lent).await {
                        Ok(spec) => errand.run(spec).await,
                        Err(error) => Err(error.into()),
                    };
                    match ran {
                        Err(Rejection { retry_after_ms: Some(wait_ms), error }) => {
                            tracing::debug!(job = %job.spec.id, %peer, %error, "a peer has no place for a job now");
                            full.add(place, wait_ms);
                            last_error = Some(error);
                            continue;
                        }
                        ran => {
                            self.shared.freed.notify_one();
                            ran.map_err(|rejection| rejection.error)
                        }
                    }
                }
            };
            match outcome {
                Ok(()) => return,
                Err(error) if error.code.may_move() => {
                    tracing::warn!(job = %job.spec.id, ?place, %error, "a job moves on");
                    if let Place::Peer(peer) = place {
                        self.give_up(peer, job.spec.id, error.code);
                    }
                    last_error = Some(error);
                }
                Err(error) => return job.fail(error),
            }
        }
        job.fail(last_error.unwrap_or_else(|| search::nobody(&job.spec)));
    }

    /// Takes a job away from a peer. One that was lost may still work on it, and is not chosen again before it speaks up.
    fn give_up(&self, peer: PeerId, job: JobId, why: ErrorCode) {
        if why == ErrorCode::WorkerLost {
            self.shared.swarm.peers().doubt(peer);
            let swarm = self.shared.swarm.clone();
            self.shared.tasks.spawn(async move { client::release(&swarm, peer, job).await });
        }
    }

    /// The spec with an input over the inline limit replaced by the CID of what is `lent`.
    async fn portable(&self, mut spec: JobSpec, lent: &mut Option<Lent>) -> Result<JobSpec, JobError> {
        if lent.is_none() && !matches!(spec.input, Input::Blob(_)) {
            let internal = |error| JobError::new(ErrorCode::Internal, error);
            let json = serde_json::to_vec(&spec.input).map_err(internal)?;
            if json.len() > INLINE_INPUT_BYTES {
                *lent = Some(self.shared.store.lend(json).await?);
            }
        }
        if let Some(lent) = lent {
            spec.input = Input::Blob(lent.cid().to_string());
        }
        Ok(spec)
    }

    /// The spec with an input that came by CID in its place.
    async fn inline(&self, mut spec: JobSpec, from: Option<PeerId>) -> Result<JobSpec, JobError> {
        if let Input::Blob(text) = &spec.input {
            let invalid = |error: &dyn std::fmt::Display| {
                JobError::new(ErrorCode::InvalidRequest, format!("input {text}: {error}"))
            };
            let cid = text.parse().map_err(|error: cid::Error| invalid(&error))?;
            let providers = from.into_iter().collect();
            let bytes = self.shared.store.read_bytes(cid, BLOB_INPUT_BYTES, providers).await.map_err(JobError::from)?;
            let input: Input = serde_json::from_slice(&bytes).map_err(|error| invalid(&error))?;
            input.validate_blob_content()?;
            spec.input = input;
        }
        Ok(spec)
    }

    /// Runs a job on this node's own worker. `Ok` means that its log has ended.
    async fn run_here(
        &self,
        job: &Arc<Job>,
        spec: JobSpec,
        from: Option<PeerId>,
        continues: bool,
    ) -> Result<(), JobError> {
        let closed = |_| JobError::new(ErrorCode::ShuttingDown, "this node is stopping");
        let _desk = self.shared.desks.acquire().await.map_err(closed)?;
        let mut spec = self.inline(spec, from).await?;
        let worker = self
            .shared
            .models
            .worker(&spec.model, |event| {
                job.append(event);
            })
            .await?;
        self.shared.changed.send_replace(());
        let continues =
            continues.then(|| Continued { peer: self.shared.swarm.id(), arithmetic: spec.arithmetic.clone() });
        // Where no peer has the arithmetic that the answer was begun with, it goes on with another, and the events say so.
        if spec.arithmetic.as_ref().is_some_and(|wanted| wanted != worker.arithmetic()) {
            spec.arithmetic = None;
        }
        let (refuse, refused) = oneshot::channel();
        let inbox = worker.inbox();
        job.hold(worker);
        inbox.take(Assignment { job: job.clone(), spec, continues, refuse });
        let outcome = tokio::select! {
            () = job.log.end() => Ok(()),
            refused = refused => match refused {
                Ok(error) => Err(error),
                Err(_) if job.log.ended().is_some() => Ok(()),
                Err(_) => Err(JobError::new(ErrorCode::Internal, "the model's thread broke down")),
            }
        };
        job.give_back();
        outcome
    }

    /// Takes no more jobs; those at work get `jobs.stop_grace_seconds` to finish, then go back to whoever submitted
    /// them to be handed over.
    pub async fn drain(&self) {
        let shared = &self.shared;
        shared.draining.store(true, Ordering::Relaxed);
        shared.changed.send_replace(());
        shared.tasks.close();
        let handed_over = || JobError::new(ErrorCode::ShuttingDown, "the worker is stopping");
        for job in shared.jobs.all().iter().filter(|job| job.log.state() == JobState::Queued) {
            job.fail(handed_over());
        }
        let grace = Duration::from_secs(shared.config.stop_grace_seconds);
        if tokio::time::timeout(grace, shared.tasks.wait()).await.is_err() {
            for job in shared.jobs.all() {
                job.fail(handed_over());
            }
            shared.tasks.wait().await;
        }
    }
}

/// Places that have no room for a job now, and will have some later.
#[derive(Debug, Default)]
struct Full {
    places: Vec<Place>,
    /// The shortest time after which one of them said that asking again makes sense.
    wait: Option<Duration>,
    /// How often all were full.
    times: u32,
}

/// A place that is full is asked again after this time at the latest.
const ASK_AGAIN: Duration = Duration::from_secs(30);

impl Full {
    fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn add(&mut self, place: Place, wait_ms: u64) {
        self.places.push(place);
        let wait = Duration::from_millis(wait_ms);
        self.wait = Some(self.wait.map_or(wait, |shortest| shortest.min(wait)));
    }

    /// How long to wait, unless a place becomes free before: longer each time, so that many who wait do not keep those
    /// busy who are to have time for them.
    fn wait(&mut self) -> Duration {
        let wait = self.wait.take().unwrap_or(ASK_AGAIN) * 2_u32.saturating_pow(self.times.min(5));
        self.times += 1;
        wait.clamp(Duration::from_millis(100), ASK_AGAIN)
    }
}

/// An answer that another peer began and this node goes on with.
#[derive(Clone, Debug)]
pub struct Continued {
    /// This node.
    pub peer: PeerId,
    /// What the answer was begun with.
    pub arithmetic: Option<Arithmetic>,
}

/// Runs a job's way within its deadline, and makes sure that it has ended when the way has.
async fn finish(scheduler: Scheduler, job: Arc<Job>, way: impl Future<Output = ()>) {
    tokio::select! {
        () = way => {}
        () = job.cancel.cancelled() => {}
        () = tokio::time::sleep_until(job.deadline()) => {
            let late = format!("not done within {} ms", job.spec.deadline_ms);
            job.fail(JobError::new(ErrorCode::DeadlineExceeded, late));
        }
    }
    job.cancel.cancel();
    if job.append(JobEvent::Cancelled) {
        tracing::error!(job = %job.spec.id, "a job's way ended before the job");
    }
    if let Some(peer) = job.peer().filter(|_| job.log.state() != JobState::Done) {
        client::release(&scheduler.shared.swarm, peer, job.spec.id).await;
    }
    scheduler.shared.metrics.ended(&job);
    scheduler.shared.changed.send_replace(());
}

fn refusal(code: ErrorCode, message: &str, retry_after_ms: Option<u64>) -> Rejection {
    Rejection { error: JobError::new(code, message), retry_after_ms }
}
