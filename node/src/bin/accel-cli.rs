//! `accel-cli`: the command line.

use std::process::ExitCode;

use accel_node::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(cli::run(Cli::parse()))
}
