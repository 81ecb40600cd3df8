//! All ways to run a model: answers, bytes and speed.

use std::path::Path;

use accel_node::api::{PredictionView, Split};
use accel_protocol::Task;
use accel_tests::seeded::Kind;
use accel_tests::shard::{Answer, Swarm};
use anyhow::{Context, Result};
use serde::Serialize;

use crate::{Arguments, PROMPT, Report, median, same};

/// What may come beside the bytes of a share: directories, inner nodes, headers and the configuration.
const BESIDE: f64 = 1.02;
/// How, on how many nodes, and whether with no expert on the first.
const WAYS: [(Split, usize, bool); 8] = [
    (Split::Experts, 2, false),
    (Split::Experts, 3, false),
    (Split::Experts, 4, false),
    (Split::Experts, 4, true),
    (Split::Stages, 2, false),
    (Split::Stages, 3, false),
    (Split::Stages, 4, false),
    (Split::Both, 4, false),
];

/// One way to run one model.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub model: String,
    /// Whether its weights are from a seed.
    pub seeded: bool,
    split: Split,
    pub nodes: usize,
    pub experts_elsewhere: bool,
    pub identical: bool,
    pub tokens_per_second: f64,
    /// One node alone, in turn with that.
    pub alone_tokens_per_second: f64,
    pub predicted_tokens_per_second: f64,
    /// What that is made of.
    predicted: PredictionView,
    pub predicted_alone_tokens_per_second: f64,
    prompt_ms: f64,
    alone_prompt_ms: f64,
    /// Round trips of each token in each layer with experts, from the first node.
    round_trips_per_layer: Option<f64>,
    pub nodes_bytes: Vec<NodeBytes>,
}

/// What a node fetched for its first answer.
#[derive(Debug, Serialize)]
pub struct NodeBytes {
    share_bytes: u64,
    stored_bytes: u64,
    pub within: bool,
}

/// A model, and what has to be known of it.
struct Model<'a> {
    name: String,
    kind: Option<Kind>,
    file: Option<&'a Path>,
}

pub async fn of_kind(kind: Kind, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let model = Model { name: format!("{kind:?}"), kind: Some(kind), file: None };
    measure(&model, arguments, report).await
}

pub async fn of_file(file: &Path, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    measure(&Model { name, kind: None, file: Some(file) }, arguments, report).await
}

async fn start(model: &Model<'_>, arguments: &Arguments, nodes: usize) -> Result<Swarm> {
    match (model.kind, model.file) {
        (Some(kind), _) => Swarm::start(kind, arguments.large(), nodes).await,
        (None, Some(file)) => Swarm::start_with(file.canonicalize()?, Task::TextGeneration, nodes).await,
        (None, None) => anyhow::bail!("no model"),
    }
}

async fn measure(model: &Model<'_>, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut first: Option<Answer> = None;
    let wanted = |(split, nodes, _): &&(Split, usize, bool)| {
        arguments.wants(*split) && arguments.wants_on(*nodes) && (model.kind.is_some() || *split == Split::Stages)
    };
    for &(split, nodes, elsewhere) in WAYS.iter().filter(wanted) {
        // New nodes have nothing on their disks yet.
        let swarm = start(model, arguments, nodes).await?;
        let body = swarm.body(PROMPT, arguments.tokens, 1);
        let (_, way) = swarm.plan(split, nodes, elsewhere).await?;
        let spread = swarm.ask(&body).await?;
        let mut nodes_bytes = Vec::new();
        for member in &way.members {
            let stored_bytes = swarm.stored_bytes(member).await?;
            let within = stored_bytes as f64 <= member.bytes as f64 * BESIDE;
            nodes_bytes.push(NodeBytes { share_bytes: member.bytes, stored_bytes, within });
        }
        let mut identical = first.as_ref().is_none_or(|first| first.equals(&spread));
        let (mut here, mut there) = (Speeds::default(), Speeds::default());
        let (mut predicted, mut predicted_alone, mut round_trips) = (None, 0.0, None);
        for _ in 0..arguments.rounds {
            // With several nodes and with one in turn, each once to load and once to be measured.
            for turn in [split, Split::Solo] {
                let count = if turn == Split::Solo { 1 } else { nodes };
                let (_, way) = swarm.plan(turn, count, elsewhere && turn != Split::Solo).await?;
                let prediction = way.prediction.context("no prediction")?;
                identical &= swarm.ask(&body).await?.equals(&spread);
                let before = swarm.spread().await.map_or(0, |spread| spread.rounds);
                let again = swarm.ask(&body).await?;
                identical &= again.equals(&spread);
                if turn == Split::Solo {
                    predicted_alone = prediction.tokens_per_second;
                    here.add(&again);
                    continue;
                }
                predicted = Some(prediction);
                there.add(&again);
                if let (Some(kind), Split::Experts) = (model.kind, split) {
                    let mixtures = kind.mixtures(arguments.large()) as f64;
                    let rounds = (swarm.spread().await?.rounds - before) as f64;
                    // The encoder's layers read the prompt once.
                    let encoder = if kind == Kind::Switch { mixtures } else { 0.0 };
                    round_trips = Some((rounds - encoder) / f64::from(arguments.tokens) / mixtures);
                }
            }
        }
        let predicted = predicted.context("no round")?;
        let way = Figures {
            model: model.name.clone(),
            seeded: model.kind.is_some(),
            split,
            nodes,
            experts_elsewhere: elsewhere,
            identical,
            tokens_per_second: there.tokens_per_second(),
            alone_tokens_per_second: here.tokens_per_second(),
            predicted_tokens_per_second: predicted.tokens_per_second,
            predicted,
            predicted_alone_tokens_per_second: predicted_alone,
            prompt_ms: there.prompt_ms(),
            alone_prompt_ms: here.prompt_ms(),
            round_trips_per_layer: round_trips,
            nodes_bytes,
        };
        if !arguments.json {
            show(&way);
        }
        report.ways.push(way);
        first.get_or_insert(spread);
        swarm.stop().await?;
    }
    Ok(())
}

/// Speeds of several answers.
#[derive(Default)]
struct Speeds {
    tokens_per_second: Vec<f64>,
    prompt_ms: Vec<f64>,
}

impl Speeds {
    fn add(&mut self, answer: &Answer) {
        self.tokens_per_second.push(answer.tokens_per_second());
        self.prompt_ms.push(answer.usage.prefill_ms);
    }

    fn tokens_per_second(&self) -> f64 {
        median(&self.tokens_per_second)
    }

    fn prompt_ms(&self) -> f64 {
        median(&self.prompt_ms)
    }
}

fn show(way: &Figures) {
    let bytes = way.nodes_bytes.iter().map(|node| {
        let (stored, share) = (node.stored_bytes as f64 / 1e6, node.share_bytes as f64 / 1e6);
        format!("{stored:.1} of {share:.1} MB{}", if node.within { "" } else { " TOO MANY" })
    });
    let trips = way.round_trips_per_layer.map(|trips| format!(", {trips:.2} round trips a layer"));
    println!(
        "{} by {:?} on {} nodes{}: {}, {:.1} tokens/s (predicted {:.1}: here {:.1} ms, waiting {:.1} ms, \
         on the way {:.1} ms in {:.0}), alone {:.1} (predicted {:.1}), prompt {:.0} ms, \
         alone {:.0} ms{}, fetched {}",
        way.model,
        way.split,
        way.nodes,
        if way.experts_elsewhere { ", no expert on the first" } else { "" },
        same(way.identical),
        way.tokens_per_second,
        way.predicted_tokens_per_second,
        way.predicted.here_ms,
        way.predicted.elsewhere_ms,
        way.predicted.round_trips_ms,
        way.predicted.round_trips,
        way.alone_tokens_per_second,
        way.predicted_alone_tokens_per_second,
        way.prompt_ms,
        way.alone_prompt_ms,
        trips.unwrap_or_default(),
        bytes.collect::<Vec<_>>().join(", "),
    );
}
