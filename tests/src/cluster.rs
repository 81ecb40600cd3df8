//! A swarm of node processes on loopback, in a directory that vanishes with it.

use std::path::PathBuf;
use std::time::Duration;

use accel_node::api::{AddRequest, Api, Cut, JobBody};
use accel_node::process::{NodeProcess, Settings};
use accel_protocol::{EventRecord, Generation, Input, JobEvent, Message, ModelRef, Role, Task, TaskOptions};
use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use tempfile::TempDir;

const LOOK_AGAIN: Duration = Duration::from_millis(20);
const A_MINUTE: Duration = Duration::from_secs(60);

/// A directory for nodes, and the program that they run.
#[derive(Debug)]
pub struct Cluster {
    directory: TempDir,
    program: PathBuf,
}

impl Cluster {
    /// An empty swarm.
    ///
    /// # Errors
    /// When `accel-cli` has not been built beside this program.
    pub fn new() -> Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        // Tests lie in target/release/deps, measuring programs in target/release.
        let program = own
            .ancestors()
            .skip(1)
            .take(2)
            .map(|directory| directory.join("accel-cli"))
            .find(|path| path.exists())
            .with_context(|| format!("no accel-cli beside {}: cargo build --release -p accel-node", own.display()))?;
        Ok(Self { directory: tempfile::tempdir()?, program })
    }

    /// The program.
    pub fn program(&self) -> &PathBuf {
        &self.program
    }

    /// A path in the swarm's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The data directory of a node of that name, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        std::fs::create_dir_all(self.path(name))?;
        Ok(self.path(name))
    }

    /// How a node of that name is started.
    pub fn settings(&self, name: &str, serve: bool, join: &[&NodeProcess]) -> Settings {
        Settings {
            program: self.program.clone(),
            data_dir: self.path(name),
            serve,
            bootstrap: join.iter().flat_map(|node| node.addresses().iter().cloned()).collect(),
            mdns: false,
            log: "accel_node=warn".to_owned(),
            arguments: Vec::new(),
        }
    }

    /// Starts a node that joins by `join`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(&self, name: &str, serve: bool, join: &[&NodeProcess]) -> Result<NodeProcess> {
        Ok(NodeProcess::start(&self.settings(name, serve, join)).await?)
    }
}

/// The model that `tests/run` has installed.
///
/// # Errors
/// When `ACCEL_TEST_MODEL` does not name it.
pub fn model_file() -> Result<PathBuf> {
    installed("ACCEL_TEST_MODEL")
}

/// What `tests/run` has installed and names by `variable`.
///
/// # Errors
/// When the variable is not there.
pub fn installed(variable: &str) -> Result<PathBuf> {
    let path =
        std::env::var_os(variable).ok_or_else(|| anyhow!("{variable} is not set: run the tests by tests/run"))?;
    Ok(path.into())
}

/// The address of a node that every implementation of IPFS can dial.
///
/// # Errors
/// When it does not listen on TCP.
pub fn tcp(node: &NodeProcess) -> Result<&str> {
    let address = node.addresses().iter().find(|address| address.contains("/tcp/"));
    address.map(String::as_str).context("the node does not listen on TCP")
}

/// Imports a file or directory.
///
/// # Errors
/// When the node refuses.
pub async fn import(node: &NodeProcess, path: PathBuf) -> Result<ModelRef> {
    import_cut(node, path, Cut::Tensor).await
}

/// Imports a file or directory, cut in this way.
///
/// # Errors
/// When the node refuses.
pub async fn import_cut(node: &NodeProcess, path: PathBuf, chunker: Cut) -> Result<ModelRef> {
    let request = AddRequest { path, chunker, move_source: false };
    Ok(node.api().add(&request, |_| {}).await?.cid.parse()?)
}

/// A question in a conversation.
pub fn question(model: &ModelRef, text: &str, generation: Generation) -> JobBody {
    JobBody {
        id: None,
        model: model.clone(),
        task: Task::TextGeneration,
        input: Input::Chat(vec![Message { role: Role::User, content: text.to_owned() }]),
        generation,
        options: TaskOptions::default(),
        deadline_ms: 300_000,
        peer: None,
    }
}

/// All events of a job.
///
/// # Errors
/// When the node refuses or the stream breaks.
pub async fn events(api: &Api, body: &JobBody) -> Result<Vec<JobEvent>> {
    let stream = api.submit(body).await?;
    let records: Vec<Result<EventRecord, _>> = stream.collect().await;
    let mut events = Vec::new();
    for (number, record) in records.into_iter().enumerate() {
        let record = record?;
        anyhow::ensure!(record.number == number as u64, "event {number} has number {}", record.number);
        events.push(record.event);
    }
    anyhow::ensure!(events.last().is_some_and(JobEvent::is_last), "the stream has no end: {events:?}");
    Ok(events)
}

/// Waits until something is so that tells nobody when it happens.
///
/// # Errors
/// When `is_so` fails, or it is not so within a minute.
pub async fn eventually(what: &str, is_so: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let wait = async {
        let mut look = tokio::time::interval(LOOK_AGAIN);
        while !is_so().await? {
            look.tick().await;
        }
        Ok(())
    };
    tokio::time::timeout(A_MINUTE, wait).await.map_err(|_| anyhow!("not within a minute: {what}"))?
}

/// The text of an answer.
pub fn text(events: &[JobEvent]) -> String {
    events
        .iter()
        .filter_map(|event| match event {
            JobEvent::Token { text, .. } | JobEvent::Done { text, .. } => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

/// The tokens of an answer.
pub fn tokens(events: &[JobEvent]) -> Vec<u32> {
    events
        .iter()
        .filter_map(|event| match event {
            JobEvent::Token { id, .. } => Some(*id),
            _ => None,
        })
        .collect()
}
