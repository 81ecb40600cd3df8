//! `accel-node`: the daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(accel_node::cli::run_node())
}
