//! A holder that becomes slow in the middle of an answer.

use std::time::{Duration, Instant};

use accel_node::api::Split;
use accel_tests::seeded::Kind;
use accel_tests::shard::Swarm;
use anyhow::{Context, Result};
use serde::Serialize;

use crate::{Arguments, PROMPT, Report, same, watched};

/// A holder that became slow.
#[derive(Debug, Serialize)]
pub struct Figures {
    split: Split,
    added_ms: f64,
    pub identical: bool,
    tokens_per_second_before: f64,
    tokens_per_second_after: f64,
    /// Experts and stages.
    left_with_it: usize,
}

pub async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    for split in [Split::Experts, Split::Stages].into_iter().filter(|split| arguments.wants(*split)) {
        let near = Duration::from_micros(200);
        let (swarm, distances) = Swarm::start_apart(Kind::Qwen3Moe, arguments.medium(), &[near; 3]).await?;
        let tokens = 4 * arguments.tokens;
        let body = swarm.body(PROMPT, tokens, 3);
        // A stage has to have somewhere to go.
        let count = if split == Split::Stages { 3 } else { 4 };
        swarm.plan(split, count, split == Split::Experts).await?;
        let undisturbed = swarm.ask(&body).await?;
        let added = Duration::from_millis(100);
        let at = tokens as usize / 4;
        let victim = distances.get(count - 2).context("a distance")?;
        let (found, times) = watched(&swarm, &body, at, async || {
            victim.set(added);
            Ok(())
        })
        .await?;
        let speed = |times: &[Instant]| match times {
            [first, .., last] => (times.len() - 1) as f64 / (*last - *first).as_secs_f64(),
            _ => 0.0,
        };
        let slow_peer = swarm.nodes.get(count - 1).context("a node")?.peer().to_owned();
        let spread = swarm.spread().await?;
        let experts = spread.peers.iter().filter(|peer| peer.peer == slow_peer).map(|peer| peer.experts).sum::<usize>();
        let stages = spread.stages.iter().filter(|stage| stage.peer.as_ref() == Some(&slow_peer)).count();
        let slow = Figures {
            split,
            added_ms: added.as_secs_f64() * 1e3,
            identical: found.equals(&undisturbed),
            tokens_per_second_before: speed(&times[..at]),
            // The last quarter: by then what it had has moved.
            tokens_per_second_after: speed(&times[3 * at..]),
            left_with_it: experts + stages,
        };
        if !arguments.json {
            println!(
                "{split:?}, a holder slowed by {:.0} ms: {}, {:.1} tokens/s before, {:.1} at the end, {} left with it",
                slow.added_ms,
                same(slow.identical),
                slow.tokens_per_second_before,
                slow.tokens_per_second_after,
                slow.left_with_it,
            );
        }
        report.slow.push(slow);
        swarm.stop().await?;
    }
    Ok(())
}
