//! Holders at a distance: what the way costs.

use std::time::Duration;

use accel_node::api::Split;
use accel_tests::seeded::Kind;
use accel_tests::shard::{Answer, Swarm};
use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{Arguments, PROMPT, Report, same};

/// Distances, in milliseconds there and back.
const DISTANCES: [f64; 4] = [0.3, 1.0, 5.0, 20.0];

/// Holders at a distance.
#[derive(Debug, Serialize)]
pub struct Figures {
    split: Split,
    added_ms: f64,
    pub identical: bool,
    tokens_per_second: f64,
    predicted_tokens_per_second: f64,
    /// What the ways alone would allow.
    bound_tokens_per_second: f64,
}

pub async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (kind, size) = (Kind::Qwen3Moe, arguments.medium());
    let mut first: Option<Answer> = None;
    let splits = [Split::Experts, Split::Stages].into_iter().filter(|split| arguments.wants(*split));
    for (split, added) in splits.flat_map(|split| DISTANCES.map(|added| (split, added))) {
        let way = Duration::from_secs_f64(added / 1e3);
        let (swarm, _distances) = Swarm::start_apart(kind, size, &[way; 2]).await?;
        let body = swarm.body(PROMPT, arguments.tokens, 4);
        let (_, planned) = swarm.plan(split, 3, split == Split::Experts).await?;
        let answer = swarm.ask(&body).await?;
        let again = swarm.ask(&body).await?;
        let spread = swarm.spread().await?;
        let ways = spread.peers.iter().map(|peer| peer.transport_ms);
        for found in ways.chain(spread.stages.iter().map(|stage| stage.transport_ms)) {
            ensure!(found >= added, "a peer is reached in {found:.2} ms, by another way");
        }
        let trips = if split == Split::Experts { kind.mixtures(size) } else { spread.stages.len() };
        let far = Figures {
            split,
            added_ms: added,
            identical: again.equals(&answer) && first.as_ref().is_none_or(|first| first.equals(&answer)),
            tokens_per_second: again.tokens_per_second(),
            predicted_tokens_per_second: planned.prediction.map_or(0.0, |fast| fast.tokens_per_second),
            bound_tokens_per_second: 1e3 / added / trips as f64,
        };
        if !arguments.json {
            println!(
                "{split:?}, {added} ms away: {}, {:.1} tokens/s (predicted {:.1}), the way alone allows {:.1}",
                same(far.identical),
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
