//! Loaded models: each is fetched and loaded once however many jobs ask, and dropped, least recently used first, when
//! another needs its memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel_pipelines::{LoadOptions, Pipeline};
use accel_protocol::{ErrorCode, JobError, JobEvent, ModelRef};
use tokio::sync::{OnceCell, watch};

use super::worker::Worker;
use crate::config::JobsConfig;
use crate::store::{BlockFiles, FetchOptions, FetchProgress, RootKind, Store};
use crate::swarm::Swarm;

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
    budget_bytes: u64,
    slots: Mutex<HashMap<ModelRef, Slot>>,
}

#[derive(Clone, Debug)]
struct Slot {
    worker: Arc<OnceCell<Arc<Worker>>>,
    progress: watch::Sender<Option<JobEvent>>,
    used: Instant,
}

impl Slot {
    fn new() -> Self {
        Self { worker: Arc::default(), progress: watch::Sender::new(None), used: Instant::now() }
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
    pub fn new(
        config: &JobsConfig,
        machine_memory_bytes: Option<u64>,
        store: Store,
        swarm: Swarm,
        fetch: FetchOptions,
    ) -> Self {
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
        Self { shared: Arc::new(Shared { store, swarm, options, fetch, budget_bytes, slots: Mutex::default() }) }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<ModelRef, Slot>> {
        // Slots are inserted and removed whole, so a panic elsewhere leaves nothing half-done.
        self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The models in memory.
    pub fn loaded(&self) -> Vec<ModelRef> {
        let ready = |slot: &Slot| slot.worker.get().is_some_and(|worker| worker.is_alive());
        self.slots().iter().filter(|(_, slot)| ready(slot)).map(|(model, _)| model.clone()).collect()
    }

    /// The worker of `model`, fetched and loaded first if need be; `progress` hears how the fetch goes.
    ///
    /// # Errors
    /// When the model cannot be fetched, is no model, is not supported or does not fit.
    pub async fn worker(&self, model: &ModelRef, progress: impl Fn(JobEvent)) -> Result<Arc<Worker>, JobError> {
        let slot = {
            let mut slots = self.slots();
            if slots.get(model).is_some_and(|slot| slot.worker.get().is_some_and(|worker| !worker.is_alive())) {
                slots.remove(model);
            }
            let slot = slots.entry(model.clone()).or_insert_with(Slot::new);
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
                result = &mut load => return result.cloned(),
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
        let check = |files: &BlockFiles| self.check(model, files);
        let report = store
            .fetch_checked(&model.cid, options, check, |now: &FetchProgress| {
                let event = JobEvent::Fetching {
                    done_bytes: now.fetched_bytes,
                    total_bytes: now.fetched_bytes + now.missing_bytes,
                    peers: u32::try_from(now.peers).unwrap_or(u32::MAX),
                };
                progress.send_replace(Some(event));
            })
            .await?;
        if report.fetched_bytes > 0 {
            let event = JobEvent::Fetched {
                bytes: report.fetched_bytes,
                // What came by bitswap is nobody's in particular.
                peers: u32::try_from(report.peers.iter().filter(|share| share.peer.is_some()).count().max(1))
                    .unwrap_or(u32::MAX),
                elapsed_ms: Duration::from_secs_f64(report.seconds).as_millis().try_into().unwrap_or(u64::MAX),
            };
            progress.send_replace(Some(event));
        }
        let pipeline = match self.load_files(model).await {
            Ok(pipeline) => pipeline,
            Err(error) => {
                if let Err(error) = store.free_unpinned(model.cid).await {
                    tracing::warn!(%model, %error, "what is no model here was not freed; garbage collection will");
                }
                return Err(error);
            }
        };
        store.keep(report.root).await?;
        let worker = Worker::start(pipeline)
            .map_err(|error| JobError::new(ErrorCode::OutOfResources, format!("no thread for the model: {error}")))?;
        tracing::info!(%model, arithmetic = %worker.arithmetic().0, bytes = worker.memory_bytes(), "model loaded");
        Ok(Arc::new(worker))
    }

    /// Whether files are a model, and one that may fit, by what their first blocks say.
    fn check(&self, model: &ModelRef, files: &BlockFiles) -> Result<(), JobError> {
        // A part of something larger is looked at when it is opened.
        if !model.path.is_empty() {
            return Ok(());
        }
        let (kind, bytes, budget) = (files.kind()?, files.bytes(), self.shared.budget_bytes);
        if !matches!(kind, RootKind::Gguf | RootKind::HuggingFace) {
            let words = format!("{model} is a {kind}; expected a GGUF file or a Hugging Face directory");
            return Err(JobError::new(ErrorCode::ModelInvalid, words));
        }
        if bytes > budget {
            let words = format!("the model has {bytes} bytes, and this node gives models {budget} (jobs.memory_bytes)");
            return Err(JobError::new(ErrorCode::OutOfResources, words));
        }
        Ok(())
    }

    async fn load_files(&self, model: &ModelRef) -> Result<Box<dyn Pipeline>, JobError> {
        let path = (!model.path.is_empty()).then_some(model.path.as_str());
        let files = self.shared.store.open(&model.cid, path).await?;
        self.make_room(files.bytes())?;
        let options = self.shared.options;
        let load = tokio::task::spawn_blocking(move || accel_pipelines::load(Arc::new(files), &options));
        let broke_off = |error| JobError::new(ErrorCode::Internal, format!("loading the model broke off: {error}"));
        Ok(load.await.map_err(broke_off)??)
    }

    /// Drops idle models, least recently used first, until `bytes` more fit the budget.
    fn make_room(&self, bytes: u64) -> Result<(), JobError> {
        let budget = self.shared.budget_bytes;
        let mut slots = self.slots();
        loop {
            let used: u64 =
                slots.values().filter_map(|slot| slot.worker.get()).map(|worker| worker.memory_bytes()).sum();
            if used.saturating_add(bytes) <= budget {
                return Ok(());
            }
            let oldest = slots.iter().filter(|(_, slot)| slot.is_idle()).min_by_key(|(_, slot)| slot.used);
            let Some(model) = oldest.map(|(model, _)| model.clone()) else {
                return Err(JobError::new(
                    ErrorCode::OutOfResources,
                    format!(
                        "the model needs {bytes} bytes of memory; {used} of {budget} are in use by models at work \
                         (jobs.memory_bytes)"
                    ),
                ));
            };
            tracing::info!(%model, "model dropped from memory to make room");
            slots.remove(&model);
        }
    }
}
