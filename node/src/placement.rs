//! Where a job runs best: what speaks for one machine rather than another, by what they tell of themselves.
//!
//! What a machine tells may be wrong or out of date; one that has no room, or no time, says so when it is asked, and the job
//! goes on to the next.

use std::time::Duration;

use accel_protocol::{Backend, Device, Load};

/// A machine with this part of another's pace is slow beside it. Measurements of one machine differ by less, also while it
/// works.
const SLOW: f64 = 1.0 / 3.0;

/// How much of a model a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// In memory, ready to run.
    InMemory,
    /// On its disk.
    OnDisk,
    /// Nothing that it tells of.
    Nothing,
}

/// A machine that may run a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Whether it goes on exactly with what was answered so far.
    pub is_exact: bool,
    /// What it has of the model.
    pub held: Held,
    /// Bytes of memory that models may take there, if it tells.
    pub memory_bytes: Option<u64>,
    /// 10^9 bytes of weights a second that it goes through, as it measured.
    pub gbytes_per_second: Option<f64>,
    /// How busy it is.
    pub load: Load,
    /// The way there and back, if it was measured; none of it for this machine.
    pub away: Option<Duration>,
}

/// What a machine's processor offers, by which models run: bytes of memory, and 10^9 bytes of weights a second.
pub fn offered(devices: &[Device]) -> (Option<u64>, Option<f64>) {
    let processor = devices.iter().find(|device| device.backend == Backend::Cpu);
    let pace = processor.and_then(|device| Some(device.proof.as_ref().ok()?.gbytes_per_second));
    let memory = processor.map(|device| device.memory_bytes).filter(|bytes| *bytes > 0);
    (memory, pace.filter(|pace| pace.is_finite() && *pace > 0.0))
}

impl Candidate {
    /// Whether a model of so many bytes may fit.
    fn has_room(&self, model_bytes: Option<u64>) -> bool {
        self.held == Held::InMemory || self.memory_bytes.zip(model_bytes).is_none_or(|(memory, model)| model <= memory)
    }

    /// The part of its places that are taken.
    fn taken(&self) -> f64 {
        f64::from(self.load.running.saturating_add(self.load.queued)) / f64::from(self.load.capacity.max(1))
    }
}

/// The best of these for a job on a model of so many bytes, as far as they are known: one that goes on exactly, has the
/// model in memory, has room for it, has it on disk, is not slow beside another that is as good so far, is less busy, is
/// nearer; the first thing in which two differ decides.
pub fn best(candidates: &[Candidate], model_bytes: Option<u64>) -> Option<usize> {
    let first = |of: &Candidate| (!of.is_exact, of.held != Held::InMemory, !of.has_room(model_bytes), of.held);
    let ahead = candidates.iter().map(first).min()?;
    let left = || candidates.iter().enumerate().filter(|(_, of)| first(of) == ahead);
    let fastest = left().filter_map(|(_, of)| of.gbytes_per_second).fold(0.0, f64::max);
    let slow = |of: &Candidate| of.gbytes_per_second.is_some_and(|pace| pace < fastest * SLOW);
    let away = |of: &Candidate| of.away.unwrap_or(Duration::MAX);
    let better = |a: &Candidate, b: &Candidate| {
        slow(a).cmp(&slow(b)).then(a.taken().total_cmp(&b.taken())).then(away(a).cmp(&away(b)))
    };
    left().min_by(|(_, a), (_, b)| better(a, b)).map(|(number, _)| number)
}
