//! Kills workers in the middle of answers and reports what it cost: `failover --model FILE [--rounds N] [--json]`.

use accel_protocol::Generation;
use accel_tests::failover::{Failover, TOKENS};
use clap::Parser;
use rand::Rng;

/// Kill workers in the middle of answers; every answer must be the undisturbed one.
#[derive(Debug, Parser)]
struct Arguments {
    /// GGUF file or Hugging Face directory
    #[arg(long)]
    model: std::path::PathBuf,
    /// Answers to disturb
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Softmax temperature of the seeded sampling; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let generation = Generation { temperature: arguments.temperature, seed: 7, ..Generation::default() };
    let mut swarm = Failover::start(arguments.model, generation).await?;
    let mut rounds = Vec::new();
    for number in 1..=arguments.rounds {
        let round = swarm.round(rand::rng().random_range(8..=TOKENS - 8)).await?;
        if !arguments.json {
            println!(
                "{number:3}: killed at {:3}, went on at {:3}, {}, longest gap {:.0} ms",
                round.killed_at,
                round.moved_at,
                if round.identical { "identical" } else { "DIFFERENT" },
                round.longest_gap_ms
            );
        }
        rounds.push(round);
    }
    swarm.stop().await?;
    let mut gaps: Vec<f64> = rounds.iter().map(|round| round.longest_gap_ms).collect();
    gaps.sort_by(f64::total_cmp);
    let p95 = gaps.get((gaps.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0);
    let identical = rounds.iter().filter(|round| round.identical).count();
    if arguments.json {
        println!("{}", serde_json::json!({ "rounds": rounds, "identical": identical, "longest_gap_p95_ms": p95 }));
    } else {
        println!("{identical} of {} identical, longest gap p95 {p95:.0} ms", rounds.len());
    }
    anyhow::ensure!(identical == rounds.len(), "an answer differs");
    Ok(())
}
