//! The command line: what people type, and what they see.
//!
//! Every command speaks to a daemon's loopback interface. Where none runs, the command brings one up for as long as it
//! takes. Data goes to standard output; progress goes to standard error, and only when that is a terminal.

mod answer;
mod daemon;
mod demo;
mod jobs;
mod model_file;
mod models;
mod output;
mod swarm;

use std::path::PathBuf;

use accel_protocol::{ErrorCode, JobError, JobId};
use clap::{CommandFactory, Parser, Subcommand};
use tempfile::TempDir;

use crate::api::{Api, ApiError, Cut};
use crate::config::{Config, ConfigError, Overrides};
use crate::daemon::{Daemon, DaemonError};
use crate::identity::IdentityError;
use crate::process::ProcessError;
use crate::swarm::SwarmError;

pub use daemon::Foreground;
use output::Output;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    wrong usage or configuration
  3    no such model, job or file
  4    no peer can run this, or it went away
  5    the deadline passed
  6    memory, disk or quota is short
  130  interrupted

Data goes to standard output, progress to standard error when that is a terminal.";

/// Run Hugging Face models on pooled hardware: weights by CID over IPFS, jobs over libp2p.
#[derive(Debug, Parser)]
#[command(name = "accel-cli", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    overrides: Overrides,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a whole swarm at work on this machine: publish a model, fetch it by CID, answer a prompt
    Demo(demo::DemoArgs),
    /// Answer a prompt with a model
    Run(jobs::RunArgs),
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
    /// Fetch a model by CID
    Pull {
        /// CID, CID/path or ipfs://CID
        model: String,
    },
    /// List the models that are here
    Ls,
    /// Show the files of a model, and its tensors
    Show {
        /// CID, CID/path or ipfs://CID
        model: String,
        /// List the tensors: name, shape, type, bytes, and how much of each is here
        #[arg(long)]
        tensors: bool,
    },
    /// Let go of a model and free what no other model holds
    Rm {
        /// CID
        model: String,
    },
    /// Free all blocks that no model holds
    Gc,
    /// List the jobs of this node
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
        address: String,
    },
    /// Show this node: id, addresses, load, disk
    Id,
    /// List the devices of this machine, each proven by a run or with the reason why it cannot be used
    Hardware,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
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
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// The exit code that `--help` documents.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => 2,
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 3,
            Self::Interrupted => 130,
            Self::Job(error) | Self::Api(ApiError::Refused(error)) => exit_code(error.code),
            Self::Swarm(SwarmError::Unreachable { .. } | SwarmError::Silent { .. }) => 4,
            _ => 1,
        }
    }

    /// The error's kind, for programs.
    fn code(&self) -> ErrorCode {
        match self {
            Self::Job(error) | Self::Api(ApiError::Refused(error)) => error.code,
            Self::Usage(_) | Self::Config(_) => ErrorCode::InvalidRequest,
            Self::Swarm(SwarmError::Unreachable { .. } | SwarmError::Silent { .. }) => ErrorCode::NoWorker,
            _ => ErrorCode::Internal,
        }
    }
}

fn exit_code(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::InvalidRequest => 2,
        ErrorCode::ModelNotFound | ErrorCode::UnknownJob => 3,
        ErrorCode::NoWorker | ErrorCode::WorkerLost | ErrorCode::ShuttingDown => 4,
        ErrorCode::DeadlineExceeded => 5,
        ErrorCode::OutOfResources => 6,
        ErrorCode::ContextLength | ErrorCode::ModelInvalid | ErrorCode::Unsupported | ErrorCode::Internal => 1,
    }
}

/// Runs what was typed and gives the exit code. Errors have been shown when this returns.
pub fn run(cli: Cli) -> u8 {
    let output = Output::new(cli.json);
    exit(block_on(dispatch(cli, &output)), &output)
}

/// Runs a daemon in the foreground, as `accel-node` does, and gives the exit code.
pub fn run_node(overrides: &Overrides, foreground: Foreground, json: bool) -> u8 {
    let output = Output::new(json);
    exit(block_on(daemon::run_daemon(overrides, foreground, &output)), &output)
}

fn exit(done: Result<(), CliError>, output: &Output) -> u8 {
    match done {
        Ok(()) => 0,
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
    match cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "accel-cli", &mut std::io::stdout());
            return Ok(());
        }
        Command::Daemon(foreground) => return daemon::run_daemon(&cli.overrides, foreground, output).await,
        Command::Demo(args) => return demo::run(args, output).await,
        Command::Run(args) if args.is_direct() => return jobs::run_direct(args, output).await,
        _ => {}
    }
    let session = Session::open(&cli.overrides).await?;
    let result = with_session(cli.command, &session, output).await;
    session.close().await;
    result
}

async fn with_session(command: Command, session: &Session, output: &Output) -> Result<(), CliError> {
    let api = &session.api;
    match command {
        Command::Run(args) => jobs::run(api, args, output).await,
        Command::Chat(args) => jobs::chat(api, args, output).await,
        Command::Add { path, chunker, move_source } => models::add(api, &path, chunker, move_source, output).await,
        Command::Pull { model } => models::pull(api, &models::parse(&model)?, output).await,
        Command::Ls => models::list(api, output).await,
        Command::Show { model, tensors } => models::show(api, &models::parse(&model)?, tensors, output).await,
        Command::Rm { model } => models::remove(api, &models::parse(&model)?, output).await,
        Command::Gc => models::collect(api, output).await,
        Command::Ps => jobs::list(api, output).await,
        Command::Cancel { job } => jobs::cancel(api, job, output).await,
        Command::Peers => swarm::peers(api, output).await,
        Command::Connect { address } => swarm::connect(api, &address, output).await,
        Command::Id => swarm::id(api, output).await,
        Command::Hardware => swarm::hardware(api, output).await,
        // Dispatched before there is a session.
        Command::Completions { .. } | Command::Daemon(_) | Command::Demo(_) => Ok(()),
    }
}

/// A daemon to speak to: the one that runs, or one of the command's own.
#[derive(Debug)]
struct Session {
    api: Api,
    own: Option<Daemon>,
    /// Where a daemon that leaves nothing behind keeps its things.
    _throw_away: Option<TempDir>,
}

impl Session {
    async fn open(overrides: &Overrides) -> Result<Self, CliError> {
        let mut config = Config::load(overrides)?;
        match Api::of(&config.data_dir).await {
            Ok(api) => Ok(Self { api, own: None, _throw_away: None }),
            Err(ApiError::NoDaemon { .. }) => {
                // The command's own daemon takes whatever ports are free.
                config.api.listen.set_port(0);
                for address in &mut config.swarm.listen {
                    *address = daemon::any_port(address);
                }
                Self::with_own(&config, None).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A daemon that listens nowhere, runs nothing, and leaves nothing behind.
    async fn throw_away() -> Result<Self, CliError> {
        let directory = tempfile::tempdir().map_err(|source| CliError::File { path: std::env::temp_dir(), source })?;
        let mut config = Config { data_dir: directory.path().to_owned(), ..Config::default() };
        config.api.listen.set_port(0);
        config.swarm.listen.clear();
        config.swarm.mdns = false;
        config.jobs.serve = false;
        Self::with_own(&config, Some(directory)).await
    }

    async fn with_own(config: &Config, throw_away: Option<TempDir>) -> Result<Self, CliError> {
        let own = Daemon::start(config).await?;
        Ok(Self { api: Api::new(own.access().clone()), own: Some(own), _throw_away: throw_away })
    }

    async fn close(self) {
        if let Some(own) = self.own {
            own.stop().await;
        }
    }
}
