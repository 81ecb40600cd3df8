//! The jobs that a node knows: its own, those it runs for peers, and those it has handed to peers.

mod log;

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel_protocol::limits::EVENTS_KEPT_MS;
use accel_protocol::{JobError, JobEvent, JobId, JobSpec, JobState, JobStatus};
use libp2p::PeerId;
use tokio_util::sync::CancellationToken;

pub use log::EventLog;

/// Who may read a job's events and cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whoever speaks to this node's own interface.
    Local,
    /// The peer that submitted it.
    Peer(PeerId),
}

/// One job.
#[derive(Debug)]
pub struct Job {
    /// What is asked.
    pub spec: JobSpec,
    /// Who asked.
    pub owner: Owner,
    /// What has happened.
    pub log: EventLog,
    /// Set when the job should end early.
    pub cancel: CancellationToken,
    accepted: Instant,
    runs_on: Mutex<Option<PeerId>>,
    holds: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    /// Adds an event. Nothing follows a last event: it is dropped, and the answer is `false`.
    ///
    /// Who sees the last event finds everything that the job held free.
    pub fn append(&self, event: JobEvent) -> bool {
        let last = event.is_last();
        if last {
            self.give_back();
        }
        let added = self.log.append(event);
        if last {
            // What it came to hold meanwhile.
            self.give_back();
        }
        added
    }

    /// Keeps `held`, a model in memory say, until the job ends or gives it back.
    pub fn hold(&self, held: impl Any + Send) {
        let before = self.holds.lock().unwrap_or_else(PoisonError::into_inner).replace(Box::new(held));
        drop(before);
        if self.log.ended().is_some() {
            self.give_back();
        }
    }

    /// Gives back what it holds.
    pub fn give_back(&self) {
        let held = self.holds.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(held);
    }

    /// When the job must have ended.
    pub fn deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.accepted + Duration::from_millis(self.spec.deadline_ms))
    }

    /// When it was taken on.
    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// Notes which peer works on it; none means this node.
    pub fn set_peer(&self, peer: Option<PeerId>) {
        *self.runs_on.lock().unwrap_or_else(PoisonError::into_inner) = peer;
    }

    /// The peer that works on it; none means this node.
    pub fn peer(&self) -> Option<PeerId> {
        *self.runs_on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the job with an error, unless it has ended.
    pub fn fail(&self, error: JobError) {
        self.append(JobEvent::Failed { error });
        self.cancel.cancel();
    }

    /// Ends the job because somebody asked, unless it has ended.
    pub fn stop(&self) {
        self.append(JobEvent::Cancelled);
        self.cancel.cancel();
    }

    /// About what it takes to remember it.
    fn bytes(&self) -> usize {
        let input = usize::try_from(self.spec.input.bytes()).unwrap_or(usize::MAX);
        input + 4 * self.spec.prior.len() + self.log.bytes()
    }

    /// The job as `ps` shows it.
    pub fn status(&self) -> JobStatus {
        JobStatus {
            id: self.spec.id,
            model: self.spec.model.clone(),
            state: self.log.state(),
            tokens: self.log.tokens(),
            peer: self.peer().map(|peer| peer.to_string()),
            age_ms: u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Jobs remembered at most, ended ones included, and about how many bytes of them; beyond that the ones that ended
/// first are forgotten early.
pub const REMEMBERED: usize = 4096;
const REMEMBERED_BYTES: usize = 256 << 20;

/// All jobs. Clones share one table.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    table: Arc<Mutex<HashMap<JobId, Arc<Job>>>>,
}

/// What became of a submission.
#[derive(Debug)]
pub enum Entered {
    /// The job is new.
    New(Arc<Job>),
    /// The same owner has submitted it before.
    Known(Arc<Job>),
    /// The id belongs to somebody else's job.
    Taken,
}

impl Jobs {
    fn table(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Job>>> {
        // Entries are inserted and removed whole, so a panic elsewhere leaves nothing half-done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a job, once for each id.
    pub fn enter(&self, spec: JobSpec, owner: Owner) -> Entered {
        let mut table = self.table();
        if let Some(known) = table.get(&spec.id) {
            return if known.owner == owner { Entered::Known(known.clone()) } else { Entered::Taken };
        }
        forget_ended(&mut table);
        let job = Arc::new(Job {
            owner,
            log: EventLog::new(u32::try_from(spec.prior.len()).unwrap_or(u32::MAX)),
            cancel: CancellationToken::new(),
            accepted: Instant::now(),
            runs_on: Mutex::new(None),
            holds: Mutex::new(None),
            spec,
        });
        table.insert(job.spec.id, job.clone());
        Entered::New(job)
    }

    /// The job of that name, for its owner; whoever speaks to this node's own interface may see all.
    pub fn get(&self, id: JobId, asker: Owner) -> Option<Arc<Job>> {
        self.table().get(&id).filter(|job| asker == Owner::Local || job.owner == asker).cloned()
    }

    /// Jobs that have not ended, and those that ended a short while ago.
    pub fn all(&self) -> Vec<Arc<Job>> {
        let mut table = self.table();
        forget_ended(&mut table);
        let mut all: Vec<_> = table.values().cloned().collect();
        all.sort_by_key(|job| job.accepted);
        all
    }

    /// How many jobs that have not ended belong to `owner`.
    pub fn open_of(&self, owner: Owner) -> usize {
        self.table().values().filter(|job| job.owner == owner && job.log.ended().is_none()).count()
    }

    /// How many of the jobs that this node itself runs are queued, and how many running, `beside` one that is to be placed.
    pub fn load(&self, beside: Option<JobId>) -> (u32, u32) {
        let own = |job: &&Arc<Job>| job.peer().is_none() && Some(job.spec.id) != beside;
        self.table().values().filter(own).map(|job| job.log.state()).fold(
            (0, 0),
            |(queued, running), state| match state {
                JobState::Queued => (queued + 1, running),
                JobState::Running => (queued, running + 1),
                JobState::Done | JobState::Failed | JobState::Cancelled => (queued, running),
            },
        )
    }
}

fn forget_ended(table: &mut HashMap<JobId, Arc<Job>>) {
    let kept = Duration::from_millis(EVENTS_KEPT_MS);
    table.retain(|_, job| job.log.ended().is_none_or(|ended| ended.elapsed() < kept));
    let mut bytes: usize = table.values().map(|job| job.bytes()).sum();
    while table.len() >= REMEMBERED || bytes > REMEMBERED_BYTES {
        let first = table.values().filter_map(|job| Some((job.log.ended()?, job.spec.id))).min();
        let Some(job) = first.and_then(|(_, id)| table.remove(&id)) else { return };
        bytes = bytes.saturating_sub(job.bytes());
    }
}
