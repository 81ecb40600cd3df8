//! `accel-cli` as a process, as people and scripts run it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::cluster::Cluster;
use crate::machine::Machine;

/// A command that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The command line of a person whose home is empty, on one data directory.
#[derive(Clone, Debug)]
pub struct CommandLine {
    program: PathBuf,
    data_dir: PathBuf,
    home: PathBuf,
    /// Where commands are given.
    here: PathBuf,
}

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its data.
    pub stdout: String,
    /// What it told besides.
    pub stderr: String,
}

impl Ran {
    /// The one JSON value on standard output.
    ///
    /// # Errors
    /// When there is none, or more than that.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not one JSON value: {self:?}"))
    }

    /// Standard output of a command that must have succeeded without a further word.
    ///
    /// # Errors
    /// When it failed or said something on standard error.
    pub fn data(&self) -> Result<&str> {
        ensure!(self.code == Some(0) && self.stderr.is_empty(), "{self:?}");
        Ok(&self.stdout)
    }
}

impl CommandLine {
    /// Commands on `data_dir`.
    pub fn new(cluster: &Cluster, data_dir: &Path) -> Self {
        let (home, here) = (cluster.path("home"), cluster.path(""));
        Self { program: cluster.program().clone(), data_dir: data_dir.to_owned(), home, here }
    }

    /// Commands on `data_dir` that are given on another machine.
    pub fn on(machine: &Machine, cluster: &Cluster, data_dir: &Path) -> Self {
        Self { program: machine.program().clone(), ..Self::new(cluster, data_dir) }
    }

    /// A command that is ready to run, with its streams in pipes. It ends with whoever started it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--data-dir").arg(&self.data_dir).current_dir(&self.here);
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ACCEL_")) {
            command.env_remove(variable);
        }
        for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"] {
            command.env(variable, &self.home);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be run or hangs.
    pub async fn run(&self, arguments: &[&str]) -> Result<Ran> {
        ran(self.command(arguments).spawn()?).await
    }

    /// Runs a command with `input` on its standard input.
    ///
    /// # Errors
    /// As [`CommandLine::run`].
    pub async fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<Ran> {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        ran(child).await
    }
}

/// What a running command leaves behind when it has ended.
///
/// # Errors
/// When it hangs.
pub async fn ran(child: Child) -> Result<Ran> {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.context("a command hangs")??;
    Ok(Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}
