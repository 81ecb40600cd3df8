//! Measures what a node's interface and its scheduler add to the first token of a lone request:
//! `latency --model FILE [--rounds N] [--json]`.
//!
//! The worker says how long it read the prompt; what a client waits longer for the first token is what they add.

use std::path::PathBuf;
use std::time::Instant;

use accel_node::process::{NodeProcess, Settings};
use accel_tests::cluster::{Cluster, import};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};

/// Measure what lies between a request and its first token beside the model.
#[derive(Debug, Parser)]
struct Arguments {
    /// A GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Requests, one after the other
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Compute threads of the node; one for each processor unless said otherwise
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
struct Report {
    /// From a request to its first token.
    first_token: Spread,
    /// Of that, what the model took.
    prefill: Spread,
    /// What is left.
    added: Spread,
}

#[derive(Debug, Serialize)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median: at(values.len() / 2), most: at(values.len().saturating_sub(1)) }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cluster = Cluster::new()?;
    let threads = vec!["--threads".to_owned(), arguments.threads.to_string()];
    let settings = Settings { arguments: threads, ..cluster.settings("node", true, &[]) };
    let node = NodeProcess::start(&settings).await?;
    let model = import(&node, arguments.model.canonicalize()?).await?;
    let access: Value = serde_json::from_slice(&std::fs::read(cluster.path("node/api.json"))?)?;
    let url = format!("http://{}/api/generate", access["address"].as_str().context("no address")?);
    let http = accel_node::tls::loopback();
    let body = json!({
        "model": model.to_string(), "prompt": "The capital of France is", "raw": true,
        "options": { "num_predict": 2, "temperature": 0 },
    });
    let (mut first_tokens, mut prefills, mut added) = (Vec::new(), Vec::new(), Vec::new());
    // The first of all loads the model.
    for round in 0..=arguments.rounds {
        let begun = Instant::now();
        let mut bytes = http.post(&url).json(&body).send().await?.error_for_status()?.bytes_stream();
        let mut text = bytes.next().await.context("no answer")??.to_vec();
        let first_token = begun.elapsed().as_secs_f64() * 1e3;
        while let Some(more) = bytes.next().await {
            text.extend_from_slice(&more?);
        }
        let last: Value =
            serde_json::from_slice(text.trim_ascii().split(|byte| *byte == b'\n').next_back().context("no line")?)?;
        ensure!(last["done"] == true && last["eval_count"] == 2, "{last}");
        let prefill = last["prompt_eval_duration"].as_f64().context("no time")? / 1e6;
        if round > 0 {
            first_tokens.push(first_token);
            prefills.push(prefill);
            added.push(first_token - prefill);
        }
    }
    node.stop().await?;
    let report =
        Report { first_token: Spread::of(first_tokens), prefill: Spread::of(prefills), added: Spread::of(added) };
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    for (name, of) in [("first token", &report.first_token), ("prefill", &report.prefill), ("added", &report.added)] {
        println!("{name:<12} {:8.2} ms ({:.2} to {:.2})", of.median, of.least, of.most);
    }
    Ok(())
}
