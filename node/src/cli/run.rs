//! One job: what it works on, and what becomes of its answer.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use accel_protocol::job::InvalidTask;
use accel_protocol::limits::BLOB_INPUT_BYTES;
use accel_protocol::{Aggregation, FileBytes, Input, Message, ModelRef, Painting, Role, Task, TaskOptions, TaskResult};
use clap::builder::PossibleValuesParser;
use libp2p::Multiaddr;

use super::answer::{Answer, ask};
use super::interrupts::Interrupts;
use super::jobs::{GenerationArgs, body, find_model, off_the_runtime};
use super::membership::Token;
use super::output::Output;
use super::session::Session;
use super::shown::shown;
use super::{CliError, models};
use crate::api::{Api, JobBody};

/// How a picture is painted.
#[derive(Clone, Debug, clap::Args)]
struct PaintingArgs {
    /// Steps from noise to a picture
    #[arg(long)]
    steps: Option<u32>,
    /// How closely a picture keeps to its text
    #[arg(long)]
    guidance: Option<f32>,
    /// What a picture is not to show
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// Width of a picture in pixels
    #[arg(long)]
    width: Option<u32>,
    /// Height of a picture in pixels
    #[arg(long)]
    height: Option<u32>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct RunArgs {
    /// CID, CID/path, ipfs://CID, a name, NAME@PEER, or a file or directory, which is imported first
    model: String,
    /// What to answer, or a file: of a picture, of a sound, or of numbers with commas between them, a line for each
    /// time; standard input when missing or "-"
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
    /// How likely a thing in a picture has to be to be reported, from 0 to 1
    #[arg(long)]
    threshold: Option<f32>,
    /// The language that is spoken, as the model names it; the model guesses where it can
    #[arg(long)]
    language: Option<String>,
    /// A file of a picture to talk about; may be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Where to write a picture, "-" for standard output; a new file named after the job when missing
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    painting: PaintingArgs,
    /// Instructions that stand above the conversation
    #[arg(long)]
    system: Option<String>,
    /// Continue the prompt as it stands, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Submit straight to this peer with a throw-away identity; no daemon is needed
    #[arg(long, value_name = "MULTIADDR")]
    peer: Option<Multiaddr>,
    /// With --peer: the invite to that peer's private swarm; @FILE reads it from a file
    #[arg(long, value_name = "TOKEN", requires = "peer")]
    invite: Option<Token>,
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

    fn options(&self, task: Task) -> TaskOptions {
        let aggregation = match self.aggregation.as_str() {
            "simple" => Aggregation::Simple,
            "first" => Aggregation::First,
            "average" => Aggregation::Average,
            "max" => Aggregation::Max,
            _ => Aggregation::None,
        };
        let PaintingArgs { steps, guidance, negative, width, height } = self.painting.clone();
        TaskOptions {
            // Where tokens are chosen, it is about these.
            top_k: (self.generation.top_k > 0 && !task.is_generation()).then_some(self.generation.top_k),
            aggregation,
            threshold: self.threshold,
            language: self.language.clone(),
            painting: Painting { steps, guidance, negative, width, height },
        }
    }

    fn body(&self, model: ModelRef, input: Input) -> Result<JobBody, CliError> {
        let task = self.task()?;
        Ok(JobBody { task, options: self.options(task), ..body(model, input, &self.generation) })
    }

    async fn input(&self) -> Result<Input, CliError> {
        let task = self.task()?;
        if task.reads_file() || task == Task::TimeSeriesForecasting {
            let path = self.prompt.clone().unwrap_or_else(|| "-".to_owned());
            let file = off_the_runtime("read the file", move || read_file(&path)).await?;
            return if task.reads_file() { Ok(Input::File(file)) } else { series(&file.0) };
        }
        let prompt = match self.prompt.as_deref() {
            Some("-") | None => off_the_runtime("read the prompt", read_prompt).await?,
            Some(prompt) => prompt.to_owned(),
        };
        if let Some(context) = &self.context {
            return Ok(Input::Pair(prompt, context.clone()));
        }
        if self.raw || !matches!(task, Task::TextGeneration | Task::ImageTextToText) {
            return Ok(Input::Text(prompt));
        }
        let system = self.system.iter().map(|text| Message { role: Role::System, content: text.clone() });
        let user = Message { role: Role::User, content: prompt };
        let messages = system.chain([user]).collect();
        if task == Task::TextGeneration {
            return Ok(Input::Chat(messages));
        }
        let paths = self.image.clone();
        let read = move || {
            let texts = paths.iter().map(|path| path.to_str().ok_or_else(|| not_text(path)));
            texts.map(|path| path.and_then(read_file)).collect()
        };
        Ok(Input::Pictures(off_the_runtime("read the pictures", read).await?, messages))
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

/// Numbers with commas between them, a line for each time.
fn series(bytes: &[u8]) -> Result<Input, CliError> {
    let wrong = |line: usize, reason: String| CliError::Usage(format!("line {line} of the series: {reason}"));
    let text = std::str::from_utf8(bytes).map_err(|error| CliError::Usage(format!("the series: {error}")))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let numbers = lines.map(|(at, line)| {
        let values = line.split(',').map(|value| {
            let number = value.trim().parse::<f32>();
            number.map_err(|_| wrong(at + 1, format!("expected a number, found {:?}", value.trim())))
        });
        values.collect::<Result<Vec<_>, _>>()
    });
    Ok(Input::Series(numbers.collect::<Result<_, _>>()?))
}

fn not_text(path: &Path) -> CliError {
    CliError::Usage(format!("{} is no text", path.display()))
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

pub(super) async fn run(
    api: &Api,
    args: RunArgs,
    interrupts: &mut Interrupts,
    output: &Output,
) -> Result<(), CliError> {
    let input = interrupts.unless(args.input()).await?;
    let model = interrupts.unless(find_model(api, &args.model, output)).await?;
    let body = args.body(model, input)?;
    finish(api, body, args.output.as_deref(), interrupts, output).await
}

/// Submits to a peer without a daemon: a node of the command's own, with an identity and a store that vanish.
pub(super) async fn run_direct(args: RunArgs, interrupts: &mut Interrupts, output: &Output) -> Result<(), CliError> {
    let Some(peer) = args.peer.clone() else { return Ok(()) };
    let invite = args.invite.as_ref().map(Token::read).transpose()?;
    let input = interrupts.unless(args.input()).await?;
    let session = interrupts.unless(Session::throw_away(invite.as_ref())).await?;
    let result = async {
        let address = peer.to_string();
        let connected = async { Ok(session.api.connect(&address).await?) };
        let peer = interrupts.unless(connected).await?;
        // A name is one that this peer gave.
        let known = args.model.parse::<ModelRef>().is_ok() || args.model.contains('@');
        let named = if known { args.model.clone() } else { format!("{}@{peer}", args.model) };
        let model = interrupts.unless(models::find(&session.api, &named)).await?;
        let body = JobBody { peer: Some(peer), ..args.body(model, input)? };
        finish(&session.api, body, args.output.as_deref(), interrupts, output).await
    };
    let result = result.await;
    session.close(interrupts, output).await;
    result
}

async fn finish(
    api: &Api,
    body: JobBody,
    picture: Option<&Path>,
    interrupts: &mut Interrupts,
    output: &Output,
) -> Result<(), CliError> {
    let answer = ask(api, body, interrupts, output).await?;
    let (pictures, rest): (Vec<_>, Vec<_>) =
        answer.results.iter().partition(|result| matches!(result, TaskResult::Picture(_)));
    if picture.is_some() || !output.is_json() {
        for result in pictures {
            if let TaskResult::Picture(file) = result {
                save(file, &answer, picture, output)?;
            }
        }
    }
    if output.is_json() {
        return output.value(&answer, |_| String::new());
    }
    if answer.results.is_empty() {
        return output.write("\n");
    }
    if rest.is_empty() {
        return Ok(());
    }
    let text: Vec<String> = rest.into_iter().map(shown).collect();
    output.write(&format!("{}\n", text.join("\n\n")))
}

/// Writes a picture where the person wants it.
fn save(file: &FileBytes, answer: &Answer, path: Option<&Path>, output: &Output) -> Result<(), CliError> {
    let failed = |path: PathBuf| move |source| CliError::File { path, source };
    match path {
        Some(path) if path == Path::new("-") => {
            let mut out = std::io::stdout().lock();
            out.write_all(&file.0).and_then(|()| out.flush()).map_err(failed("standard output".into()))
        }
        Some(path) => std::fs::write(path, &file.0).map_err(failed(path.to_owned())),
        None => {
            let path = PathBuf::from(format!("{}.png", answer.job.map(|job| job.to_string()).unwrap_or_default()));
            let made = std::fs::File::create_new(&path).and_then(|mut made| made.write_all(&file.0));
            made.map_err(failed(path.clone()))?;
            output.write(&format!("{}\n", path.display()))
        }
    }
}
