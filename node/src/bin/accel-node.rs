//! `accel-node`: the daemon.

use std::process::ExitCode;

use accel_node::cli::{self, Foreground};
use accel_node::config::Overrides;
use clap::Parser;

/// Join a swarm: hold models, run jobs, and serve this machine's programs on loopback.
///
/// Stops on SIGTERM or SIGINT: running jobs finish or are handed over to other peers; a second signal ends it at once.
#[derive(Debug, Parser)]
#[command(name = "accel-node", version)]
struct Arguments {
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    foreground: Foreground,
    /// Print how to reach the node as JSON once it is ready
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Arguments { overrides, foreground, json } = Arguments::parse();
    ExitCode::from(cli::run_node(&overrides, foreground, json))
}
