//! The thread that computes: one for each loaded model, and the only way from async code to compute.
//!
//! It owns its pipeline, takes commands between steps, and writes events straight to the jobs' logs. It ends when its
//! handle is dropped.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;

use accel_pipelines::{Pipeline, StepPlan};
use accel_protocol::{Arithmetic, ErrorCode, JobError, JobEvent, JobId, JobSpec};
use tokio::sync::oneshot;

use super::Continued;
use crate::jobs::Job;
use crate::memory::Reserved;
use crate::usage::Recording;

/// Commands that wait at most; admission keeps the number of jobs far below.
const COMMANDS: usize = 1024;
/// Tokens of a prompt that one step reads, so that other jobs' tokens are not held up for long.
const PREFILL_TOKENS: usize = 128;

/// A job as the thread gets it.
#[derive(Debug)]
pub struct Assignment {
    /// Where its events go.
    pub job: Arc<Job>,
    /// What to do: the job's own spec, with its input in place and the answer so far.
    pub spec: JobSpec,
    /// Set when the job's log holds the beginning of the answer.
    pub continues: Option<Continued>,
    /// Takes the job back before it has begun; dropped without a word when the thread breaks down.
    pub refuse: oneshot::Sender<JobError>,
}

/// An assignment on the thread, or on the way to it.
#[derive(Debug)]
struct Work {
    assignment: Assignment,
    /// Let go before the last event is told.
    at_work: RefCell<Option<Arc<()>>>,
}

/// A loaded model with its thread. Dropped, it waits until the thread has ended, if that has nothing to do: only then is its
/// memory free.
#[derive(Debug)]
pub struct Worker {
    // The order matters: without a sender the thread ends, and after that the memory is given back.
    inbox: Inbox,
    thread: Thread,
    memory: Reserved,
    arithmetic: Arithmetic,
}

#[derive(Debug)]
struct Thread {
    handle: Option<JoinHandle<()>>,
    /// Each job that the thread has not done with holds one.
    at_work: Arc<()>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        let own = |thread: &JoinHandle<()>| thread.thread().id() == std::thread::current().id();
        // One that is still at work on a job that was cancelled may wait for peers, and those for whoever drops this.
        let rests = Arc::strong_count(&self.at_work) == 1;
        if let Some(thread) = self.handle.take().filter(|thread| rests && !own(thread))
            && tokio::task::block_in_place(|| thread.join()).is_err()
        {
            tracing::error!("a model's thread broke down");
        }
    }
}

impl Worker {
    /// Starts the thread. What routers choose is recorded, if anything is.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(pipeline: Box<dyn Pipeline>, memory: Reserved, recording: Option<Recording>) -> std::io::Result<Self> {
        let (commands, inbox) = sync_channel(COMMANDS);
        let arithmetic = pipeline.arithmetic();
        let work = move || {
            accel_backends::cpu::give_way();
            Desk { pipeline, inbox, active: HashMap::new(), recording }.work();
            accel_backends::cpu::give_back();
        };
        let thread = std::thread::Builder::new().name("accel-worker".to_owned()).spawn(work)?;
        let at_work = Arc::new(());
        let inbox = Inbox { commands, at_work: at_work.clone() };
        Ok(Self { inbox, thread: Thread { handle: Some(thread), at_work }, memory, arithmetic })
    }

    /// Whether the thread is at work or waits for it; one that broke down takes no more jobs.
    pub fn is_alive(&self) -> bool {
        self.thread.handle.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The way to the thread.
    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// The arithmetic it computes with.
    pub fn arithmetic(&self) -> &Arithmetic {
        &self.arithmetic
    }

    /// Bytes of the model in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }
}

/// The way to a model's thread, which ends when all of these are gone.
#[derive(Clone, Debug)]
pub struct Inbox {
    commands: SyncSender<Work>,
    at_work: Arc<()>,
}

impl Inbox {
    /// Hands a job to the thread; its events appear in its log.
    pub fn take(self, assignment: Assignment) {
        let sent = self.commands.try_send(Work { assignment, at_work: RefCell::new(Some(self.at_work)) });
        if let Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) = sent {
            back.assignment.refuse(JobError::new(ErrorCode::OutOfResources, "the worker thread takes no more jobs"));
        }
    }
}

impl Assignment {
    /// Gives the job back, so that another place may take it.
    fn refuse(self, error: JobError) {
        if let Err(error) = self.refuse.send(error) {
            // Nobody waits for it any more.
            self.job.fail(error);
        }
    }

    /// An answer that goes on does not start again: whoever reads the log is told that it moved.
    fn continued(&self, event: JobEvent) -> JobEvent {
        match (event, &self.continues) {
            (JobEvent::Started { arithmetic, .. }, Some(continued)) => JobEvent::Moved {
                peer: continued.peer.to_string(),
                prior_tokens: u32::try_from(self.spec.prior.len()).unwrap_or(u32::MAX),
                exact: continued.arithmetic.as_ref() == Some(&arithmetic),
            },
            (event, _) => event,
        }
    }
}

struct Desk {
    pipeline: Box<dyn Pipeline>,
    inbox: Receiver<Work>,
    active: HashMap<JobId, Work>,
    /// Dropped with the thread, which may wait for a disk.
    recording: Option<Recording>,
}

impl Desk {
    fn work(mut self) {
        loop {
            // With nothing to do, sleep until a job comes; otherwise only look.
            if self.active.is_empty() {
                match self.inbox.recv() {
                    Ok(job) => self.admit(job),
                    Err(RecvError) => return,
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(job) => self.admit(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) if self.active.is_empty() => return,
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            self.drop_cancelled();
            self.step();
        }
    }

    fn admit(&mut self, work: Work) {
        let Work { assignment: Assignment { spec, .. }, .. } = &work;
        match self.pipeline.admit(spec) {
            Ok(cost) => {
                tracing::debug!(job = %spec.id, prompt_tokens = cost.prompt_tokens, "admitted");
                self.active.insert(spec.id, work);
            }
            Err(error) => {
                work.at_work.take();
                work.assignment.refuse(error);
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let cancelled = |work: &Work| work.assignment.job.cancel.is_cancelled();
        let gone: Vec<JobId> = self.active.iter().filter(|(_, work)| cancelled(work)).map(|(id, _)| *id).collect();
        for id in gone {
            self.pipeline.evict(id);
            self.active.remove(&id);
        }
    }

    fn step(&mut self) {
        if self.active.is_empty() {
            return;
        }
        let plan = StepPlan { work: self.active.keys().map(|id| (*id, PREFILL_TOKENS)).collect() };
        let mut ended = Vec::new();
        let active = &self.active;
        self.pipeline.step(&plan, &mut |id: JobId, event: JobEvent| {
            let Some(work) = active.get(&id) else { return };
            if event.is_last() {
                work.at_work.take();
                ended.push(id);
            }
            work.assignment.job.append(work.assignment.continued(event));
        });
        for id in ended {
            self.pipeline.evict(id);
            self.active.remove(&id);
        }
        if let Some(recording) = &mut self.recording {
            recording.stepped();
        }
        // Whoever waits for these tokens has been woken, perhaps on this processor, and goes first.
        std::thread::yield_now();
    }
}
