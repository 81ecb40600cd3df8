//! Holders of experts and of layers that are killed in the middle of answers.

use std::time::Instant;

use accel_node::api::Split;
use accel_tests::seeded::Kind;
use accel_tests::shard::Swarm;
use anyhow::Result;
use rand::Rng;
use serde::Serialize;

use crate::{Arguments, PROMPT, Report, same, watched};

/// A holder that was killed.
#[derive(Debug, Serialize)]
pub struct Figures {
    split: Split,
    at_token: usize,
    pub identical: bool,
    pub longest_gap_ms: f64,
}

fn longest_gap_ms(times: &[Instant]) -> f64 {
    times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).fold(0.0, f64::max)
}

pub async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut swarm = Swarm::start(Kind::Qwen3Moe, arguments.medium(), 4).await?;
    let body = swarm.body(PROMPT, 2 * arguments.tokens, 2);
    let splits: Vec<Split> =
        [Split::Experts, Split::Stages, Split::Both].into_iter().filter(|split| arguments.wants(*split)).collect();
    swarm.plan(Split::Solo, 1, false).await?;
    let undisturbed = swarm.ask(&body).await?;
    for (number, &split) in splits.iter().cycle().enumerate().take(arguments.kills) {
        swarm.plan(split, 4, split == Split::Experts).await?;
        let (at, victim) = {
            let mut random = rand::rng();
            (random.random_range(2..2 * arguments.tokens as usize - 2), random.random_range(1..4))
        };
        let victim = swarm.nodes.remove(victim);
        let (found, times) = watched(&swarm, &body, at, async || Ok(victim.kill().await?)).await?;
        let identical = found.equals(&undisturbed);
        let kill = Figures { split, at_token: at, identical, longest_gap_ms: longest_gap_ms(&times) };
        if !arguments.json {
            println!(
                "{:3}: {split:?}, killed at token {at:3}, {}, longest gap {:.0} ms",
                number + 1,
                same(identical),
                kill.longest_gap_ms
            );
        }
        report.kills.push(kill);
        swarm.start_node().await?;
    }
    swarm.stop().await
}
