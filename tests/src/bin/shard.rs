//! Runs mixtures of experts over several nodes and reports whether the answers are those of one node, what each node
//! fetched, how fast it was and was said to be, what losses cost, and what distance costs:
//! `shard [--part PART] [--kind KIND] [--json]`.

use std::time::{Duration, Instant};

use accel_node::api::{JobBody, Split};
use accel_protocol::{EventRecord, JobEvent};
use accel_tests::seeded::{Kind, Size};
use accel_tests::shard::{Answer, Swarm, answer};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::StreamExt;
use rand::Rng;
use serde::Serialize;

/// What may come beside the bytes of a share: directories, inner nodes, headers and the configuration.
const BESIDE: f64 = 1.02;
/// What a node beside others must reach of what it reaches alone.
const WORTH: f64 = 0.7;
/// How far a prediction may be off.
const OFF: f64 = 0.2;
/// Distances, in milliseconds there and back.
const DISTANCES: [f64; 4] = [0.3, 1.0, 5.0, 20.0];
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
    /// Tokens of each answer
    #[arg(long, default_value_t = 48)]
    tokens: u32,
    /// Rounds of each speed, with one node and with several in turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Holders of experts that are killed
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Small models, to see whether it works
    #[arg(long)]
    small: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Answers, bytes and speed, in all ways to run every kind
    Ways,
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
    ways: Vec<Way>,
    kills: Vec<Kill>,
    slow: Option<Slow>,
    distances: Vec<Far>,
}

/// One way to run one model.
#[derive(Debug, Serialize)]
struct Way {
    kind: Kind,
    nodes: usize,
    experts_elsewhere: bool,
    identical: bool,
    tokens_per_second: f64,
    /// One node alone, in turn with that.
    alone_tokens_per_second: f64,
    predicted_tokens_per_second: f64,
    predicted_alone_tokens_per_second: f64,
    prompt_ms: f64,
    alone_prompt_ms: f64,
    /// Round trips of each token in each layer with experts.
    round_trips_per_layer: f64,
    nodes_bytes: Vec<NodeBytes>,
}

/// What a node fetched for its first answer.
#[derive(Debug, Serialize)]
struct NodeBytes {
    share_bytes: u64,
    stored_bytes: u64,
    within: bool,
}

/// A holder that was killed.
#[derive(Debug, Serialize)]
struct Kill {
    at_token: usize,
    identical: bool,
    longest_gap_ms: f64,
}

/// A holder that became slow.
#[derive(Debug, Serialize)]
struct Slow {
    added_ms: f64,
    identical: bool,
    tokens_per_second_before: f64,
    tokens_per_second_after: f64,
    experts_left_with_it: usize,
}

/// Holders at a distance.
#[derive(Debug, Serialize)]
struct Far {
    added_ms: f64,
    identical: bool,
    tokens_per_second: f64,
    predicted_tokens_per_second: f64,
    /// What the ways alone would allow.
    bound_tokens_per_second: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let kinds = if arguments.kind.is_empty() { Kind::ALL.to_vec() } else { arguments.kind.clone() };
    let wanted = |part| arguments.part.is_empty() || arguments.part.contains(&part);
    let mut report = Report::default();
    if wanted(Part::Ways) {
        for &kind in &kinds {
            ways(kind, &arguments, &mut report).await?;
        }
    }
    if wanted(Part::Kills) {
        kills(&arguments, &mut report).await?;
    }
    if wanted(Part::Slow) {
        slow(&arguments, &mut report).await?;
    }
    if wanted(Part::Distance) {
        distances(&arguments, &mut report).await?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        sum_up(&report);
    }
    ensure!(report.ways.iter().all(|way| way.identical), "an answer over several nodes differs");
    ensure!(report.kills.iter().all(|kill| kill.identical), "an answer with a loss differs");
    ensure!(report.distances.iter().all(|far| far.identical), "an answer from afar differs");
    ensure!(report.slow.as_ref().is_none_or(|slow| slow.identical), "an answer with a slow holder differs");
    ensure!(
        arguments.small || report.ways.iter().flat_map(|way| &way.nodes_bytes).all(|node| node.within),
        "a node fetched more than its share"
    );
    Ok(())
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
            let enough = if reached >= WORTH { "enough" } else { "NOT enough" };
            println!(
                "{:?}: three nodes with all experts reach {:.0} % of one alone: {enough}",
                way.kind,
                reached * 100.0
            );
        }
    }
    if !report.kills.is_empty() {
        let identical = report.kills.iter().filter(|kill| kill.identical).count();
        let longest = report.kills.iter().map(|kill| kill.longest_gap_ms).fold(0.0, f64::max);
        println!("{identical} of {} answers with a loss identical, longest gap {longest:.0} ms", report.kills.len());
    }
}

async fn ways(kind: Kind, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let size = if arguments.small { Size::SMALL } else { Size::LARGE };
    let mut first: Option<Answer> = None;
    for (nodes, elsewhere) in [(2, false), (3, false), (4, false), (4, true)] {
        // New nodes have nothing on their disks yet.
        let swarm = Swarm::start(kind, size, nodes).await?;
        let body = swarm.body(PROMPT, arguments.tokens, 1);
        let (_, way) = swarm.plan(Split::Experts, nodes, elsewhere).await?;
        let spread = swarm.ask(&body).await?;
        let mut nodes_bytes = Vec::new();
        for member in &way.members {
            let stored_bytes = swarm.stored_bytes(member).await?;
            let within = stored_bytes as f64 <= member.bytes as f64 * BESIDE;
            nodes_bytes.push(NodeBytes { share_bytes: member.bytes, stored_bytes, within });
        }
        let mut identical = first.as_ref().is_none_or(|first| first.equals(&spread));
        let (mut here, mut there) = (Speeds::default(), Speeds::default());
        let (mut predicted, mut predicted_alone, mut round_trips) = (0.0, 0.0, 0.0);
        for _ in 0..arguments.rounds {
            // With several nodes and with one in turn, each once to load and once to be measured.
            for split in [Split::Experts, Split::Solo] {
                let count = if split == Split::Solo { 1 } else { nodes };
                let (_, way) = swarm.plan(split, count, elsewhere && split != Split::Solo).await?;
                let fast = way.prediction.context("no prediction")?.tokens_per_second;
                identical &= swarm.ask(&body).await?.equals(&spread);
                let before = swarm.spread().await.map_or(0, |spread| spread.rounds);
                let again = swarm.ask(&body).await?;
                identical &= again.equals(&spread);
                if split == Split::Solo {
                    predicted_alone = fast;
                    here.add(&again);
                } else {
                    predicted = fast;
                    there.add(&again);
                    let rounds = (swarm.spread().await?.rounds - before) as f64;
                    // The encoder's layers read the prompt once.
                    let encoder = if kind == Kind::Switch { kind.mixtures(size) as f64 } else { 0.0 };
                    round_trips = (rounds - encoder) / f64::from(arguments.tokens) / kind.mixtures(size) as f64;
                }
            }
        }
        let way = Way {
            kind,
            nodes,
            experts_elsewhere: elsewhere,
            identical,
            tokens_per_second: there.tokens_per_second(),
            alone_tokens_per_second: here.tokens_per_second(),
            predicted_tokens_per_second: predicted,
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

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    // Of an even number, what lies between the two in the middle.
    let middle = &values[values.len().saturating_sub(1) / 2..values.len().min(values.len() / 2 + 1)];
    middle.iter().sum::<f64>() / middle.len().max(1) as f64
}

fn show(way: &Way) {
    let bytes = way.nodes_bytes.iter().map(|node| {
        let (stored, share) = (node.stored_bytes as f64 / 1e6, node.share_bytes as f64 / 1e6);
        format!("{stored:.1} of {share:.1} MB{}", if node.within { "" } else { " TOO MANY" })
    });
    println!(
        "{:?} on {} nodes{}: {}, {:.1} tokens/s (predicted {:.1}), alone {:.1} (predicted {:.1}), prompt {:.0} ms, alone \
         {:.0} ms, {:.2} round trips a layer, fetched {}",
        way.kind,
        way.nodes,
        if way.experts_elsewhere { ", no expert on the first" } else { "" },
        if way.identical { "identical" } else { "DIFFERENT" },
        way.tokens_per_second,
        way.predicted_tokens_per_second,
        way.alone_tokens_per_second,
        way.predicted_alone_tokens_per_second,
        way.prompt_ms,
        way.alone_prompt_ms,
        way.round_trips_per_layer,
        bytes.collect::<Vec<_>>().join(", "),
    );
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

fn longest_gap_ms(times: &[Instant]) -> f64 {
    times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).fold(0.0, f64::max)
}

async fn kills(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let kind = Kind::Qwen3Moe;
    let size = if arguments.small { Size::SMALL } else { Size::MEDIUM };
    let mut swarm = Swarm::start(kind, size, 4).await?;
    let body = swarm.body(PROMPT, 2 * arguments.tokens, 2);
    swarm.plan(Split::Experts, 4, true).await?;
    let undisturbed = swarm.ask(&body).await?;
    for number in 1..=arguments.kills {
        swarm.plan(Split::Experts, 4, true).await?;
        let (at, victim) = {
            let mut random = rand::rng();
            (random.random_range(2..2 * arguments.tokens as usize - 2), random.random_range(1..4))
        };
        let victim = swarm.nodes.remove(victim);
        let (found, times) = watched(&swarm, &body, at, async || Ok(victim.kill().await?)).await?;
        let identical = found.equals(&undisturbed);
        let kill = Kill { at_token: at, identical, longest_gap_ms: longest_gap_ms(&times) };
        if !arguments.json {
            let words = if kill.identical { "identical" } else { "DIFFERENT" };
            println!("{number:3}: killed at token {at:3}, {words}, longest gap {:.0} ms", kill.longest_gap_ms);
        }
        report.kills.push(kill);
        swarm.start_node().await?;
    }
    swarm.stop().await
}

async fn slow(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let size = if arguments.small { Size::SMALL } else { Size::MEDIUM };
    let near = Duration::from_micros(200);
    let (swarm, distances) = Swarm::start_apart(Kind::Qwen3Moe, size, &[near; 3]).await?;
    let tokens = 4 * arguments.tokens;
    let body = swarm.body(PROMPT, tokens, 3);
    swarm.plan(Split::Experts, 4, true).await?;
    let undisturbed = swarm.ask(&body).await?;
    let added = Duration::from_millis(100);
    let at = tokens as usize / 4;
    let victim = distances.last().context("a distance")?;
    let (found, times) = watched(&swarm, &body, at, async || {
        victim.set(added);
        Ok(())
    })
    .await?;
    let speed = |times: &[Instant]| match times {
        [first, .., last] => (times.len() - 1) as f64 / (*last - *first).as_secs_f64(),
        _ => 0.0,
    };
    let slow_peer = swarm.nodes.last().context("a node")?.peer().to_owned();
    let left = swarm.spread().await?.peers.iter().filter(|peer| peer.peer == slow_peer).map(|peer| peer.experts).sum();
    let slow = Slow {
        added_ms: added.as_secs_f64() * 1e3,
        identical: found.equals(&undisturbed),
        tokens_per_second_before: speed(&times[..at]),
        // The last quarter: by then its experts have moved.
        tokens_per_second_after: speed(&times[3 * at..]),
        experts_left_with_it: left,
    };
    if !arguments.json {
        println!(
            "a holder slowed by {:.0} ms: {}, {:.1} tokens/s before, {:.1} at the end, {} experts left with it",
            slow.added_ms,
            if slow.identical { "identical" } else { "DIFFERENT" },
            slow.tokens_per_second_before,
            slow.tokens_per_second_after,
            slow.experts_left_with_it,
        );
    }
    report.slow = Some(slow);
    swarm.stop().await
}

async fn distances(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let size = if arguments.small { Size::SMALL } else { Size::MEDIUM };
    let kind = Kind::Qwen3Moe;
    let mut first: Option<Answer> = None;
    for added in DISTANCES {
        let way = Duration::from_secs_f64(added / 1e3);
        let (swarm, _distances) = Swarm::start_apart(kind, size, &[way; 2]).await?;
        let body = swarm.body(PROMPT, arguments.tokens, 4);
        let (_, planned) = swarm.plan(Split::Experts, 3, true).await?;
        let answer = swarm.ask(&body).await?;
        let again = swarm.ask(&body).await?;
        for peer in &swarm.spread().await?.peers {
            let found = peer.transport_ms;
            ensure!(found >= added, "peer {} is reached in {found:.2} ms, by another way", peer.peer);
        }
        let far = Far {
            added_ms: added,
            identical: again.equals(&answer) && first.as_ref().is_none_or(|first| first.equals(&answer)),
            tokens_per_second: again.tokens_per_second(),
            predicted_tokens_per_second: planned.prediction.map_or(0.0, |fast| fast.tokens_per_second),
            bound_tokens_per_second: 1e3 / added / kind.mixtures(size) as f64,
        };
        if !arguments.json {
            println!(
                "{added} ms away: {}, {:.1} tokens/s (predicted {:.1}), the way alone allows {:.1}",
                if far.identical { "identical" } else { "DIFFERENT" },
                far.tokens_per_second,
                far.predicted_tokens_per_second,
                far.bound_tokens_per_second,
            );
        }
        first.get_or_insert(answer);
        report.distances.push(far);
        swarm.stop().await?;
    }
    Ok(())
}
