//! What a peer can do: its devices, what it holds, how busy it is.

use serde::{Deserialize, Serialize};

use crate::model::ModelRef;

/// The name of one exact way to compute.
///
/// Two peers with equal ids give equal bits for equal weights and inputs, so a job may move between them in the middle
/// of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Arithmetic(pub String);

/// The backends that a device may belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The processor.
    Cpu,
    /// NVIDIA.
    Cuda,
    /// AMD.
    Rocm,
    /// Apple.
    Mps,
    /// Intel OpenVINO.
    OpenVino,
    /// Qualcomm AI Engine Direct.
    Qnn,
}

/// What a run on a device measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// 10^9 floating-point operations a second, f32 matrix product.
    pub gflops: f64,
    /// 10^9 bytes a second, reading memory.
    pub gbytes_per_second: f64,
    /// Largest absolute difference from the reference result.
    pub max_error: f64,
}

/// One device of a peer: either proven by a run, or not available, with the reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its backend.
    pub backend: Backend,
    /// Its name, as the vendor gives it; the backend's name when no device was found.
    pub name: String,
    /// Memory that it computes from, in bytes, or that models may take of it where that is less; 0 when not known.
    pub memory_bytes: u64,
    /// The measured proof, or why the device cannot be used, in words.
    pub proof: Result<Proof, String>,
}

/// A model whose blocks a peer holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldModel {
    /// Its name.
    pub model: ModelRef,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether it is in memory, ready to run.
    pub loaded: bool,
}

/// How busy a peer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Jobs being worked on.
    pub running: u32,
    /// Jobs waiting.
    pub queued: u32,
    /// Jobs that it takes at once, running and queued.
    pub capacity: u32,
}

/// What a peer tells the swarm about itself.
///
/// The transport signs the message; the number lets a listener drop what is older than what it knows, and the expiry
/// what nobody renewed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advert {
    /// Grows with each advert of this peer, over restarts too.
    pub number: u64,
    /// Milliseconds after the Unix epoch from which the advert counts for nothing.
    pub expires_unix_ms: u64,
    /// The program and version.
    pub agent: String,
    /// Where it listens, as multiaddresses, so that whoever hears the advert can dial it.
    pub addresses: Vec<String>,
    /// Whether it takes jobs from other peers.
    pub serves_jobs: bool,
    /// The arithmetic it computes with.
    pub arithmetic: Arithmetic,
    /// Devices that were proven.
    pub devices: Vec<Device>,
    /// Models it holds.
    pub models: Vec<HeldModel>,
    /// Bytes it may still store.
    pub free_bytes: u64,
    /// How busy it is.
    pub load: Load,
}
