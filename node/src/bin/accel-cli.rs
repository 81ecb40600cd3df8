//! `accel-cli`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(accel_node::cli::run())
}
