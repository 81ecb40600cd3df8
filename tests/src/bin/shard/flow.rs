//! Several answers and prompts at once through two stages: how much of the time both are at work.

use std::time::Instant;

use accel_node::api::{JobBody, Split};
use accel_tests::seeded::Kind;
use accel_tests::shard::{Answer, Swarm};
use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde::Serialize;

use crate::{Arguments, Report, median, same};

/// Tokens of a prompt that takes its time.
const LONG: usize = 512;

/// Two stages, one on each of two nodes.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub identical: bool,
    /// Milliseconds a token that each stage computes, of one answer alone.
    stages_ms: [f64; 2],
    one_tokens_per_second: f64,
    /// Of both answers together.
    two_tokens_per_second: f64,
    /// If the busier stage never waited.
    ideal_tokens_per_second: f64,
    pub of_ideal: f64,
    /// Milliseconds for one long prompt, over both stages and on one node.
    prompt_ms: f64,
    alone_prompt_ms: f64,
    /// Milliseconds for two long prompts at once.
    prompts_ms: f64,
    alone_prompts_ms: f64,
    /// How many times as fast as on one node.
    pub prefill: f64,
}

pub async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let swarm = Swarm::start(Kind::Mixtral, arguments.large(), 2).await?;
    // Of one token: no pass has more rows than one.
    let answers: Vec<JobBody> = (0..2).map(|seed| swarm.body(1, 2 * arguments.tokens, seed)).collect();
    let prompts: Vec<JobBody> = (0..2).map(|seed| swarm.body(LONG, 1, seed)).collect();
    let both = async |bodies: &[JobBody]| try_join_all(bodies.iter().map(|body| swarm.ask(body))).await;
    let (mut identical, mut known) = (true, Vec::<Answer>::new());
    let mut expect = |found: &[Answer]| {
        if known.is_empty() {
            known = found.to_vec();
        }
        identical &= known.iter().zip(found).all(|(known, found)| known.equals(found));
    };
    let (mut own, mut other, mut one, mut two) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut there, mut here, mut one_there, mut one_here) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let timed = async |bodies: &[JobBody]| {
        let started = Instant::now();
        both(bodies).await?;
        Ok::<f64, anyhow::Error>(started.elapsed().as_secs_f64() * 1e3)
    };
    for _ in 0..arguments.rounds {
        swarm.plan(Split::Stages, 2, false).await?;
        swarm.ask(&answers[0]).await?;
        let stage = async || swarm.spread().await?.stages.into_iter().next().context("no stage");
        let before = stage().await?;
        let alone = swarm.ask(&answers[0]).await?;
        let after = stage().await?;
        let passes = (after.passes - before.passes).max(1) as f64;
        let busy = (after.busy_ms - before.busy_ms) / passes;
        own.push(1e3 / alone.tokens_per_second() - busy - after.transport_ms);
        other.push(busy);
        one.push(alone.tokens_per_second());
        let together = both(&answers).await?;
        two.push(together.iter().map(Answer::tokens_per_second).sum());
        expect(&together);
        one_there.push(timed(&prompts[..1]).await?);
        there.push(timed(&prompts).await?);

        swarm.plan(Split::Solo, 1, false).await?;
        expect(&both(&answers).await?);
        one_here.push(timed(&prompts[..1]).await?);
        here.push(timed(&prompts).await?);
    }
    let stages_ms = [median(&own), median(&other)];
    let ideal_tokens_per_second = 1e3 / stages_ms[0].max(stages_ms[1]);
    let (two_tokens_per_second, prompts_ms, alone_prompts_ms) = (median(&two), median(&there), median(&here));
    let flow = Figures {
        identical,
        stages_ms,
        one_tokens_per_second: median(&one),
        two_tokens_per_second,
        ideal_tokens_per_second,
        of_ideal: two_tokens_per_second / ideal_tokens_per_second,
        prompt_ms: median(&one_there),
        alone_prompt_ms: median(&one_here),
        prompts_ms,
        alone_prompts_ms,
        prefill: alone_prompts_ms / prompts_ms,
    };
    if !arguments.json {
        println!(
            "two stages of {:.1} and {:.1} ms a token: {}, one answer {:.1} tokens/s, two {:.1} together (ideal {:.1}); \
             a prompt of {LONG} tokens {:.0} ms, on one node {:.0}; two {:.0} ms, on one node {:.0}",
            flow.stages_ms[0],
            flow.stages_ms[1],
            same(flow.identical),
            flow.one_tokens_per_second,
            flow.two_tokens_per_second,
            flow.ideal_tokens_per_second,
            flow.prompt_ms,
            flow.alone_prompt_ms,
            flow.prompts_ms,
            flow.alone_prompts_ms,
        );
    }
    report.flow = Some(flow);
    swarm.stop().await
}
