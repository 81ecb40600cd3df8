//! Which devices this machine has, and which of them this build can really compute on.
//!
//! [`probe`] names every backend. A device counts as usable only after a small graph has run on it, now and in this
//! process, and its numbers were compared with a host computation in f64; the same run measures how fast it multiplies
//! and how fast it reads memory. Everything else is listed too, with what was looked for and what is missing, because
//! "not listed" would not tell a person what to install.
//!
//! Finding a driver is not enough: a device that this build has no executor for says so. Nothing here runs a device's
//! graph anywhere else, and nothing is remembered from earlier runs.

use std::fmt;

mod cpu;
mod proof;
mod search;

pub use search::Places;

/// What a device is driven by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    /// The processor.
    Cpu,
    /// NVIDIA's CUDA.
    Cuda,
    /// AMD's ROCm.
    Rocm,
    /// Apple's Metal Performance Shaders.
    Mps,
    /// Intel's OpenVINO.
    OpenVino,
    /// Qualcomm's AI Engine Direct.
    Qnn,
}

impl Backend {
    /// Every backend, in the order of a listing.
    pub const ALL: [Self; 6] = [Self::Cpu, Self::Cuda, Self::Rocm, Self::Mps, Self::OpenVino, Self::Qnn];
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
            Self::Rocm => "ROCm",
            Self::Mps => "MPS",
            Self::OpenVino => "OpenVINO",
            Self::Qnn => "QNN",
        })
    }
}

/// A device, or a backend without one.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its backend.
    pub backend: Backend,
    /// Its name, as the vendor gives it; the backend's name when no device was found.
    pub name: String,
    /// Memory that it computes from, in bytes; 0 when not known.
    pub memory_bytes: u64,
    /// Instruction sets that decide its speed; empty when not known.
    pub instructions: Vec<&'static str>,
    /// What a run on it measured just now, or why it cannot be used.
    pub proof: Result<Proof, Unavailable>,
}

impl Device {
    fn missing(backend: Backend, reason: Unavailable) -> Self {
        Self { backend, name: backend.to_string(), memory_bytes: 0, instructions: Vec::new(), proof: Err(reason) }
    }
}

/// What a run on a device measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proof {
    /// 10^9 floating-point operations a second in an f32 matrix product.
    pub gflops: f64,
    /// 10^9 bytes a second, reading memory.
    pub gbytes_per_second: f64,
    /// Largest absolute difference from the same products in f64.
    pub max_error: f64,
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unavailable {
    /// Nothing of the kind is on this machine.
    #[error("none found: looked for {looked_for}; {advice}")]
    NotFound {
        /// Files and libraries that were looked for.
        looked_for: String,
        /// What to install, or where such a device is found.
        advice: &'static str,
    },
    /// The hardware is there and the software that drives it is not.
    #[error("found {found}, but not {missing}; {advice}")]
    NoDriver {
        /// What was found.
        found: String,
        /// What was not.
        missing: String,
        /// What to install.
        advice: &'static str,
    },
    /// The machine could, and this build cannot.
    #[error("found {found}, but this build has no {backend} executor")]
    NoExecutor {
        /// What was found.
        found: String,
        /// The executor it would take.
        backend: Backend,
    },
    /// The backend does not exist on this operating system or processor.
    #[error("{backend} exists on {needs} only; this is {here}")]
    OtherSystem {
        /// The backend.
        backend: Backend,
        /// Where it exists.
        needs: &'static str,
        /// What this machine is.
        here: String,
    },
    /// The run failed.
    #[error("the proof run failed: {message}")]
    Failed {
        /// What the executor said.
        message: String,
    },
    /// The run gave another number of values than asked for.
    #[error("the proof run gave {found} values where {expected} were due")]
    WrongCount {
        /// Values due.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// The run gave wrong numbers.
    #[error("the proof run gave {found} at {index} where {expected} was due (tolerance {tolerance}): not used")]
    WrongResult {
        /// Place of the worst value in the result.
        index: usize,
        /// The value in f64.
        expected: f64,
        /// The device's value.
        found: f64,
        /// The difference that is accepted.
        tolerance: f64,
    },
}

/// Every backend's devices, proven or with the reason why not; takes about a third of a second.
///
/// There is at least one entry for each of [`Backend::ALL`], in that order. Drivers are looked for in the system's
/// usual places; [`probe_in`] looks elsewhere too.
pub fn probe() -> Vec<Device> {
    probe_in(&Places::system())
}

/// As [`probe`], looking for drivers in `places`.
pub fn probe_in(places: &Places) -> Vec<Device> {
    let mut devices = vec![cpu::probe()];
    devices.extend(search::cuda(places));
    devices.extend(search::rocm(places));
    devices.push(search::mps());
    devices.push(search::openvino(places));
    devices.push(search::qnn(places));
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_is_listed_and_the_processor_is_proven() {
        let devices = probe();
        let mut listed: Vec<Backend> = devices.iter().map(|device| device.backend).collect();
        listed.dedup();
        assert_eq!(listed, Backend::ALL);
        for device in &devices {
            assert!(!device.name.is_empty());
            match &device.proof {
                Ok(proof) => {
                    assert!(proof.gflops > 0.0 && proof.gbytes_per_second > 0.0, "{proof:?}");
                    assert!(proof.max_error <= proof::TOLERANCE, "{proof:?}");
                }
                Err(reason) => assert!(!reason.to_string().is_empty()),
            }
        }
        assert!(devices[0].proof.is_ok(), "{:?}", devices[0]);
        assert!(devices[0].memory_bytes > 0, "{:?}", devices[0]);
    }
}
