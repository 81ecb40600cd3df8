//! The command line: what people type, and what they see.
//!
//! Every command speaks to a daemon's loopback interface. Where none runs, the command brings one up for as long as it
//! takes. Data goes to standard output; progress goes to standard error, and only when that is a terminal.

mod answer;
mod daemon;
mod demo;
mod doctor;
mod experts;
mod export;
mod hub;
mod interrupts;
mod jobs;
mod membership;
mod model_file;
mod models;
mod output;
mod plan;
mod run;
mod session;
mod shown;
mod swarm;

use std::path::{Path, PathBuf};

use accel_protocol::{ErrorCode, JobError, JobId, ModelName};
use clap::{CommandFactory, Parser, Subcommand};
use libp2p::Multiaddr;

use crate::api::{Api, ApiError, Cut};
use crate::config::{ConfigError, Overrides};
use crate::daemon::DaemonError;
use crate::data_dir::DataDirError;
use crate::hub::HubModel;
use crate::identity::IdentityError;
use crate::membership::MembershipError;
use crate::process::ProcessError;
use crate::store::StoreError;
use crate::swarm::SwarmError;

use daemon::Foreground;
use interrupts::Interrupts;
use models::find;
use output::Output;
use session::Session;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    wrong usage or configuration
  3    no such model, job or file
  4    no peer can run this, or it went away
  5    the deadline passed
  6    memory, disk or quota is short
  130  interrupted or cancelled
  141  whoever read the output went away

Data goes to standard output, errors to standard error, and progress there too when it is a terminal.
With --json, standard output holds one JSON value, also for an error: {\"error\": {\"code\": …, \"message\": …}}. \
chat gives one for each answer.";

/// Run Hugging Face models on pooled hardware: weights by CID over IPFS, jobs over libp2p.
#[derive(Debug, Parser)]
#[command(name = "accel-cli", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    overrides: Overrides,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// Join a swarm: hold models, run jobs, and serve this machine's programs on loopback.
///
/// Stops on SIGTERM or SIGINT: running jobs finish or are handed over to other peers; a second signal ends it at once.
#[derive(Debug, Parser)]
#[command(name = "accel-node", version)]
struct NodeCli {
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    foreground: Foreground,
    /// Print how to reach the node as JSON once it is ready
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a whole swarm at work on this machine: publish a model, fetch it by CID, answer a prompt
    Demo(demo::DemoArgs),
    /// Answer a prompt with a model
    Run(run::RunArgs),
    /// Talk with a model
    Chat(jobs::ChatArgs),
    /// Import a file, a Hugging Face directory or a GGUF, and print its CID
    Add {
        /// File or directory
        path: PathBuf,
        /// How to cut it into blocks
        #[arg(long, value_enum, default_value = "tensor")]
        chunker: Cut,
        /// Delete the source once it is imported, checked and pinned
        #[arg(long = "move")]
        move_source: bool,
    },
    /// Write a model's files, or all of its blocks as a CAR file, which any IPFS implementation reads
    Export(export::ExportArgs),
    /// Import a CAR file, and print the CIDs of its roots
    Import {
        /// The file; - reads standard input
        path: PathBuf,
    },
    /// Fetch a model from the swarm, or download one from the Hugging Face hub
    ///
    /// HF_TOKEN, or the token of `hf auth login`, opens private and gated models; HF_ENDPOINT names another hub. An
    /// interrupted download goes on from where it was.
    Pull {
        /// CID, CID/path, ipfs://CID, a name, NAME@PEER, or hf://org/name[@revision][:QUANT]
        #[arg(value_parser = models::named)]
        model: String,
    },
    /// Give a model a name
    Tag {
        /// The name: letters, digits and . _ - / :
        name: ModelName,
        /// CID, CID/path, ipfs://CID, or another name of it
        #[arg(value_parser = models::named)]
        model: String,
    },
    /// Take a name away; the model stays
    Untag {
        /// The name
        name: ModelName,
    },
    /// Bring a model into memory, fetched first if need be
    Load {
        /// CID, CID/path, ipfs://CID, a name, or NAME@PEER
        #[arg(value_parser = models::named)]
        model: String,
        /// Seconds that it stays there without a job; 0 keeps it as long as there is room [default: as configured]
        #[arg(long, value_name = "SECONDS")]
        keep_alive: Option<u64>,
    },
    /// Drop a model from memory
    Stop {
        /// CID, CID/path, ipfs://CID, a name, or NAME@PEER
        #[arg(value_parser = models::named)]
        model: String,
    },
    /// List the models that are here
    Ls,
    /// Show the files of a model, and its tensors
    Show {
        /// CID, CID/path, ipfs://CID, a name, or NAME@PEER
        #[arg(value_parser = models::named)]
        model: String,
        /// List the tensors: name, shape, type, bytes, and how much of each is here
        #[arg(long)]
        tensors: bool,
    },
    /// Show how a model would run, alone and with peers, before anything of it is fetched
    Plan(plan::PlanArgs),
    /// Show which experts of a mixture were chosen on this node: shares, entropy, pairs, and a heat map
    Experts(experts::ExpertsArgs),
    /// Let go of a model with its names and free what no other model holds
    Rm {
        /// CID, or a name
        #[arg(value_parser = models::named)]
        model: String,
    },
    /// Free all blocks that no model holds, and downloads that were interrupted
    Gc,
    /// List the models in memory and the jobs of this node
    Ps,
    /// Cancel a job
    Cancel {
        /// The job
        job: JobId,
    },
    /// List the peers: devices, models, load, round-trip time
    Peers,
    /// Connect to a peer
    Connect {
        /// Multiaddress that ends in /p2p/PEER_ID
        address: Multiaddr,
    },
    /// Make, join or leave a private swarm, which only those with its key get into
    #[command(subcommand)]
    Swarm(membership::SwarmCommand),
    /// Show this node: id, addresses, swarm, load, disk
    Id,
    /// List the devices of this machine, each proven by a run or with the reason why it cannot be used
    Hardware,
    /// Look for what keeps a node from its work, and say what to do about it
    Doctor,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages of both programs
    #[command(hide = true)]
    Man {
        /// Where to, a directory that is there
        directory: PathBuf,
    },
    /// Run as a daemon
    #[command(hide = true)]
    Daemon(Foreground),
}

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The private swarm cannot be joined, left or changed.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The daemon does not start.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The daemon does not answer, or says no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A node in a process of its own does not start or stop as it should.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The swarm does not start or a peer cannot be reached.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// A job failed.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A file cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What was typed makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something else on this machine failed.
    #[error("{doing}: {message}")]
    Failed {
        /// What was being done.
        doing: String,
        /// What went wrong.
        message: String,
    },
    /// What was named is neither a CID nor a file.
    #[error("{0}")]
    NoSuchModel(String),
    /// It was told what is wrong, as the command's data.
    #[error("it was told what is wrong")]
    Told {
        /// How the command ends.
        exit_code: u8,
    },
    /// Somebody pressed Ctrl-C, or told this process to end.
    #[error("interrupted")]
    Interrupted,
    /// Somebody cancelled the job, from another process.
    #[error("the job was cancelled")]
    Cancelled,
    /// Whoever read standard output reads no more, as in `accel-cli ls | head -1`.
    #[error("standard output is closed")]
    Closed,
}

impl CliError {
    /// The exit code that `--help` documents.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted | Self::Cancelled => 130,
            // As the shell reports the many programs that SIGPIPE ends.
            Self::Closed => 141,
            Self::Told { exit_code } => *exit_code,
            _ => match self.code() {
                ErrorCode::InvalidRequest => 2,
                ErrorCode::ModelNotFound | ErrorCode::UnknownJob => 3,
                ErrorCode::NoWorker | ErrorCode::WorkerLost | ErrorCode::ShuttingDown => 4,
                ErrorCode::DeadlineExceeded => 5,
                ErrorCode::OutOfResources => 6,
                ErrorCode::ContextLength | ErrorCode::ModelInvalid | ErrorCode::Unsupported | ErrorCode::Internal => 1,
            },
        }
    }

    /// The error's kind, for programs.
    fn code(&self) -> ErrorCode {
        match self {
            Self::Job(error) | Self::Api(ApiError::Refused(error)) => error.code,
            Self::Usage(_) | Self::Config(_) => ErrorCode::InvalidRequest,
            Self::Membership(error) if error.is_a_wrong_request() => ErrorCode::InvalidRequest,
            Self::NoSuchModel(_) => ErrorCode::ModelNotFound,
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorCode::ModelNotFound,
            Self::Daemon(DaemonError::Store(error)) if matches!(**error, StoreError::DiskFull { .. }) => {
                ErrorCode::OutOfResources
            }
            Self::File { source, .. }
            | Self::DataDir(DataDirError { source, .. })
            | Self::Membership(MembershipError::DataDir(DataDirError { source, .. }))
            | Self::Daemon(
                DaemonError::DataDir(DataDirError { source, .. })
                | DaemonError::Identity(IdentityError::File { source, .. }),
            ) if source.kind() == std::io::ErrorKind::StorageFull => ErrorCode::OutOfResources,
            _ => ErrorCode::Internal,
        }
    }
}

/// Runs what was typed and gives the exit code. Errors have been shown when this returns.
pub fn run() -> u8 {
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(exit_code) => return exit_code,
    };
    let output = Output::new(cli.json);
    exit(block_on(dispatch(cli, &output)), &output)
}

/// Runs a daemon in the foreground, as `accel-node` does, and gives the exit code.
pub fn run_node() -> u8 {
    let node: NodeCli = match parse() {
        Ok(node) => node,
        Err(exit_code) => return exit_code,
    };
    let output = Output::new(node.json);
    let daemon = async { daemon::run_daemon(&node.overrides, node.foreground, Interrupts::watch()?, &output).await };
    exit(block_on(daemon), &output)
}

/// What was typed, or the exit code when that was a question for help, or nothing that can be run.
fn parse<T: Parser>() -> Result<T, u8> {
    T::try_parse().map_err(|error| {
        // The flag itself may stand behind what cannot be parsed; a program that gave it reads JSON all the same.
        if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned();
            return exit(Err(CliError::Usage(text)), &Output::new(true));
        }
        // With the stream closed there is nobody left to tell.
        let _closed = error.print();
        u8::try_from(error.exit_code()).unwrap_or(1)
    })
}

fn exit(done: Result<(), CliError>, output: &Output) -> u8 {
    match done {
        Ok(()) => 0,
        Err(CliError::Told { exit_code }) => exit_code,
        Err(error) => {
            output.error(error.code(), &error);
            error.exit_code()
        }
    }
}

/// The runtime is here and not in the programs, so that the node is compiled once and not once for each of them.
fn block_on(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let failed =
        |error: std::io::Error| CliError::Failed { doing: "start the runtime".to_owned(), message: error.to_string() };
    let runtime = runtime.map_err(failed)?;
    let result = runtime.block_on(work);
    // A thread that reads from a terminal cannot be told to stop.
    runtime.shutdown_background();
    result
}

async fn dispatch(cli: Cli, output: &Output) -> Result<(), CliError> {
    let mut interrupts = Interrupts::watch()?;
    match cli.command {
        Command::Completions { shell } => return completions(shell, output),
        Command::Man { directory } => return man_pages(&directory),
        Command::Daemon(foreground) => return daemon::run_daemon(&cli.overrides, foreground, interrupts, output).await,
        Command::Doctor => return interrupts.unless(doctor::doctor(&cli.overrides, output)).await,
        Command::Demo(args) => return demo::run(args, &mut interrupts, output).await,
        // The membership is changed in the data directory; no daemon is brought up for that.
        Command::Swarm(command) => return membership::run(command, &cli.overrides, &mut interrupts, output).await,
        Command::Run(args) if args.is_direct() => return run::run_direct(args, &mut interrupts, output).await,
        _ => {}
    }
    let session = interrupts.unless(Session::open(&cli.overrides)).await?;
    let result = match cli.command {
        // What a signal means in the middle of an answer, these know.
        Command::Run(args) => run::run(&session.api, args, &mut interrupts, output).await,
        Command::Chat(args) => jobs::chat(&session.api, args, &mut interrupts, output).await,
        command => interrupts.unless(with_session(command, &session.api, output)).await,
    };
    session.close(&mut interrupts, output).await;
    result
}

fn completions(shell: clap_complete::Shell, output: &Output) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "accel-cli", &mut script);
    let script = String::from_utf8_lossy(&script);
    output.value(&serde_json::json!({ "shell": shell.to_string(), "script": script }), |_| script.to_string())
}

fn man_pages(directory: &Path) -> Result<(), CliError> {
    let failed = |source| CliError::File { path: directory.to_owned(), source };
    for program in [Cli::command(), NodeCli::command()] {
        clap_mangen::generate_to(program, directory).map_err(failed)?;
    }
    Ok(())
}

async fn with_session(command: Command, api: &Api, output: &Output) -> Result<(), CliError> {
    match command {
        Command::Add { path, chunker, move_source } => models::add(api, &path, chunker, move_source, output).await,
        Command::Export(args) => export::export(api, &args, &find(api, &args.model).await?, output).await,
        Command::Import { path } => export::import(api, &path, output).await,
        Command::Pull { model } if HubModel::is_meant(&model) => hub::pull(api, &model, output).await,
        Command::Pull { model } => models::pull(api, &find(api, &model).await?, output).await,
        Command::Tag { name, model } => models::tag(api, &name, &find(api, &model).await?, output).await,
        Command::Untag { name } => models::untag(api, &name, output).await,
        Command::Load { model, keep_alive } => models::load(api, &find(api, &model).await?, keep_alive, output).await,
        Command::Stop { model } => models::stop(api, &find(api, &model).await?, output).await,
        Command::Ls => models::list(api, output).await,
        Command::Show { model, tensors } => models::show(api, &find(api, &model).await?, tensors, output).await,
        Command::Plan(args) => plan::plan(api, args, output).await,
        Command::Experts(args) => experts::experts(api, args, output).await,
        Command::Rm { model } => models::remove(api, &find(api, &model).await?, output).await,
        Command::Gc => models::collect(api, output).await,
        Command::Ps => jobs::list(api, output).await,
        Command::Cancel { job } => jobs::cancel(api, job, output).await,
        Command::Peers => swarm::peers(api, output).await,
        Command::Connect { address } => swarm::connect(api, &address.to_string(), output).await,
        Command::Id => swarm::id(api, output).await,
        Command::Hardware => swarm::hardware(api, output).await,
        // Dispatched elsewhere.
        Command::Run(_)
        | Command::Chat(_)
        | Command::Doctor
        | Command::Man { .. }
        | Command::Completions { .. }
        | Command::Daemon(_)
        | Command::Demo(_)
        | Command::Swarm(_) => Ok(()),
    }
}
