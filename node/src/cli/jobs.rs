//! Conversations, and jobs that are under way.

use std::io::IsTerminal;
use std::path::Path;

use accel_protocol::{ErrorCode, Generation, Input, JobId, JobStatus, Message, ModelRef, Role, Task, TaskOptions};
use rustyline::error::ReadlineError;
use serde::Serialize;

use super::answer::ask;
use super::interrupts::Interrupts;
use super::output::{Output, table};
use super::{CliError, models};
use crate::api::{Api, ApiError, Cut, JobBody, LoadedView, default_deadline_ms};

/// How to choose tokens.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct GenerationArgs {
    /// Tokens to produce at most
    #[arg(long, default_value_t = 512)]
    pub max_tokens: u32,
    /// Softmax temperature; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Keep the likeliest tokens whose probabilities sum to P
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Keep the tokens at least P times as likely as the likeliest
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Divide the logits of tokens seen so far by this
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Text that ends the answer; may be given several times
    #[arg(long)]
    pub stop: Vec<String>,
    /// Report log probabilities with this many alternatives (with --json)
    #[arg(long)]
    pub logprobs: Option<u8>,
    /// Go on past the model's end-of-text token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Milliseconds within which the job must end
    #[arg(long, default_value_t = default_deadline_ms())]
    pub deadline_ms: u64,
}

impl GenerationArgs {
    pub(super) fn generation(&self) -> Generation {
        Generation {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop: self.stop.clone(),
            logprobs: self.logprobs,
            ignore_eos: self.ignore_eos,
        }
    }
}

pub(super) fn body(model: ModelRef, input: Input, args: &GenerationArgs) -> JobBody {
    JobBody {
        id: None,
        model,
        task: Task::TextGeneration,
        input,
        generation: args.generation(),
        options: TaskOptions::default(),
        deadline_ms: args.deadline_ms,
        peer: None,
    }
}

/// The model that a person names: by CID, by name, or by a path, which is imported.
pub(super) async fn find_model(api: &Api, text: &str, output: &Output) -> Result<ModelRef, CliError> {
    if text.parse::<ModelRef>().is_err() && Path::new(text).exists() {
        let added = models::import(api, Path::new(text), Cut::Tensor, false, output).await?;
        return models::parse(&added.cid);
    }
    match models::find(api, text).await {
        Err(CliError::Api(ApiError::Refused(error))) if error.code == ErrorCode::ModelNotFound => {
            Err(CliError::NoSuchModel(format!("{text:?} is no file here, and {}", error.message)))
        }
        found => found,
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ChatArgs {
    /// CID, CID/path, ipfs://CID, a name, NAME@PEER, or a file or directory, which is imported first
    model: String,
    /// Instructions that stand above the conversation
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    generation: GenerationArgs,
}

pub(super) async fn chat(
    api: &Api,
    args: ChatArgs,
    interrupts: &mut Interrupts,
    output: &Output,
) -> Result<(), CliError> {
    let model = interrupts.unless(find_model(api, &args.model, output)).await?;
    let mut messages: Vec<Message> =
        args.system.iter().map(|text| Message { role: Role::System, content: text.clone() }).collect();
    output.note("Ctrl-D ends the conversation, Ctrl-C an answer.");
    while let Some(line) = interrupts.unless(off_the_runtime("read a line", read_line)).await? {
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message { role: Role::User, content: line });
        let asked = body(model.clone(), Input::Chat(messages.clone()), &args.generation);
        match ask(api, asked, interrupts, output).await {
            Ok(answer) => {
                if output.is_json() {
                    output.value(&answer, |_| String::new())?;
                } else {
                    output.write("\n")?;
                }
                messages.push(Message { role: Role::Assistant, content: answer.text });
            }
            // The question is taken back: it may be asked again.
            Err(CliError::Interrupted | CliError::Cancelled) => {
                messages.pop();
                output.write("\n")?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One line from a person, or from a pipe; none at the end.
fn read_line() -> Result<Option<String>, CliError> {
    let failed = |message: String| CliError::Failed { doing: "read a line".to_owned(), message };
    if !std::io::stdin().is_terminal() {
        let mut line = String::new();
        return match std::io::stdin().read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line)),
            Err(error) => Err(failed(error.to_string())),
        };
    }
    let mut editor = rustyline::DefaultEditor::new().map_err(|error| failed(error.to_string()))?;
    match editor.readline("> ") {
        Ok(line) => Ok(Some(line)),
        Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// What `read` gives, from a thread of its own: a pipe may stay silent for as long as it likes.
pub(super) async fn off_the_runtime<T: Send + 'static>(
    doing: &str,
    read: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    let broke =
        |error: tokio::task::JoinError| CliError::Failed { doing: doing.to_owned(), message: error.to_string() };
    tokio::task::spawn_blocking(read).await.map_err(broke)?
}

pub(super) async fn list(api: &Api, output: &Output) -> Result<(), CliError> {
    let now = Now { models: api.loaded().await?, jobs: api.jobs().await? };
    output.value(&now, |Now { models, jobs }| {
        let models = models::in_memory(models);
        if jobs.is_empty() {
            return format!("{models}\n\nno jobs");
        }
        let rows = jobs.iter().map(|job| {
            vec![
                job.id.to_string(),
                format!("{:?}", job.state).to_lowercase(),
                job.tokens.to_string(),
                format!("{:.1} s", job.age_ms as f64 / 1e3),
                job.peer.clone().unwrap_or_else(|| "here".to_owned()),
                job.model.to_string(),
            ]
        });
        format!("{models}\n\n{}", table(&["JOB", "STATE", "TOKENS", "AGE", "PEER", "MODEL"], rows))
    })
}

/// What a node is at.
#[derive(Debug, Serialize)]
struct Now {
    models: Vec<LoadedView>,
    jobs: Vec<JobStatus>,
}

pub(super) async fn cancel(api: &Api, job: JobId, output: &Output) -> Result<(), CliError> {
    let status = api.cancel(job).await?;
    output.value(&status, |status| format!("{}: {}", status.id, format!("{:?}", status.state).to_lowercase()))
}
