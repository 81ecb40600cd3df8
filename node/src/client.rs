//! Jobs that peers run for this node: submit, follow the events, resume where a stream broke, and notice when the peer
//! is gone.

use std::time::Duration;

use accel_protocol::{
    Arithmetic, ErrorCode, EventRecord, JobError, JobEvent, JobRequest, JobResponse, JobSpec, JobState, OutputRequest,
};
use libp2p::PeerId;

use crate::jobs::Job;
use crate::swarm::{Swarm, SwarmError};

/// A stream that brings nothing for so long makes the client ask whether the job still lives.
const QUIET: Duration = Duration::from_secs(20);
/// How often a broken stream is opened again without a new event before the peer counts as gone.
const REOPENINGS: u32 = 3;

/// How much of an answer has arrived, from whichever peers.
#[derive(Debug, Default)]
pub struct Answered {
    tokens: Vec<u32>,
    arithmetic: Option<Arithmetic>,
}

impl Answered {
    /// The arithmetic that the answer was begun with.
    pub fn arithmetic(&self) -> Option<&Arithmetic> {
        self.arithmetic.as_ref()
    }

    /// Whether a peer has begun to answer.
    pub fn has_begun(&self) -> bool {
        self.arithmetic.is_some()
    }

    /// The job that remains.
    pub fn rest_of(&self, spec: &JobSpec) -> JobSpec {
        let mut rest = spec.clone();
        rest.prior.extend_from_slice(&self.tokens);
        if let Some(arithmetic) = &self.arithmetic {
            rest.arithmetic = Some(arithmetic.clone());
        }
        rest
    }
}

fn lost(error: &SwarmError) -> JobError {
    JobError::new(ErrorCode::WorkerLost, error)
}

/// Has `peer` run `spec` and writes what happens to the job's log. `Ok` means that the log has ended.
///
/// # Errors
/// When the peer refuses, fails in a way that another may not, breaks the protocol, or is gone.
pub async fn follow(
    swarm: &Swarm,
    peer: PeerId,
    spec: JobSpec,
    job: &Job,
    answered: &mut Answered,
) -> Result<(), JobError> {
    let prior = spec.prior.len();
    let response = swarm.request(peer, &JobRequest::Submit(Box::new(spec))).await.map_err(|error| lost(&error))?;
    let mut reader = Reader { peer, job, answered, prior, own: job.spec.prior.len() };
    match response {
        JobResponse::Accepted { events, .. } if events.last().is_some_and(|last| last.event.is_last()) => {
            for record in events {
                reader.take(record.event)?;
            }
            Ok(())
        }
        JobResponse::Accepted { job: accepted, .. } if accepted == job.spec.id => reader.read(swarm).await,
        JobResponse::Rejected(rejection) => Err(rejection.error),
        _ => Err(broke_protocol(peer, "answered a submission with something else")),
    }
}

/// Tells the peer that the job's events are no longer needed. The peer may be gone: then there is nothing to release.
pub async fn release(swarm: &Swarm, peer: PeerId, job: &Job) {
    if matches!(job.log.state(), JobState::Done) {
        return;
    }
    if let Err(error) = swarm.request(peer, &JobRequest::Cancel(job.spec.id)).await {
        tracing::debug!(%peer, job = %job.spec.id, %error, "a job could not be cancelled there");
    }
}

fn broke_protocol(peer: PeerId, what: &str) -> JobError {
    JobError::new(ErrorCode::WorkerLost, format!("peer {peer} {what}"))
}

struct Reader<'a> {
    peer: PeerId,
    job: &'a Job,
    answered: &'a mut Answered,
    /// Tokens that the peer was told to read back in.
    prior: usize,
    /// Tokens among those that the job itself came with.
    own: usize,
}

impl Reader<'_> {
    async fn read(&mut self, swarm: &Swarm) -> Result<(), JobError> {
        let mut from = 0;
        let mut reopenings = 0;
        loop {
            let before = from;
            match self.read_stream(swarm, &mut from).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Broken::Stream(error)) => {
                    tracing::debug!(peer = %self.peer, job = %self.job.spec.id, %error, "a stream broke");
                    if reopenings >= REOPENINGS || matches!(error, SwarmError::Unreachable { .. }) {
                        return Err(lost(&error));
                    }
                }
                Err(Broken::Job(error)) => return Err(error),
            }
            reopenings = if from > before { 0 } else { reopenings + 1 };
            if reopenings > REOPENINGS {
                return Err(broke_protocol(self.peer, "closes the job's stream without an end"));
            }
        }
    }

    /// Reads one stream to its end; `true` when the job has ended with it.
    async fn read_stream(&mut self, swarm: &Swarm, from: &mut u64) -> Result<bool, Broken> {
        let request = OutputRequest { job: self.job.spec.id, from: *from };
        let mut stream = swarm.open_output(self.peer, request).await?;
        loop {
            let record = match tokio::time::timeout(QUIET, stream.receive::<EventRecord>()).await {
                Ok(record) => record?,
                Err(_) => {
                    self.ask_whether_it_lives(swarm).await?;
                    continue;
                }
            };
            let Some(record) = record else { return Ok(false) };
            if record.number != *from {
                return Err(Broken::Job(broke_protocol(self.peer, "sent an event out of order")));
            }
            *from += 1;
            let last = record.event.is_last();
            self.take(record.event).map_err(Broken::Job)?;
            if last {
                return Ok(true);
            }
        }
    }

    async fn ask_whether_it_lives(&self, swarm: &Swarm) -> Result<(), Broken> {
        match swarm.request(self.peer, &JobRequest::Status(self.job.spec.id)).await? {
            JobResponse::Status(Some(status)) if matches!(status.state, JobState::Queued | JobState::Running) => Ok(()),
            // It has ended there, so its last event is on the way or was lost with the stream: read again.
            JobResponse::Status(Some(_)) => Ok(()),
            _ => Err(Broken::Job(broke_protocol(self.peer, "no longer knows the job"))),
        }
    }

    /// Writes one event to the job's log, if it is what must come next.
    fn take(&mut self, event: JobEvent) -> Result<(), JobError> {
        let event = match event {
            JobEvent::Started { arithmetic, prompt_tokens } => {
                match self.answered.arithmetic.replace(arithmetic.clone()) {
                    None => JobEvent::Started { arithmetic, prompt_tokens },
                    Some(first) => JobEvent::Moved {
                        peer: self.peer.to_string(),
                        prior_tokens: u32::try_from(self.prior).unwrap_or(u32::MAX),
                        exact: first == arithmetic,
                    },
                }
            }
            JobEvent::Token { index, id, text, logprob } => {
                if usize::try_from(index).ok() != Some(self.own + self.answered.tokens.len()) {
                    return Err(broke_protocol(self.peer, "sent a token out of order"));
                }
                self.answered.tokens.push(id);
                JobEvent::Token { index, id, text, logprob }
            }
            JobEvent::Failed { error } if error.code.may_move() => return Err(error),
            event @ (JobEvent::Fetching { .. }
            | JobEvent::Fetched { .. }
            | JobEvent::Reading { .. }
            | JobEvent::Done { .. }
            | JobEvent::Failed { .. }
            | JobEvent::Cancelled
            | JobEvent::Moved { .. }) => event,
        };
        self.job.log.append(event);
        Ok(())
    }
}

enum Broken {
    Stream(SwarmError),
    Job(JobError),
}

impl From<SwarmError> for Broken {
    fn from(error: SwarmError) -> Self {
        Self::Stream(error)
    }
}
