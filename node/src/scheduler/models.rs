//! Loaded models: each is fetched and loaded once however many jobs ask, and dropped, least recently used first, when
//! another needs its memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel_pipelines::{LoadOptions, Pipeline};
use accel_protocol::{ErrorCode, JobError, JobEvent, ModelRef};
use tokio::sync::{Notify, OnceCell, watch};

use super::worker::Worker;
use crate::config::JobsConfig;
use crate::memory::{Memory, Reserved};
use crate::shares::{Coordinator, Fetcher, Known, Plan, Split};
use crate::store::{BlockFiles, FetchOptions, FetchProgress, RootKind, Source, Store, StoreError};
use crate::swarm::Swarm;
use crate::usage::Ledger;

/// How long a model stays in memory without a job; when memory is short it goes earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// So long.
    For(Duration),
    /// As long as there is room.
    ForEver,
}

impl KeepAlive {
    /// So many seconds; for ever where it is none, as the configuration has it.
    pub fn seconds(seconds: u64) -> Self {
        if seconds == 0 { Self::ForEver } else { Self::For(Duration::from_secs(seconds)) }
    }
}

/// A model in memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Which.
    pub model: ModelRef,
    /// Bytes of it in memory.
    pub bytes: u64,
    /// How long ago its last job came or went.
    pub idle: Duration,
    /// Whether a job is at work on it.
    pub busy: bool,
    /// How long from now it stays if no job comes; none where it stays.
    pub stays: Option<Duration>,
}

/// A worker that a job is at work on. The time that its model stays in memory begins when the job has gone.
#[derive(Debug)]
pub struct InUse {
    // The order matters: it is told of once the worker is let go.
    worker: Arc<Worker>,
    _leaves: Leaves,
}

impl std::ops::Deref for InUse {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.worker
    }
}

#[derive(Debug)]
struct Leaves {
    models: Models,
    model: ModelRef,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        if let Some(slot) = self.models.slots().get_mut(&self.model) {
            slot.used = Instant::now();
        }
        self.models.shared.left.notify_one();
    }
}

/// The models of a node. Clones share them.
#[derive(Clone, Debug)]
pub struct Models {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    swarm: Swarm,
    options: LoadOptions,
    fetch: FetchOptions,
    memory: Memory,
    coordinator: Coordinator,
    usage: Ledger,
    slots: Mutex<HashMap<ModelRef, Slot>>,
    leaving: Mutex<()>,
    keep_alive: KeepAlive,
    /// A job has left its model.
    left: Notify,
}

#[derive(Clone, Debug)]
struct Slot {
    worker: Arc<OnceCell<Arc<Worker>>>,
    progress: watch::Sender<Option<JobEvent>>,
    used: Instant,
    /// How long it stays without a job.
    keep_alive: KeepAlive,
}

impl Slot {
    fn new(keep_alive: KeepAlive) -> Self {
        Self { worker: Arc::default(), progress: watch::Sender::new(None), used: Instant::now(), keep_alive }
    }

    /// When it goes if no job comes; never where it is at work, or is to stay.
    fn goes(&self) -> Option<Instant> {
        match self.keep_alive {
            KeepAlive::For(time) if self.is_idle() => self.used.checked_add(time),
            _ => None,
        }
    }

    /// Whether no job holds the worker or waits for it.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.worker) == 1 && self.worker.get().is_some_and(|worker| Arc::strong_count(worker) == 1)
    }
}

/// A job that waits for a model. The last to leave a slot without a worker takes the slot away.
struct Waiting<'a> {
    models: &'a Models,
    model: &'a ModelRef,
    slot: Slot,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut slots = self.models.slots();
        let own = slots.get(self.model).is_some_and(|slot| Arc::ptr_eq(&slot.worker, &self.slot.worker));
        // The table's and this one.
        if own && !self.slot.worker.initialized() && Arc::strong_count(&self.slot.worker) == 2 {
            slots.remove(self.model);
        }
    }
}

impl Models {
    /// No models yet.
    pub fn new(config: &JobsConfig, machine_memory_bytes: Option<u64>, fetch: Fetcher, usage: Ledger) -> Self {
        accel_backends::cpu::bound_heap();
        let threads = if config.threads == 0 {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        } else {
            config.threads
        };
        // Where the machine does not say how much memory it has, only the configuration bounds it.
        let budget_bytes = match (config.memory_bytes, machine_memory_bytes) {
            (0, Some(machine)) => machine / 4 * 3,
            (0, None) => u64::MAX,
            (configured, _) => configured,
        };
        let options = LoadOptions {
            threads,
            context_tokens: (config.context_tokens > 0).then_some(config.context_tokens),
            memory_bytes: Some(budget_bytes),
        };
        let memory = Memory::new(budget_bytes);
        let coordinator = Coordinator::new(fetch.clone(), options, memory.clone(), config.serve, usage.clone());
        let Fetcher { store, swarm, options: fetch, .. } = fetch;
        let shared = Shared {
            store,
            swarm,
            options,
            fetch,
            memory,
            coordinator,
            usage,
            slots: Mutex::default(),
            leaving: Mutex::default(),
            keep_alive: KeepAlive::seconds(config.keep_alive_seconds),
            left: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Who has models run on several machines.
    pub fn coordinator(&self) -> &Coordinator {
        &self.shared.coordinator
    }

    /// What the experts of models were chosen for.
    pub fn usage(&self) -> &Ledger {
        &self.shared.usage
    }

    /// What weights take of the memory that is for them.
    pub fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.shared.options.threads
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<ModelRef, Slot>> {
        // Slots are inserted and removed whole, so a panic elsewhere leaves nothing half-done.
        self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while models leave memory, so that whoever needs it waits until it is free. Taken before the slots.
    fn leaving(&self) -> MutexGuard<'_, ()> {
        tokio::task::block_in_place(|| self.shared.leaving.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The models in memory.
    pub fn loaded(&self) -> Vec<ModelRef> {
        let ready = |slot: &Slot| slot.worker.get().is_some_and(|worker| worker.is_alive());
        self.slots().iter().filter(|(_, slot)| ready(slot)).map(|(model, _)| model.clone()).collect()
    }

    /// The models in memory, as people want to know them.
    pub fn in_memory(&self) -> Vec<Loaded> {
        let now = Instant::now();
        let slots = self.slots();
        let mut loaded: Vec<Loaded> = slots
            .iter()
            .filter_map(|(model, slot)| {
                let worker = slot.worker.get().filter(|worker| worker.is_alive())?;
                Some(Loaded {
                    model: model.clone(),
                    bytes: worker.memory_bytes(),
                    idle: now.saturating_duration_since(slot.used),
                    busy: !slot.is_idle(),
                    stays: slot.goes().map(|goes| goes.saturating_duration_since(now)),
                })
            })
            .collect();
        loaded.sort_by(|a, b| a.model.cmp(&b.model));
        loaded
    }

    /// Says how long a model that is in memory stays there without a job. Whether it is there.
    pub fn keep(&self, model: &ModelRef, keep_alive: KeepAlive) -> bool {
        let found = self.slots().get_mut(model).map(|slot| slot.keep_alive = keep_alive).is_some();
        self.shared.left.notify_one();
        found
    }

    /// Drops models whose time without a job is over.
    pub async fn drop_idle(&self) {
        loop {
            let next = {
                let _leaving = self.leaving();
                let mut slots = self.slots();
                let now = Instant::now();
                let over = |_: &ModelRef, slot: &mut Slot| slot.goes().is_some_and(|goes| goes <= now);
                let over: Vec<_> = slots.extract_if(over).collect();
                let next = slots.values().filter_map(Slot::goes).min();
                drop(slots);
                for (model, _) in over {
                    tracing::info!(%model, "model dropped from memory: no job came for it");
                }
                next
            };
            let notified = self.shared.left.notified();
            match next {
                Some(next) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(next.into()) => {}
                        () = notified => {}
                    }
                }
                None => notified.await,
            }
        }
    }

    /// The worker of `model`, fetched and loaded first if need be; `progress` hears how the fetch goes.
    ///
    /// # Errors
    /// When the model cannot be fetched, is no model, is not supported or does not fit.
    pub async fn worker(&self, model: &ModelRef, progress: impl Fn(JobEvent)) -> Result<InUse, JobError> {
        let slot = {
            let mut slots = self.slots();
            if slots.get(model).is_some_and(|slot| slot.worker.get().is_some_and(|worker| !worker.is_alive())) {
                slots.remove(model);
            }
            let slot = slots.entry(model.clone()).or_insert_with(|| Slot::new(self.shared.keep_alive));
            slot.used = Instant::now();
            slot.clone()
        };
        // Also when the job ends while it waits.
        let slot = Waiting { models: self, model, slot };
        let slot = &slot.slot;
        let mut heard = slot.progress.subscribe();
        let load = slot.worker.get_or_try_init(|| self.load(model, &slot.progress));
        tokio::pin!(load);
        loop {
            tokio::select! {
                result = &mut load => {
                    let worker = result?.clone();
                    let leaves = Leaves { models: self.clone(), model: model.clone() };
                    return Ok(InUse { worker, _leaves: leaves });
                }
                Ok(()) = heard.changed() => {
                    if let Some(event) = heard.borrow_and_update().clone() {
                        progress(event);
                    }
                }
            }
        }
    }

    async fn load(
        &self,
        model: &ModelRef,
        progress: &watch::Sender<Option<JobEvent>>,
    ) -> Result<Arc<Worker>, JobError> {
        let store = &self.shared.store;
        let providers = self.shared.swarm.providers(model).await;
        // What peers ask for is kept only once it has proven to be a model that runs here.
        let options = FetchOptions { providers, pin: false, ..self.shared.fetch.clone() };
        let fetch = |options, plans| {
            let check = move |files: &BlockFiles| self.check(model, files, plans);
            store.fetch_checked(&model.cid, options, check, |now: &FetchProgress| {
                let event = JobEvent::Fetching {
                    done_bytes: now.fetched_bytes,
                    total_bytes: now.fetched_bytes + now.missing_bytes,
                    peers: u32::try_from(now.peers).unwrap_or(u32::MAX),
                };
                progress.send_replace(Some(event));
            })
        };
        let report = match fetch(options.clone(), true).await {
            Err(Stopped::ToPlan(known)) => {
                let plan = self.shared.coordinator.plan_as_shown(model, &known, self.idle_bytes()).await?;
                if plan.way().is_none_or(|way| way.split != Split::Solo) {
                    return self.load_spread(model, *known, plan, progress).await;
                }
                tracing::info!(%model, why = plan.why, "a model runs on this machine alone");
                fetch(options, false).await?
            }
            report => report?,
        };
        if report.fetched_bytes > 0 {
            let event = JobEvent::Fetched {
                bytes: report.fetched_bytes,
                // What came by bitswap is nobody's in particular.
                peers: u32::try_from(
                    report.sources.iter().filter(|share| share.source != Source::Bitswap).count().max(1),
                )
                .unwrap_or(u32::MAX),
                elapsed_ms: Duration::from_secs_f64(report.seconds).as_millis().try_into().unwrap_or(u64::MAX),
            };
            progress.send_replace(Some(event));
        }
        let (pipeline, memory) = match self.load_files(model).await {
            Ok(loaded) => loaded,
            Err(error) => {
                if let Err(error) = store.free_unpinned(model.cid).await {
                    tracing::warn!(%model, %error, "what is no model here was not freed; garbage collection will");
                }
                return Err(error);
            }
        };
        store.keep(report.root).await?;
        self.start(model, pipeline, memory).await
    }

    /// Loads a model of which others hold a part.
    async fn load_spread(
        &self,
        model: &ModelRef,
        known: Known,
        plan: Plan,
        progress: &watch::Sender<Option<JobEvent>>,
    ) -> Result<Arc<Worker>, JobError> {
        tracing::info!(%model, why = plan.why, "a model is spread over several machines");
        let own = plan.way().and_then(|way| way.members.first());
        let own = own.map_or(0, |own| known.own_bytes(&own.share));
        let memory = self.make_room(own)?;
        let pipeline = self.shared.coordinator.load(model, known, &plan, self, progress).await?;
        self.start(model, pipeline, memory).await
    }

    /// Whether files are a model, and one that may fit, by what their first blocks say; one that may run better on several
    /// machines is to be planned first.
    fn check(&self, model: &ModelRef, files: &BlockFiles, plans: bool) -> Result<(), Stopped> {
        // A part of something larger is looked at when it is opened.
        if !model.path.is_empty() {
            return Ok(());
        }
        let (kind, bytes, budget) = (files.kind()?, files.bytes(), self.shared.memory.budget_bytes());
        if !matches!(kind, RootKind::Gguf | RootKind::HuggingFace) {
            let words = format!("{model} is a {kind}; expected a GGUF file or a Hugging Face directory");
            return Err(JobError::new(ErrorCode::ModelInvalid, words).into());
        }
        // What cannot be looked at is told of when it is loaded.
        let wished = self.shared.coordinator.has_wish(model);
        if plans
            && let Ok(known) = Known::of(files.clone())
            && known.can_be_spread()
            && (known.has_experts() || wished || bytes > budget)
        {
            return Err(Stopped::ToPlan(Box::new(known)));
        }
        if bytes > budget {
            let words = format!("the model has {bytes} bytes, and this node gives models {budget} (jobs.memory_bytes)");
            return Err(JobError::new(ErrorCode::OutOfResources, words).into());
        }
        Ok(())
    }

    async fn load_files(&self, model: &ModelRef) -> Result<(Box<dyn Pipeline>, Reserved), JobError> {
        let path = (!model.path.is_empty()).then_some(model.path.as_str());
        let files = self.shared.store.open(&model.cid, path).await?;
        let memory = self.make_room(files.bytes())?;
        let options = self.shared.options;
        let load = tokio::task::spawn_blocking(move || accel_pipelines::load(Arc::new(files), &options));
        let broke_off = |error| JobError::new(ErrorCode::Internal, format!("loading the model broke off: {error}"));
        Ok((load.await.map_err(broke_off)??, memory))
    }

    /// Starts the thread of a model.
    async fn start(
        &self,
        model: &ModelRef,
        pipeline: Box<dyn Pipeline>,
        memory: Reserved,
    ) -> Result<Arc<Worker>, JobError> {
        let recording = match pipeline.expert_usage() {
            Some(usage) => {
                let (ledger, model) = (self.shared.usage.clone(), model.clone());
                let begin = tokio::task::spawn_blocking(move || ledger.begin(&model, usage));
                let broke_off = |error| JobError::new(ErrorCode::Internal, format!("reading usage broke off: {error}"));
                Some(begin.await.map_err(broke_off)?)
            }
            None => None,
        };
        let worker = Worker::start(pipeline, memory, recording)
            .map_err(|error| JobError::new(ErrorCode::OutOfResources, format!("no thread for the model: {error}")))?;
        tracing::info!(%model, arithmetic = %worker.arithmetic().0, bytes = worker.memory_bytes(), "model loaded");
        Ok(Arc::new(worker))
    }

    /// Memory of models that nobody uses.
    pub fn idle_bytes(&self) -> u64 {
        let slots = self.slots();
        let idle = slots.values().filter(|slot| slot.is_idle());
        idle.filter_map(|slot| slot.worker.get()).map(|worker| worker.memory_bytes()).sum()
    }

    /// Drops a model that nobody uses from memory, so that it is loaded anew, perhaps in another way. Whether it is gone.
    pub fn unload(&self, model: &ModelRef) -> bool {
        let _leaving = self.leaving();
        let mut slots = self.slots();
        let idle = slots.get(model).is_some_and(Slot::is_idle).then(|| slots.remove(model));
        let gone = !slots.contains_key(model);
        drop(slots);
        drop(idle);
        gone
    }

    /// Takes memory; idle models are dropped for it, least recently used first.
    pub fn make_room(&self, bytes: u64) -> Result<Reserved, JobError> {
        // Who has room waits for nobody.
        if let Some(reserved) = self.shared.memory.reserve(bytes) {
            return Ok(reserved);
        }
        let _leaving = self.leaving();
        loop {
            if let Some(reserved) = self.shared.memory.reserve(bytes) {
                return Ok(reserved);
            }
            let mut slots = self.slots();
            let oldest = slots.iter().filter(|(_, slot)| slot.is_idle()).min_by_key(|(_, slot)| slot.used);
            let oldest = oldest.map(|(model, _)| model.clone()).and_then(|model| slots.remove_entry(&model));
            drop(slots);
            let Some((model, slot)) = oldest else {
                let (used, budget) = (self.shared.memory.used_bytes(), self.shared.memory.budget_bytes());
                return Err(JobError::new(
                    ErrorCode::OutOfResources,
                    format!(
                        "the model needs {bytes} bytes of memory; {used} of {budget} are in use by models at work \
                         (jobs.memory_bytes)"
                    ),
                ));
            };
            tracing::info!(%model, "model dropped from memory to make room");
            drop(slot);
        }
    }
}

/// Why a fetch went no further than a model's headers.
enum Stopped {
    Because(JobError),
    ToPlan(Box<Known>),
}

impl From<JobError> for Stopped {
    fn from(error: JobError) -> Self {
        Self::Because(error)
    }
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Because(error.into())
    }
}

impl From<Stopped> for JobError {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Because(error) => error,
            Stopped::ToPlan(_) => Self::new(ErrorCode::Internal, "a model was to be planned twice"),
        }
    }
}
