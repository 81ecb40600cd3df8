//! Loaded models: each is fetched and loaded once however many jobs ask, and dropped, least recently used first, when
//! another needs its memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel_pipelines::LoadOptions;
use accel_protocol::{ErrorCode, JobError, JobEvent, ModelRef};
use tokio::sync::{OnceCell, watch};

use super::worker::Worker;
use crate::config::JobsConfig;
use crate::store::{FetchOptions, FetchProgress, Store};
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
        self.slots().iter().filter(|(_, slot)| slot.worker.initialized()).map(|(model, _)| model.clone()).collect()
    }

    /// The worker of `model`, fetched and loaded first if need be; `progress` hears how the fetch goes.
    ///
    /// # Errors
    /// When the model cannot be fetched, is no model, is not supported or does not fit.
    pub async fn worker(&self, model: &ModelRef, progress: impl Fn(JobEvent)) -> Result<Arc<Worker>, JobError> {
        let slot = {
            let mut slots = self.slots();
            let slot = slots.entry(model.clone()).or_insert_with(Slot::new);
            slot.used = Instant::now();
            slot.clone()
        };
        let mut heard = slot.progress.subscribe();
        let load = slot.worker.get_or_try_init(|| self.load(model, &slot.progress));
        tokio::pin!(load);
        let result = loop {
            tokio::select! {
                result = &mut load => break result.cloned(),
                Ok(()) = heard.changed() => {
                    if let Some(event) = heard.borrow_and_update().clone() {
                        progress(event);
                    }
                }
            }
        };
        if result.is_err() {
            let mut slots = self.slots();
            if slots.get(model).is_some_and(|slot| !slot.worker.initialized()) {
                slots.remove(model);
            }
        }
        result
    }

    async fn load(
        &self,
        model: &ModelRef,
        progress: &watch::Sender<Option<JobEvent>>,
    ) -> Result<Arc<Worker>, JobError> {
        let store = &self.shared.store;
        let providers = self.shared.swarm.providers(model).await;
        let options = FetchOptions { providers, ..self.shared.fetch.clone() };
        let report = store
            .fetch(&model.cid, options, |now: &FetchProgress| {
                let event = JobEvent::Fetching {
                    done_bytes: now.fetched_bytes,
                    total_bytes: now.fetched_bytes + now.missing_bytes,
                    peers: u32::try_from(now.peers).unwrap_or(u32::MAX),
                };
                progress.send_replace(Some(event));
            })
            .await
            .map_err(JobError::from)?;
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
        let path = (!model.path.is_empty()).then_some(model.path.as_str());
        let files = store.open(&model.cid, path).await.map_err(JobError::from)?;
        self.make_room(files.bytes())?;
        let options = self.shared.options;
        let load = tokio::task::spawn_blocking(move || accel_pipelines::load(Arc::new(files), &options));
        let pipeline = load
            .await
            .map_err(|error| JobError::new(ErrorCode::Internal, format!("loading the model broke off: {error}")))?
            .map_err(JobError::from)?;
        let worker = Worker::start(pipeline)
            .map_err(|error| JobError::new(ErrorCode::OutOfResources, format!("no thread for the model: {error}")))?;
        tracing::info!(%model, arithmetic = %worker.arithmetic().0, bytes = worker.memory_bytes(), "model loaded");
        Ok(Arc::new(worker))
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
