//! Answers whose worker is killed on the way: they must be the answer that nobody disturbed.

use std::time::{Duration, Instant};

use accel_node::process::NodeProcess;
use accel_protocol::{EventRecord, Generation, JobEvent, JobId, ModelRef};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde::Serialize;

use crate::cluster::{Cluster, events, import, question, tokens};

/// Tokens of each answer.
pub const TOKENS: u32 = 256;
const PROMPT: &str = "Write a long story about a lighthouse keeper who finds a map.";

/// What happened to one answer.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// The token at which the worker was killed.
    pub killed_at: u32,
    /// Tokens that the other worker read back in, by the event log.
    pub moved_at: u32,
    /// Whether the answer is the undisturbed one, token by token.
    pub identical: bool,
    /// The longest time between two tokens, in milliseconds.
    pub longest_gap_ms: f64,
}

/// A swarm with a provider, two workers and a client; a worker that was killed is started again for the next round.
#[derive(Debug)]
pub struct Failover {
    cluster: Cluster,
    provider: NodeProcess,
    workers: Vec<NodeProcess>,
    client: NodeProcess,
    model: ModelRef,
    generation: Generation,
    undisturbed: Vec<u32>,
    started: usize,
}

impl Failover {
    /// Starts the swarm and takes the undisturbed answer.
    ///
    /// # Errors
    /// When a node does not start or the answer fails.
    pub async fn start(model: std::path::PathBuf, generation: Generation) -> Result<Self> {
        let cluster = Cluster::new()?;
        let provider = cluster.start("provider", false, &[]).await?;
        let model = import(&provider, model).await?;
        let client = cluster.start("client", false, &[&provider]).await?;
        let generation = Generation { max_tokens: TOKENS, ignore_eos: true, ..generation };
        let mut swarm = Self {
            cluster,
            provider,
            workers: Vec::new(),
            client,
            model,
            generation,
            undisturbed: Vec::new(),
            started: 0,
        };
        for _ in 0..2 {
            swarm.start_worker().await?;
        }
        let body = question(&swarm.model, PROMPT, swarm.generation.clone());
        swarm.undisturbed = tokens(&events(swarm.client.api(), &body).await?);
        ensure!(swarm.undisturbed.len() == TOKENS as usize, "{} tokens", swarm.undisturbed.len());
        Ok(swarm)
    }

    async fn start_worker(&mut self) -> Result<()> {
        self.started += 1;
        let name = format!("worker-{}", self.started);
        let worker = self.cluster.start(&name, true, &[&self.provider, &self.client]).await?;
        // It answers a short question first, so that the rounds measure failover and not the fetch.
        let generation = Generation { max_tokens: 4, ..Generation::default() };
        let mut warm = question(&self.model, "Hello.", generation);
        warm.peer = Some(worker.peer().to_owned());
        events(self.client.api(), &warm).await?;
        self.workers.push(worker);
        Ok(())
    }

    /// Has one answer disturbed after `kill_at` tokens.
    ///
    /// # Errors
    /// When the answer fails.
    pub async fn round(&mut self, kill_at: u32) -> Result<Round> {
        let mut body = question(&self.model, PROMPT, self.generation.clone());
        let id = JobId(rand::random());
        body.id = Some(id);
        let mut stream = self.client.api().submit(&body).await?;
        let (mut found, mut moved_at, mut longest, mut last) = (Vec::new(), None, Duration::ZERO, None::<Instant>);
        while let Some(record) = stream.next().await {
            let EventRecord { event, .. } = record?;
            match event {
                JobEvent::Token { id: token, .. } => {
                    let now = Instant::now();
                    longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
                    last = Some(now);
                    found.push(token);
                    if found.len() == kill_at as usize {
                        self.kill_worker_of(id).await?;
                    }
                }
                JobEvent::Moved { prior_tokens, exact, .. } => {
                    ensure!(exact, "the job moved to another arithmetic");
                    moved_at = Some(prior_tokens);
                }
                JobEvent::Failed { error } => anyhow::bail!("killed at {kill_at}: {error}"),
                _ => {}
            }
        }
        let moved_at = moved_at.with_context(|| format!("killed at {kill_at}, but the job did not move"))?;
        self.start_worker().await?;
        Ok(Round {
            killed_at: kill_at,
            moved_at,
            identical: found == self.undisturbed,
            longest_gap_ms: longest.as_secs_f64() * 1e3,
        })
    }

    async fn kill_worker_of(&mut self, job: JobId) -> Result<()> {
        let peer = self.client.api().job(job).await?.peer.context("the job runs on no peer")?;
        let place = self.workers.iter().position(|worker| worker.peer() == peer).context("an unknown worker")?;
        Ok(self.workers.swap_remove(place).kill().await?)
    }

    /// Stops all processes.
    ///
    /// # Errors
    /// When one does not stop in order.
    pub async fn stop(self) -> Result<()> {
        for node in self.workers.into_iter().chain([self.client, self.provider]) {
            node.stop().await?;
        }
        Ok(())
    }
}
