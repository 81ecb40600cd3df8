//! What this node measures of itself, for Prometheus.
//!
//! What vLLM measures has vLLM's name, with `accel_` in front. No label names a peer, a model or a person, so that the
//! number of series stays small and tells nobody who asked what.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use accel_protocol::{FinishReason, JobState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::jobs::{Job, Owner};

/// Upper ends of the ranges that times are counted in, in seconds: from a token of a small model to a long job.
const SECONDS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// The measurements of a node. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Route, Counter>,
    ended: Family<Ended, Counter>,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    first_token: Histogram,
    per_token: Histogram,
    whole: Histogram,
    prefill: Histogram,
    decode: Histogram,
    now: Now,
}

/// What is as it is at the moment of asking.
#[derive(Clone, Debug, Default)]
struct Now {
    running: Gauge,
    waiting: Gauge,
    peers: Gauge,
    models: Gauge,
    memory_used: Gauge<u64, AtomicU64>,
    /// Infinite where nothing bounds it.
    memory_budget: Gauge<f64, AtomicU64>,
    store_used: Gauge<u64, AtomicU64>,
    store_quota: Gauge<u64, AtomicU64>,
}

/// How things stand when somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// Jobs at work here.
    pub running: u32,
    /// Jobs that wait here.
    pub waiting: u32,
    /// Peers with an open connection.
    pub peers: usize,
    /// Models in memory.
    pub models: usize,
    /// Bytes of memory that weights take.
    pub memory_used_bytes: u64,
    /// Bytes of memory that they may take; none where nothing bounds it.
    pub memory_budget_bytes: Option<u64>,
    /// Bytes of blocks on disk.
    pub store_used_bytes: u64,
    /// Bytes of blocks that may be.
    pub store_quota_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    /// Whether the job came from this node's own users or from a peer.
    origin: &'static str,
    finished_reason: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(SECONDS);
        let metrics = Self {
            registry: Arc::default(),
            requests: Family::default(),
            ended: Family::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            first_token: seconds(),
            per_token: seconds(),
            whole: seconds(),
            prefill: seconds(),
            decode: seconds(),
            now: Now::default(),
        };
        let mut registry = Registry::with_prefix("accel");
        let now = &metrics.now;
        registry.register("num_requests_running", "Jobs that this node works on", now.running.clone());
        registry.register("num_requests_waiting", "Jobs that wait for a place on this node", now.waiting.clone());
        registry.register("peers_connected", "Peers with an open connection", now.peers.clone());
        registry.register("models_loaded", "Models in memory", now.models.clone());
        let bytes = || Unit::Bytes;
        let mut of_bytes = |name: &str, help: &str, gauge: &Gauge<u64, AtomicU64>| {
            registry.register_with_unit(name, help, bytes(), gauge.clone());
        };
        of_bytes("memory_used", "Memory that weights take", &now.memory_used);
        of_bytes("store_used", "Disk that blocks take", &now.store_used);
        of_bytes("store_quota", "Disk that blocks may take", &now.store_quota);
        let budget = now.memory_budget.clone();
        registry.register_with_unit("memory_budget", "Memory that weights may take", bytes(), budget);
        let counters = [
            ("prompt_tokens", "Tokens of prompts of jobs that are done", &metrics.prompt_tokens),
            ("generation_tokens", "Tokens of answers of jobs that are done", &metrics.generation_tokens),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("request_success", "Jobs that have ended, by whose they were and how", metrics.ended.clone());
        registry.register("http_requests", "Requests to the interface of programs", metrics.requests.clone());
        let times = [
            ("time_to_first_token", "From a job's acceptance to its first token", &metrics.first_token),
            ("request_time_per_output_token", "Time of each token of an answer but the first", &metrics.per_token),
            ("e2e_request_latency", "From a job's acceptance to its end", &metrics.whole),
            ("request_prefill_time", "Reading of a prompt", &metrics.prefill),
            ("request_decode_time", "Writing of an answer", &metrics.decode),
        ];
        for (name, help, histogram) in times {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        Self { registry: Arc::new(registry), ..metrics }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn answered(&self, route: &str, status: u16) {
        self.requests.get_or_create(&Route { route: route.to_owned(), status }).inc();
    }

    /// A job has ended.
    pub fn ended(&self, job: &Job) {
        let origin = if job.owner == Owner::Local { "local" } else { "peer" };
        let done = job.log.done();
        let finished_reason = match (job.log.state(), done.map(|(reason, _)| reason)) {
            (JobState::Done, Some(FinishReason::Length)) => "length",
            (JobState::Done, _) => "stop",
            (JobState::Cancelled, _) => "abort",
            _ => "error",
        };
        self.ended.get_or_create(&Ended { origin, finished_reason }).inc();
        let Some((_, usage)) = done else { return };
        let since = |moment: Instant| moment.duration_since(job.accepted()).as_secs_f64();
        self.prompt_tokens.inc_by(usage.prompt_tokens.into());
        self.generation_tokens.inc_by(usage.completion_tokens.into());
        self.prefill.observe(usage.prefill_ms / 1e3);
        self.decode.observe(usage.decode_ms / 1e3);
        let (first, end) = (job.log.first_token().map(since), job.log.ended().map(since));
        if let Some(end) = end {
            self.whole.observe(end);
        }
        if let Some(first) = first {
            self.first_token.observe(first);
            if let Some(end) = end.filter(|_| usage.completion_tokens > 1) {
                self.per_token.observe((end - first) / f64::from(usage.completion_tokens - 1));
            }
        }
    }

    /// All of it, in the text that Prometheus reads.
    ///
    /// # Errors
    /// When it cannot be written as text.
    pub fn text(&self, state: State) -> Result<String, std::fmt::Error> {
        let now = &self.now;
        now.running.set(state.running.into());
        now.waiting.set(state.waiting.into());
        now.peers.set(i64::try_from(state.peers).unwrap_or(i64::MAX));
        now.models.set(i64::try_from(state.models).unwrap_or(i64::MAX));
        now.memory_used.set(state.memory_used_bytes);
        now.memory_budget.set(state.memory_budget_bytes.map_or(f64::INFINITY, |bytes| bytes as f64));
        now.store_used.set(state.store_used_bytes);
        now.store_quota.set(state.store_quota_bytes);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
