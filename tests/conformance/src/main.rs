//! Runs reference cases: `run-cases --help`.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    accel_conformance::command::main()
}
