//! What travels over the loopback interface, as both sides see it.

use std::path::PathBuf;

use crate::hub::HubAccess;
pub use crate::shares::Split;

use accel_models::usage::ExpertPair;
use accel_protocol::{Generation, Input, JobError, JobId, ModelName, ModelRef, Task, TaskOptions};
use serde::{Deserialize, Serialize};

/// One line of a long answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line<P, R> {
    /// Something happened.
    Progress(P),
    /// It is done.
    Result(R),
    /// It failed.
    Error(JobError),
}

/// How far an import or a fetch is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Transfer {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all, as far as known.
    pub total_bytes: u64,
    /// Peers that send.
    pub peers: usize,
}

/// The node itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub peer: String,
    /// Where it listens, with its id.
    pub addresses: Vec<String>,
    /// The name of the private swarm that it is in; none in the public one.
    pub swarm: Option<String>,
    /// How many times it has been started in its process: once more whenever it goes into another swarm.
    pub starts: u64,
    /// Whether others can open connections to it, as far as they have said: `public`, `private` or `unknown`.
    pub reachability: Reach,
    /// The program and version.
    pub agent: String,
    /// The arithmetic it computes with.
    pub arithmetic: String,
    /// Whether it runs jobs.
    pub serves_jobs: bool,
    /// Jobs running and queued.
    pub load: accel_protocol::Load,
    /// Bytes of blocks.
    pub used_bytes: u64,
    /// Bytes of blocks at most.
    pub quota_bytes: u64,
}

/// Whether others can open connections to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Nobody has tried.
    Unknown,
    /// They can.
    Public,
    /// They cannot, and no relay passes connections on to it.
    Private,
    /// They cannot, but a relay passes connections on to it.
    Relayed,
}

/// A request to import.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddRequest {
    /// A file or directory on the daemon's machine; absolute.
    pub path: PathBuf,
    /// How to cut it.
    pub chunker: Cut,
    /// Release the source when all is imported.
    pub move_source: bool,
}

/// How files are cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// At tensor boundaries for weights, 1 MiB for the rest.
    Tensor,
    /// 1 MiB everywhere, 1024 links to a node: what Kubo's and Helia's current defaults give.
    Fixed,
    /// 256 KiB everywhere, 174 links to a node: what older releases of Kubo give for CIDs of version 1.
    Fixed256k,
}

/// What an import did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Added {
    /// The root.
    pub cid: String,
    /// What it is called here.
    pub name: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Blocks that were not here before.
    pub new_blocks: u64,
    /// Their bytes.
    pub new_bytes: u64,
}

/// What a fetch did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pulled {
    /// The root.
    pub cid: String,
    /// Bytes that came from peers.
    pub fetched_bytes: u64,
    /// Bytes that were here already.
    pub here_bytes: u64,
    /// Blocks that came twice.
    pub duplicate_blocks: u64,
    /// Who sent how many bytes, peers and gateways; a missing name means bitswap, which does not say.
    pub peers: Vec<(Option<String>, u64)>,
    /// How long it took.
    pub seconds: f64,
}

/// A model of the Hugging Face hub to download and import.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HubBody {
    /// `hf://org/name`, with `@revision` or `:QUANT` behind it.
    pub model: String,
    /// Which hub, and by what token; as the daemon's own environment says where it is left out.
    #[serde(default)]
    pub access: Option<HubAccess>,
}

/// What a download from the hub did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HubPulled {
    /// The root.
    pub cid: String,
    /// What it is called here now.
    pub name: ModelName,
    /// The commit of the hub's repository.
    pub commit: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that the hub sent.
    pub downloaded_bytes: u64,
    /// Blocks that were not here before.
    pub new_blocks: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A pinned model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelView {
    /// The root.
    pub cid: String,
    /// What its file or directory was called.
    pub name: String,
    /// What it is called here.
    pub names: Vec<ModelName>,
    /// What it is.
    pub kind: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether all of it is here.
    pub complete: bool,
    /// Whether it is in memory.
    pub loaded: bool,
}

/// A model and its parts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelParts {
    /// The root.
    pub cid: String,
    /// What it is.
    pub kind: String,
    /// Its files.
    pub files: Vec<FilePart>,
    /// Its tensors.
    pub tensors: Vec<TensorPart>,
    /// Files whose tensors are not known, because their headers are not here.
    pub unread: Vec<String>,
}

/// A file of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilePart {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// Of those, bytes that are here.
    pub here_bytes: u64,
}

/// What a CID names, whatever it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContentsView {
    /// Whether it is a directory, and not one file.
    pub is_directory: bool,
    /// Its files.
    pub files: Vec<FilePart>,
}

/// A tensor of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TensorPart {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: String,
    /// Its bytes.
    pub bytes: u64,
    /// Of those, bytes that are here.
    pub here_bytes: u64,
}

/// A model in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadedView {
    /// The model.
    pub model: ModelRef,
    /// What it is called here.
    pub names: Vec<ModelName>,
    /// Bytes of it in memory.
    pub bytes: u64,
    /// Milliseconds since its last job came or went.
    pub idle_ms: u64,
    /// Whether a job is at work on it.
    pub busy: bool,
    /// Milliseconds that it stays if no job comes; none where it stays, as long as there is room.
    pub stays_ms: Option<u64>,
}

/// How long a model is to stay in memory.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadBody {
    /// Seconds without a job; 0 for as long as there is room, and as the configuration says where nothing is said.
    pub keep_alive_seconds: Option<u64>,
}

/// What was freed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FreedView {
    /// Blocks.
    pub blocks: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A job as this node's own interface takes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobBody {
    /// The job's name; one is made up when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// The model.
    pub model: ModelRef,
    /// What to do.
    #[serde(default = "text_generation")]
    pub task: Task,
    /// What to do it on.
    pub input: Input,
    /// How to choose tokens.
    #[serde(default)]
    pub generation: Generation,
    /// How to do a task that chooses none.
    #[serde(default)]
    pub options: TaskOptions,
    /// Milliseconds within which the job must end.
    #[serde(default = "default_deadline_ms")]
    pub deadline_ms: u64,
    /// The peer to try first; the best one when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

fn text_generation() -> Task {
    Task::TextGeneration
}

/// Ten minutes.
pub fn default_deadline_ms() -> u64 {
    600_000
}

/// A question how a model would run, or a wish how it is to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanBody {
    /// Which way.
    pub split: Split,
    /// Peers that are to take part; everybody who offers to where none is named.
    pub peers: Vec<String>,
    /// Whether this node is to have no experts of its own.
    pub experts_elsewhere: bool,
    /// Whether the model is to run so from now on, until the node stops.
    pub keep: bool,
}

/// How a model would run, and how it does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanView {
    /// The model.
    pub model: String,
    /// Ways to run it; the first is on this node alone.
    pub ways: Vec<WayView>,
    /// The one that is taken; none where it cannot be run.
    pub chosen: Option<usize>,
    /// Why that one.
    pub why: String,
}

/// One way to run a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WayView {
    /// What kind.
    pub split: Split,
    /// Who has what; the first is this node.
    pub members: Vec<MemberView>,
    /// Experts that two nodes have, because they are used most.
    pub replicas: usize,
    /// How fast it would be; none where it cannot be done.
    pub prediction: Option<PredictionView>,
    /// Why it cannot be done.
    pub impossible: Option<String>,
}

/// What one node has of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberView {
    /// The peer; none for this node.
    pub peer: Option<String>,
    /// Layers without their experts.
    pub layers: usize,
    /// The first of them.
    pub first_layer: Option<usize>,
    /// Experts of all layers.
    pub experts: usize,
    /// Bytes in memory.
    pub bytes: u64,
    /// Bytes to fetch, as far as is known.
    pub fetch_bytes: u64,
}

/// How fast a model would run, and what that is made of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PredictionView {
    /// Tokens a second of one answer.
    pub tokens_per_second: f64,
    /// Milliseconds to the first token.
    pub first_token_ms: f64,
    /// Tokens of the prompt that this is for.
    pub prompt_tokens: usize,
    /// Milliseconds a token that this node computes.
    pub here_ms: f64,
    /// Milliseconds a token that it waits for others to compute.
    pub elsewhere_ms: f64,
    /// Milliseconds a token on the way there and back.
    pub round_trips_ms: f64,
    /// Round trips of a token.
    pub round_trips: f64,
    /// Bytes a token that travel.
    pub bytes: f64,
}

/// A model that is at work on several machines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SpreadView {
    /// The model.
    pub model: String,
    /// Experts of this node.
    pub experts_here: usize,
    /// Experts of others that this node stood in for so far.
    pub borrowed: u64,
    /// Layers that were asked of others.
    pub rounds: u64,
    /// Of those, how many were asked again.
    pub repeats: u64,
    /// Rows that others were asked for.
    pub rows: u64,
    /// Bytes of rows both ways.
    pub bytes: u64,
    /// The others.
    pub peers: Vec<HolderView>,
    /// Layers that others work out.
    pub stages: Vec<StageView>,
}

/// Layers of a model that others work out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageView {
    /// The first of them, counted through all stacks.
    pub first_layer: usize,
    /// How many.
    pub layers: usize,
    /// The peer that has them now.
    pub peer: Option<String>,
    /// Whether this node has taken them over.
    pub here: bool,
    /// Passes that went through them.
    pub passes: u64,
    /// Bytes of rows both ways.
    pub bytes: u64,
    /// Milliseconds that passes took there, the time included that they waited for others.
    pub busy_ms: f64,
    /// Times that they lost their peer.
    pub losses: u64,
    /// Milliseconds of a pass beside that.
    pub transport_ms: f64,
}

/// A peer that holds experts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HolderView {
    /// The peer.
    pub peer: String,
    /// Whether it can be asked.
    pub open: bool,
    /// Experts that it holds.
    pub experts: usize,
    /// Milliseconds of a call beside its rows.
    pub transport_ms: f64,
    /// Milliseconds of a row.
    pub row_ms: f64,
}

/// What a model's experts were chosen for, in all runs on this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExpertsView {
    /// The model.
    pub model: String,
    /// Its layers with experts; none of a model that has not run on this node.
    pub layers: Vec<LayerExpertsView>,
}

/// What the experts of a layer were chosen for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerExpertsView {
    /// Its number among all layers of the model.
    pub layer: usize,
    /// How many experts it has.
    pub experts: usize,
    /// How many are chosen for each token.
    pub chosen: usize,
    /// Tokens that it has read.
    pub tokens: u64,
    /// The entropy of the shares, in bits.
    pub entropy_bits: f64,
    /// The same as a part of the most that it can be.
    pub evenness: f64,
    /// Tokens of each expert.
    pub routed: Vec<u64>,
    /// Each expert's part of all choices.
    pub shares: Vec<f64>,
    /// The experts, most chosen first.
    pub by_use: Vec<usize>,
    /// The lift of every pair if experts were chosen evenly; none where pairs are not counted.
    pub even_lift: Option<f64>,
    /// Some pairs that go together most beyond chance.
    pub pairs: Vec<ExpertPair>,
    /// For each expert the tokens that it and each later one were both chosen for; none where pairs are not counted.
    pub together: Option<Vec<Vec<u64>>>,
}
