//! A node in a process of its own, as the demo and the tests start it: on loopback, on whatever ports are free, and
//! gone when whoever started it is.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::api::{Access, Api, Ready};

/// A node process that does not start or stop as it should.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program cannot be run.
    #[error("cannot run {}: {source}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended, or said something else, before it was ready.
    #[error("the node in {} did not become ready; its errors stand above", data_dir.display())]
    NotReady {
        /// Its data directory.
        data_dir: PathBuf,
    },
    /// It did not end in order.
    #[error("the node in {} ended with {status}", data_dir.display())]
    Ended {
        /// Its data directory.
        data_dir: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
}

/// How a node process runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `accel-cli`, whose hidden `daemon` command is what `accel-node` is.
    pub program: PathBuf,
    /// Where it keeps its things.
    pub data_dir: PathBuf,
    /// Whether it runs models.
    pub serve: bool,
    /// Peers that it joins by.
    pub bootstrap: Vec<String>,
    /// Whether it looks for peers on the local network.
    pub mdns: bool,
    /// What it logs to standard error.
    pub log: String,
    /// Further arguments.
    pub arguments: Vec<String>,
}

/// A running node process.
#[derive(Debug)]
pub struct NodeProcess {
    process: Child,
    data_dir: PathBuf,
    api: Api,
    ready: Ready,
}

impl NodeProcess {
    /// Starts a node and waits until it is ready.
    ///
    /// # Errors
    /// When the program cannot be run or the node does not start.
    pub async fn start(settings: &Settings) -> Result<Self, ProcessError> {
        let Settings { program, data_dir, serve, bootstrap, mdns, log, arguments } = settings;
        let run = |source| ProcessError::Run { program: program.clone(), source };
        let mut command = Command::new(program);
        command
            .args(["daemon", "--attached", "--json", "--api", "127.0.0.1:0"])
            .args(["--listen", "/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/udp/0/quic-v1", "--log", log])
            .args(["--serve", &serve.to_string(), "--mdns", &mdns.to_string()])
            .args(arguments)
            .arg("--data-dir")
            .arg(data_dir);
        if !bootstrap.is_empty() {
            command.args(["--bootstrap", &bootstrap.join(",")]);
        }
        // A person's own settings are for the person's own node. With its standard input closed the process stops.
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ACCEL_")) {
            command.env_remove(variable);
        }
        command.env("XDG_CONFIG_HOME", data_dir).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().map_err(run)?;
        let ready = read_ready(&mut process).await.map_err(run)?;
        let ready = ready.ok_or_else(|| ProcessError::NotReady { data_dir: data_dir.clone() })?;
        let api = Api::new(Access { address: ready.api, token: ready.token.clone() });
        Ok(Self { process, data_dir: data_dir.clone(), api, ready })
    }

    /// Its loopback interface.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Its id.
    pub fn peer(&self) -> &str {
        &self.ready.peer
    }

    /// Where it listens, with its id.
    pub fn addresses(&self) -> &[String] {
        &self.ready.addresses
    }

    /// Its process id; none when it has ended.
    pub fn process_id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Stops it in order and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end with success.
    pub async fn stop(mut self) -> Result<(), ProcessError> {
        drop(self.process.stdin.take());
        let run = |source| ProcessError::Run { program: self.data_dir.clone(), source };
        let status = self.process.wait().await.map_err(run)?;
        if status.success() { Ok(()) } else { Err(ProcessError::Ended { data_dir: self.data_dir, status }) }
    }

    /// Kills it, as a power cut would, and waits until it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(mut self) -> std::io::Result<()> {
        self.process.kill().await
    }
}

async fn read_ready(process: &mut Child) -> std::io::Result<Option<Ready>> {
    let Some(stdout) = process.stdout.take() else { return Ok(None) };
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line).ok())
}
