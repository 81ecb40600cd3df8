//! Runs models over several nodes, experts here and layers there, and reports whether the answers are those of one node,
//! what each node fetched, how fast it was and was said to be, what losses cost, and what distance costs:
//! `shard [--part PART] [--kind KIND] [--model FILE] [--json]`.

mod distance;
mod flow;
mod kills;
mod slow;
mod ways;

use std::path::PathBuf;
use std::time::Instant;

use accel_node::api::{JobBody, Split};
use accel_protocol::{EventRecord, JobEvent};
use accel_tests::seeded::{Kind, Size};
use accel_tests::shard::{Answer, Swarm, answer};
use anyhow::{Result, ensure};
use clap::Parser;
use futures::StreamExt;
use serde::Serialize;

/// What a node beside others must reach of what it reaches alone.
const WORTH: f64 = 0.7;
/// What two stages must reach of what both would if neither ever waited.
const OVERLAP: f64 = 0.85;
/// How much faster two stages must read two prompts.
const PREFILL: f64 = 1.6;
/// How far a prediction may be off.
const OFF: f64 = 0.2;
const PROMPT: usize = 64;

/// Run models over several nodes; every answer must be that of one node.
#[derive(Debug, Parser)]
struct Arguments {
    /// What is measured; everything where nothing is named
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// Kinds of models; all where none is named
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Ways to split them; all where none is named
    #[arg(long, value_enum)]
    split: Vec<Split>,
    /// Numbers of nodes in the ways to run a kind; all where none is named
    #[arg(long)]
    nodes: Vec<usize>,
    /// A model of one's own, a GGUF file or a Hugging Face directory, to be split by its layers
    #[arg(long)]
    model: Option<PathBuf>,
    /// Tokens of each answer
    #[arg(long, default_value_t = 48)]
    tokens: u32,
    /// Rounds of each speed, with one node and with several in turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Holders that are killed
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Small models, to see whether it works
    #[arg(long)]
    small: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Models that are loaded again and again.
    fn medium(&self) -> Size {
        if self.small { Size::SMALL } else { Size::MEDIUM }
    }

    fn large(&self) -> Size {
        if self.small { Size::SMALL } else { Size::LARGE }
    }

    fn wants(&self, split: Split) -> bool {
        self.split.is_empty() || self.split.contains(&split)
    }

    fn wants_on(&self, nodes: usize) -> bool {
        self.nodes.is_empty() || self.nodes.contains(&nodes)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Answers, bytes and speed, in all ways to run every kind
    Ways,
    /// Several answers and prompts at once through two stages
    Flow,
    /// Holders that are killed in the middle of answers
    Kills,
    /// A holder that becomes slow in the middle of an answer
    Slow,
    /// Holders at a distance
    Distance,
}

/// All figures.
#[derive(Debug, Default, Serialize)]
struct Report {
    ways: Vec<ways::Figures>,
    flow: Option<flow::Figures>,
    kills: Vec<kills::Figures>,
    slow: Vec<slow::Figures>,
    distances: Vec<distance::Figures>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let kinds = if arguments.kind.is_empty() { Kind::ALL.to_vec() } else { arguments.kind.clone() };
    let wanted = |part| arguments.part.is_empty() || arguments.part.contains(&part);
    let mut report = Report::default();
    if wanted(Part::Ways) {
        for &kind in &kinds {
            ways::of_kind(kind, &arguments, &mut report).await?;
        }
        if let Some(model) = &arguments.model {
            ways::of_file(model, &arguments, &mut report).await?;
        }
    }
    if wanted(Part::Flow) {
        flow::measure(&arguments, &mut report).await?;
    }
    if wanted(Part::Kills) {
        kills::measure(&arguments, &mut report).await?;
    }
    if wanted(Part::Slow) {
        slow::measure(&arguments, &mut report).await?;
    }
    if wanted(Part::Distance) {
        distance::measure(&arguments, &mut report).await?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        sum_up(&report);
    }
    ensure!(report.ways.iter().all(|way| way.identical), "an answer over several nodes differs");
    ensure!(report.flow.as_ref().is_none_or(|flow| flow.identical), "an answer beside another differs");
    ensure!(report.kills.iter().all(|kill| kill.identical), "an answer with a loss differs");
    ensure!(report.distances.iter().all(|far| far.identical), "an answer from afar differs");
    ensure!(report.slow.iter().all(|slow| slow.identical), "an answer with a slow holder differs");
    // Of a small model, or one in a file whose header has a tokenizer, what comes beside is much.
    let large = report.ways.iter().filter(|way| !arguments.small && way.seeded);
    ensure!(large.flat_map(|way| &way.nodes_bytes).all(|node| node.within), "a node fetched more than its share");
    Ok(())
}

fn enough(reached: f64, target: f64) -> &'static str {
    if reached >= target { "enough" } else { "NOT enough" }
}

fn same(identical: bool) -> &'static str {
    if identical { "identical" } else { "DIFFERENT" }
}

/// Says what the targets are, and how many of the figures reach them.
fn sum_up(report: &Report) {
    if !report.ways.is_empty() {
        let near = |measured: f64, predicted: f64| (predicted / measured - 1.0).abs() <= OFF;
        let pairs = report.ways.iter().flat_map(|way| {
            let alone = (way.alone_tokens_per_second, way.predicted_alone_tokens_per_second);
            [(way.tokens_per_second, way.predicted_tokens_per_second), alone]
        });
        let pairs: Vec<_> = pairs.collect();
        let good = pairs.iter().filter(|(measured, predicted)| near(*measured, *predicted)).count();
        println!("predictions within 20 %: {good} of {}", pairs.len());
        for way in report.ways.iter().filter(|way| way.experts_elsewhere && way.nodes == 4) {
            let reached = way.tokens_per_second / way.alone_tokens_per_second;
            println!(
                "{}: three nodes with all experts reach {:.0} % of one alone: {}",
                way.model,
                reached * 100.0,
                enough(reached, WORTH)
            );
        }
    }
    if let Some(flow) = &report.flow {
        println!(
            "two answers over two stages reach {:.2} of the ideal: {}; two prompts are read {:.2} times as fast: {}",
            flow.of_ideal,
            enough(flow.of_ideal, OVERLAP),
            flow.prefill,
            enough(flow.prefill, PREFILL)
        );
    }
    if !report.kills.is_empty() {
        let identical = report.kills.iter().filter(|kill| kill.identical).count();
        let longest = report.kills.iter().map(|kill| kill.longest_gap_ms).fold(0.0, f64::max);
        println!("{identical} of {} answers with a loss identical, longest gap {longest:.0} ms", report.kills.len());
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    // Of an even number, what lies between the two in the middle.
    let middle = &values[values.len().saturating_sub(1) / 2..values.len().min(values.len() / 2 + 1)];
    middle.iter().sum::<f64>() / middle.len().max(1) as f64
}

/// The events of a job, and the longest time between two tokens; `then` is called after the token of that number.
async fn watched(
    swarm: &Swarm,
    body: &JobBody,
    at: usize,
    then: impl AsyncFnOnce() -> Result<()>,
) -> Result<(Answer, Vec<Instant>)> {
    let mut stream = swarm.nodes[0].api().submit(body).await?;
    let (mut events, mut times, mut then) = (Vec::new(), Vec::new(), Some(then));
    while let Some(record) = stream.next().await {
        let EventRecord { event, .. } = record?;
        if matches!(event, JobEvent::Token { .. }) {
            times.push(Instant::now());
            if times.len() == at
                && let Some(then) = then.take()
            {
                then().await?;
            }
        }
        events.push(event);
    }
    Ok((answer(&events)?, times))
}
