//! Models over several nodes: what is asked of them, what they answer, and what happened meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use accel_node::api::{JobBody, MemberView, PlanBody, PlanView, Split, SpreadView, WayView};
use accel_node::process::NodeProcess;
use accel_protocol::{Generation, Input, JobEvent, ModelRef, Task, TaskOptions, Usage};
use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, events, eventually, import, tcp, text, tokens};
use crate::distance::Distance;
use crate::seeded::{Kind, Size, prompt};

/// A swarm of nodes that compute with one thread each, and one that only has the model.
#[derive(Debug)]
pub struct Swarm {
    cluster: Cluster,
    /// Has the model and runs nothing.
    pub provider: NodeProcess,
    /// Run models; the first is asked.
    pub nodes: Vec<NodeProcess>,
    /// The model.
    pub model: ModelRef,
    /// What it is asked for, and whether its tokens are told one by one with their probabilities.
    task: Task,
    started: usize,
}

/// An answer and how it came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its tokens, where the task tells them, and its text.
    pub tokens: Vec<u32>,
    /// The text.
    pub text: String,
    /// The bits of the logarithms of the likeliest tokens' probabilities, token after token.
    pub logprobs: Vec<(u32, u32)>,
    /// What it took.
    pub usage: Usage,
}

impl Answer {
    /// Whether it is the same, bit by bit.
    pub fn equals(&self, other: &Self) -> bool {
        (&self.tokens, &self.text, &self.logprobs) == (&other.tokens, &other.text, &other.logprobs)
    }

    /// Tokens a second: once it had begun where its tokens are told one by one, and otherwise from the question on.
    pub fn tokens_per_second(&self) -> f64 {
        let tokens = f64::from(self.usage.completion_tokens);
        match self.logprobs.is_empty() {
            false => (tokens - 1.0) / self.usage.decode_ms * 1e3,
            true => tokens / (self.usage.prefill_ms + self.usage.decode_ms) * 1e3,
        }
    }
}

impl Swarm {
    /// Writes a model and starts so many nodes.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start(kind: Kind, size: Size, nodes: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        kind.write(directory.path(), size, 7)?;
        let task = if kind == Kind::Switch { Task::Translation } else { Task::TextGeneration };
        Self::start_with(directory.path().to_owned(), task, nodes).await
    }

    /// Starts so many nodes for a model's file or directory.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start_with(path: PathBuf, task: Task, nodes: usize) -> Result<Self> {
        let cluster = Cluster::new()?;
        let provider = cluster.start("provider", false, &[]).await?;
        let model = import(&provider, path).await?;
        let mut swarm = Self { cluster, provider, nodes: Vec::new(), model, task, started: 0 };
        for _ in 0..nodes {
            swarm.start_node().await?;
        }
        Ok(swarm)
    }

    /// Writes a model and starts a node, and others at a distance from it, which it knows by no other way.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start_apart(kind: Kind, size: Size, round_trips: &[Duration]) -> Result<(Self, Vec<Distance>)> {
        let mut swarm = Self::start(kind, size, 0).await?;
        let own = swarm.start_alone().await?;
        let mut distances = Vec::new();
        for round_trip in round_trips {
            let node = swarm.start_alone().await?;
            let direct = tcp(&node)?;
            let port = direct.split('/').nth(4).and_then(|port| port.parse::<u16>().ok()).context("no port")?;
            let distance = Distance::to(([127, 0, 0, 1], port).into(), *round_trip)?;
            // Nodes that are connected look for no other way.
            let far = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", distance.address().port(), node.peer());
            own.api().connect(&far).await?;
            distances.push(distance);
            swarm.nodes.push(node);
        }
        swarm.nodes.insert(0, own);
        for node in &swarm.nodes {
            node.api().connect(tcp(&swarm.provider)?).await?;
        }
        let expected = round_trips.len();
        eventually("the first node knows the others and how far away they are", async || {
            let peers = swarm.nodes[0].api().peers().await?;
            let provider = swarm.provider.peer();
            let others = peers.iter().filter(|peer| peer.advert.is_some() && peer.round_trip_ms.is_some());
            Ok(others.filter(|peer| peer.connected && peer.peer != provider).count() >= expected)
        })
        .await?;
        Ok((swarm, distances))
    }

    async fn start_alone(&mut self) -> Result<NodeProcess> {
        self.started += 1;
        let mut settings = self.cluster.settings(&format!("node-{}", self.started), true, &[]);
        settings.arguments = vec!["--threads".to_owned(), "1".to_owned()];
        Ok(NodeProcess::start(&settings).await?)
    }

    /// Starts one more node, which waits until all know each other.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_node(&mut self) -> Result<&NodeProcess> {
        self.start_node_with(&[]).await
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_node_with(&mut self, arguments: &[&str]) -> Result<&NodeProcess> {
        self.started += 1;
        let join: Vec<&NodeProcess> = std::iter::once(&self.provider).chain(&self.nodes).collect();
        let mut settings = self.cluster.settings(&format!("node-{}", self.started), true, &join);
        settings.arguments =
            ["--threads", "1"].iter().chain(arguments).map(|argument| (*argument).to_owned()).collect();
        let node = NodeProcess::start(&settings).await?;
        let expected = join.len();
        eventually("the nodes know each other", async || {
            let peers = node.api().peers().await?;
            Ok(peers.iter().filter(|peer| peer.connected && peer.advert.is_some()).count() >= expected)
        })
        .await?;
        let others: Vec<_> = self.nodes.iter().map(|other| (other, node.peer())).collect();
        for (other, peer) in others {
            eventually("the nodes know the new one", async || {
                let peers = other.api().peers().await?;
                Ok(peers.iter().any(|known| known.peer == peer && known.connected && known.advert.is_some()))
            })
            .await?;
        }
        self.nodes.push(node);
        self.nodes.last().context("it was started")
    }

    /// Plans the model on the first node with the others up to `count` in all, to run so from now on.
    ///
    /// # Errors
    /// When the plan is not possible.
    pub async fn plan(&self, split: Split, count: usize, elsewhere: bool) -> Result<(PlanView, WayView)> {
        let own = &self.nodes[0];
        let peers = self.nodes[1..count].iter().map(|node| node.peer().to_owned()).collect();
        let body = PlanBody { split, peers, experts_elsewhere: elsewhere, keep: true };
        // A job that has just ended may still hold the model for a moment.
        eventually("the model is at rest", async || match own.api().plan(&self.model, &body).await {
            Ok(_) => Ok(true),
            Err(error) if error.to_string().contains("is at work") => Ok(false),
            Err(error) => Err(error.into()),
        })
        .await?;
        let plan = own.api().plan(&self.model, &body).await?;
        let way = plan.chosen.and_then(|chosen| plan.ways.get(chosen).cloned());
        let way = way.with_context(|| format!("no way to run it: {}", plan.why))?;
        ensure!(way.split == split && way.members.len() == count, "another way was chosen: {}", plan.why);
        Ok((plan, way))
    }

    /// What is asked.
    pub fn body(&self, prompt_tokens: usize, tokens: u32, seed: u64) -> JobBody {
        let generation = Generation {
            max_tokens: tokens,
            ignore_eos: true,
            logprobs: (self.task == Task::TextGeneration).then_some(20),
            ..Generation::default()
        };
        JobBody {
            id: None,
            model: self.model.clone(),
            task: self.task,
            input: Input::Text(prompt(prompt_tokens, seed)),
            generation,
            options: TaskOptions::default(),
            deadline_ms: 600_000,
            peer: None,
        }
    }

    /// Asks the first node.
    ///
    /// # Errors
    /// When the job fails.
    pub async fn ask(&self, body: &JobBody) -> Result<Answer> {
        answer(&events(self.nodes[0].api(), body).await?)
    }

    /// How the model is spread at work on the first node.
    ///
    /// # Errors
    /// When it is not.
    pub async fn spread(&self) -> Result<SpreadView> {
        let all = self.nodes[0].api().spread().await?;
        all.into_iter().next().context("no model is spread")
    }

    /// Bytes of blocks of a node that takes part.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn stored_bytes(&self, member: &MemberView) -> Result<u64> {
        let is_it = |node: &&NodeProcess| member.peer.as_deref().is_none_or(|peer| node.peer() == peer);
        let node = self.nodes.iter().find(is_it).context("a node that is not ours takes part")?;
        Ok(node.api().node().await?.used_bytes)
    }

    /// What the nodes run in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A directory for scratch files.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.cluster.path(name)
    }

    /// Stops all nodes.
    ///
    /// # Errors
    /// When one does not stop in order.
    pub async fn stop(self) -> Result<()> {
        for node in self.nodes.into_iter().chain([self.provider]) {
            node.stop().await?;
        }
        Ok(())
    }
}

/// The answer that a job's events give.
///
/// # Errors
/// When the job failed.
pub fn answer(events: &[JobEvent]) -> Result<Answer> {
    let usage = events.iter().find_map(|event| match event {
        JobEvent::Done { usage, .. } => Some(*usage),
        _ => None,
    });
    let usage = usage.with_context(|| format!("the job failed: {:?}", events.last()))?;
    let logprobs = events.iter().filter_map(|event| match event {
        JobEvent::Token { logprob: Some(logprob), .. } => Some(&logprob.top),
        _ => None,
    });
    let logprobs = logprobs.flatten().map(|(id, _, logprob)| (*id, logprob.to_bits())).collect();
    Ok(Answer { tokens: tokens(events), text: text(events), logprobs, usage })
}
