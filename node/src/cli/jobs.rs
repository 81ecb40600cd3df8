//! Prompts and answers.

use std::io::{IsTerminal, Read};
use std::path::Path;

use accel_protocol::job::InvalidTask;
use accel_protocol::limits::BLOB_INPUT_BYTES;
use accel_protocol::result::{Entity, Filling, Span};
use accel_protocol::{
    Aggregation, FileBytes, Generation, Input, JobId, Message, ModelRef, Role, Task, TaskOptions, TaskResult,
};
use clap::builder::PossibleValuesParser;
use libp2p::Multiaddr;
use rustyline::error::ReadlineError;

use super::answer::ask;
use super::interrupts::Interrupts;
use super::output::{Output, table};
use super::session::Session;
use super::{CliError, models};
use crate::api::{Api, Cut, JobBody, default_deadline_ms};

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
    fn generation(&self) -> Generation {
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

#[derive(Clone, Debug, clap::Args)]
pub(super) struct RunArgs {
    /// CID, CID/path, ipfs://CID, or a file or directory, which is imported first
    model: String,
    /// What to answer, or the file of a picture or a sound; standard input when missing or "-"
    prompt: Option<String>,
    /// What to do
    #[arg(long, default_value = Task::TextGeneration.name(), value_parser = task_names())]
    task: String,
    /// The text to find the answer in, or the one to compare with
    #[arg(long)]
    context: Option<String>,
    /// What becomes of tokens that belong together, where tokens get labels
    #[arg(long, default_value = "none", value_parser = ["none", "simple", "first", "average", "max"])]
    aggregation: String,
    /// Instructions that stand above the conversation
    #[arg(long)]
    system: Option<String>,
    /// Continue the prompt as it stands, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Submit straight to this peer with a throw-away identity; no daemon is needed
    #[arg(long, value_name = "MULTIADDR")]
    peer: Option<Multiaddr>,
    #[command(flatten)]
    generation: GenerationArgs,
}

impl RunArgs {
    /// Whether the job goes straight to a peer.
    pub(super) fn is_direct(&self) -> bool {
        self.peer.is_some()
    }

    fn task(&self) -> Result<Task, CliError> {
        self.task.parse().map_err(|error: InvalidTask| CliError::Usage(error.to_string()))
    }

    fn options(&self) -> TaskOptions {
        let aggregation = match self.aggregation.as_str() {
            "simple" => Aggregation::Simple,
            "first" => Aggregation::First,
            "average" => Aggregation::Average,
            "max" => Aggregation::Max,
            _ => Aggregation::None,
        };
        TaskOptions { top_k: (self.generation.top_k > 0).then_some(self.generation.top_k), aggregation }
    }

    fn body(&self, model: ModelRef, input: Input) -> Result<JobBody, CliError> {
        Ok(JobBody { task: self.task()?, options: self.options(), ..body(model, input, &self.generation) })
    }

    async fn input(&self) -> Result<Input, CliError> {
        let task = self.task()?;
        if task == Task::ImageClassification {
            let path = self.prompt.clone().unwrap_or_else(|| "-".to_owned());
            return Ok(Input::File(off_the_runtime("read the file", move || read_file(&path)).await?));
        }
        let prompt = match self.prompt.as_deref() {
            Some("-") | None => off_the_runtime("read the prompt", read_prompt).await?,
            Some(prompt) => prompt.to_owned(),
        };
        if let Some(context) = &self.context {
            return Ok(Input::Pair(prompt, context.clone()));
        }
        if self.raw || task != Task::TextGeneration {
            return Ok(Input::Text(prompt));
        }
        let system = self.system.iter().map(|text| Message { role: Role::System, content: text.clone() });
        let user = Message { role: Role::User, content: prompt };
        Ok(Input::Chat(system.chain([user]).collect()))
    }
}

/// A file of a picture or a sound, or what is piped in for "-".
fn read_file(path: &str) -> Result<FileBytes, CliError> {
    let mut bytes = Vec::new();
    // One byte more than a job may have, so that what is too large is known as such.
    let most = BLOB_INPUT_BYTES + 1;
    let read = match path {
        "-" if std::io::stdin().is_terminal() => return Err(CliError::Usage("give a file, or pipe one in".to_owned())),
        "-" => std::io::stdin().lock().take(most).read_to_end(&mut bytes),
        path => std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)),
    };
    read.map_err(|source| CliError::File { path: path.into(), source })?;
    Ok(FileBytes(bytes))
}

fn task_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Task::ALL.map(Task::name))
}

fn read_prompt() -> Result<String, CliError> {
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        return Err(CliError::Usage("give a prompt, or pipe one in".to_owned()));
    }
    let mut text = String::new();
    match stdin.read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(source) => Err(CliError::File { path: "standard input".into(), source }),
    }
}

fn body(model: ModelRef, input: Input, args: &GenerationArgs) -> JobBody {
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

/// The model that a person names: by CID, or by a path, which is imported.
async fn find_model(api: &Api, text: &str, output: &Output) -> Result<ModelRef, CliError> {
    let named: Result<ModelRef, _> = text.parse();
    match named {
        Ok(model) => Ok(model),
        Err(_) if Path::new(text).exists() => {
            let added = models::import(api, Path::new(text), Cut::Tensor, false, output).await?;
            models::parse(&added.cid)
        }
        Err(error) => Err(CliError::NoSuchModel(format!("{text:?} is no file here, and {error}"))),
    }
}

pub(super) async fn run(
    api: &Api,
    args: RunArgs,
    interrupts: &mut Interrupts,
    output: &Output,
) -> Result<(), CliError> {
    let input = interrupts.unless(args.input()).await?;
    let model = interrupts.unless(find_model(api, &args.model, output)).await?;
    finish(api, args.body(model, input)?, interrupts, output).await
}

/// Submits to a peer without a daemon: a node of the command's own, with an identity and a store that vanish.
pub(super) async fn run_direct(args: RunArgs, interrupts: &mut Interrupts, output: &Output) -> Result<(), CliError> {
    let Some(peer) = args.peer.clone() else { return Ok(()) };
    let model = models::parse(&args.model)?;
    let input = interrupts.unless(args.input()).await?;
    let session = interrupts.unless(Session::throw_away()).await?;
    let result = async {
        let address = peer.to_string();
        let connected = async { Ok(session.api.connect(&address).await?) };
        let peer = interrupts.unless(connected).await?;
        let body = JobBody { peer: Some(peer), ..args.body(model, input)? };
        finish(&session.api, body, interrupts, output).await
    };
    let result = result.await;
    session.close(interrupts, output).await;
    result
}

async fn finish(api: &Api, body: JobBody, interrupts: &mut Interrupts, output: &Output) -> Result<(), CliError> {
    let answer = ask(api, body, interrupts, output).await?;
    if output.is_json() {
        return output.value(&answer, |_| String::new());
    }
    if !answer.results.is_empty() {
        let text: Vec<String> = answer.results.iter().map(shown).collect();
        return output.write(&format!("{}\n", text.join("\n\n")));
    }
    output.write("\n")
}

/// A result as people read it.
fn shown(result: &TaskResult) -> String {
    let score = |score: f32| format!("{score:.4}");
    match result {
        TaskResult::Labels(labels) => {
            table(&["SCORE", "LABEL"], labels.iter().map(|label| vec![score(label.score), label.label.clone()]))
        }
        TaskResult::Fillings(masks) => {
            let rows = masks.iter().flatten();
            let row = |found: &Filling| vec![score(found.score), found.token_str.clone(), found.sequence.clone()];
            table(&["SCORE", "TOKEN", "TEXT"], rows.map(row))
        }
        TaskResult::Entities(entities) => {
            let at = |entity: &Entity| format!("{}..{}", entity.start, entity.end);
            let row =
                |entity: &Entity| vec![score(entity.score), entity.entity.clone(), entity.word.clone(), at(entity)];
            table(&["SCORE", "LABEL", "WORD", "CHARACTERS"], entities.iter().map(row))
        }
        TaskResult::Answers(spans) => {
            let at = |span: &Span| format!("{}..{}", span.start, span.end);
            let row = |span: &Span| vec![score(span.score), span.answer.clone(), at(span)];
            table(&["SCORE", "ANSWER", "CHARACTERS"], spans.iter().map(row))
        }
        TaskResult::Features { shape, values } => {
            let width = shape.last().map_or(1, |&width| width as usize).max(1);
            let line = |row: &[f32]| row.iter().map(f32::to_string).collect::<Vec<_>>().join(" ");
            values.chunks(width).map(line).collect::<Vec<_>>().join("\n")
        }
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ChatArgs {
    /// CID, CID/path, ipfs://CID, or a file or directory, which is imported first
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
async fn off_the_runtime<T: Send + 'static>(
    doing: &str,
    read: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    let broke =
        |error: tokio::task::JoinError| CliError::Failed { doing: doing.to_owned(), message: error.to_string() };
    tokio::task::spawn_blocking(read).await.map_err(broke)?
}

pub(super) async fn list(api: &Api, output: &Output) -> Result<(), CliError> {
    let jobs = api.jobs().await?;
    output.value(&jobs, |jobs| {
        if jobs.is_empty() {
            return "no jobs".to_owned();
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
        table(&["JOB", "STATE", "TOKENS", "AGE", "PEER", "MODEL"], rows)
    })
}

pub(super) async fn cancel(api: &Api, job: JobId, output: &Output) -> Result<(), CliError> {
    let status = api.cancel(job).await?;
    output.value(&status, |status| format!("{}: {}", status.id, format!("{:?}", status.state).to_lowercase()))
}
