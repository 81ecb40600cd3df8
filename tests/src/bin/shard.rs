//! Runs mixtures of experts over several nodes and reports whether the answers are those of one node, what each node
//! fetched, and how fast it was: `shard [--kind KIND] [--json]`.

use accel_node::api::Split;
use accel_tests::seeded::{Kind, Size};
use accel_tests::shard::{Answer, Swarm};
use anyhow::{Result, ensure};
use clap::Parser;
use serde::Serialize;

/// What may come beside the bytes of a share: directories, inner nodes, headers and the configuration.
const BESIDE: f64 = 1.02;

/// Run models over several nodes; every answer must be that of one node.
#[derive(Debug, Parser)]
struct Arguments {
    /// Kinds of models; all where none is named
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Tokens of each answer
    #[arg(long, default_value_t = 48)]
    tokens: u32,
    /// Rounds of each speed, one after the other
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Small models, to see whether it works
    #[arg(long)]
    small: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// One way to run one model.
#[derive(Debug, Serialize)]
struct Run {
    kind: Kind,
    split: Split,
    nodes: usize,
    experts_elsewhere: bool,
    identical: bool,
    tokens_per_second: f64,
    predicted_tokens_per_second: f64,
    prefill_ms: f64,
    /// Round trips of each token in each layer with experts.
    rounds_per_layer: f64,
    nodes_bytes: Vec<NodeBytes>,
}

/// What a node fetched.
#[derive(Debug, Serialize)]
struct NodeBytes {
    share_bytes: u64,
    stored_bytes: u64,
    within: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let kinds = if arguments.kind.is_empty() { Kind::ALL.to_vec() } else { arguments.kind.clone() };
    let mut runs = Vec::new();
    for kind in kinds {
        runs.extend(measure(kind, &arguments).await?);
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "runs": runs }));
    }
    ensure!(runs.iter().all(|run| run.identical), "an answer differs");
    ensure!(runs.iter().flat_map(|run| &run.nodes_bytes).all(|node| node.within), "a node fetched more than its share");
    Ok(())
}

async fn measure(kind: Kind, arguments: &Arguments) -> Result<Vec<Run>> {
    let size = if arguments.small { Size::SMALL } else { Size::LARGE };
    let mut runs = Vec::new();
    let mut first: Option<Answer> = None;
    for (nodes, elsewhere) in [(3, true), (2, false), (3, false), (4, false), (4, true)] {
        // New nodes have nothing on their disks yet.
        let swarm = Swarm::start(kind, size, nodes).await?;
        let body = swarm.body(64, arguments.tokens, 1);
        let (_, way) = swarm.plan(Split::Experts, nodes, elsewhere).await?;
        let answer = swarm.ask(&body).await?;
        let mut nodes_bytes = Vec::new();
        for (node, member) in way.members.iter().enumerate() {
            let stored_bytes = swarm.stored_bytes(node).await?;
            let within = stored_bytes as f64 <= member.bytes as f64 * BESIDE + if arguments.small { 1e6 } else { 0.0 };
            nodes_bytes.push(NodeBytes { share_bytes: member.bytes, stored_bytes, within });
        }
        let before = swarm.spread().await?;
        let mut speeds = vec![];
        let mut solo_speeds = vec![];
        let mut prefill = f64::INFINITY;
        let mut identical = first.as_ref().is_none_or(|first| first.equals(&answer));
        for _ in 0..arguments.rounds {
            let again = swarm.ask(&body).await?;
            identical &= again.equals(&answer);
            speeds.push(again.tokens_per_second());
            prefill = prefill.min(again.usage.prefill_ms);
        }
        let after = swarm.spread().await?;
        let passes = arguments.rounds as f64 * f64::from(arguments.tokens);
        let rounds_per_layer = (after.rounds - before.rounds) as f64 / passes / kind.mixtures(size) as f64;
        runs.push(Run {
            kind,
            split: Split::Experts,
            nodes,
            experts_elsewhere: elsewhere,
            identical,
            tokens_per_second: median(&mut speeds),
            predicted_tokens_per_second: way.prediction.map_or(0.0, |fast| fast.tokens_per_second),
            prefill_ms: prefill,
            rounds_per_layer,
            nodes_bytes,
        });
        // Alone, last: from here on the first node has everything.
        if nodes == 3 && elsewhere {
            let (_, way) = swarm.plan(Split::Solo, 1, false).await?;
            let solo = swarm.ask(&body).await?;
            identical = solo.equals(&answer);
            for _ in 0..arguments.rounds {
                let again = swarm.ask(&body).await?;
                identical &= again.equals(&answer);
                solo_speeds.push(again.tokens_per_second());
                prefill = again.usage.prefill_ms;
            }
            runs.push(Run {
                kind,
                split: Split::Solo,
                nodes: 1,
                experts_elsewhere: false,
                identical,
                tokens_per_second: median(&mut solo_speeds),
                predicted_tokens_per_second: way.prediction.map_or(0.0, |fast| fast.tokens_per_second),
                prefill_ms: prefill,
                rounds_per_layer: 0.0,
                nodes_bytes: Vec::new(),
            });
        }
        first.get_or_insert(answer);
        if !arguments.json {
            runs.iter().skip(runs.len().saturating_sub(if nodes == 3 && elsewhere { 2 } else { 1 })).for_each(show);
        }
        swarm.stop().await?;
    }
    Ok(runs)
}

fn show(run: &Run) {
    let bytes: Vec<String> = run
        .nodes_bytes
        .iter()
        .map(|node| format!("{:.1}/{:.1} MB", node.stored_bytes as f64 / 1e6, node.share_bytes as f64 / 1e6))
        .collect();
    println!(
        "{:?} {:?} on {}{}: {}, {:.1} tokens/s (predicted {:.1}), prompt {:.0} ms, {:.2} round trips a layer, fetched {}",
        run.kind,
        run.split,
        run.nodes,
        if run.experts_elsewhere { ", all elsewhere" } else { "" },
        if run.identical { "identical" } else { "DIFFERENT" },
        run.tokens_per_second,
        run.predicted_tokens_per_second,
        run.prefill_ms,
        run.rounds_per_layer,
        bytes.join(", "),
    );
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
