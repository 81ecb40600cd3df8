//! Jobs that peers run for this node: submit, follow the events, resume where a stream broke, and notice when the peer
//! is gone.

use std::time::{Duration, Instant};

use accel_protocol::{
    Arithmetic, ErrorCode, EventRecord, JobError, JobEvent, JobId, JobRequest, JobResponse, JobSpec, JobState,
    OutputRequest, Rejection,
};
use libp2p::PeerId;

use crate::frames::FrameStream;
use crate::jobs::Job;
use crate::swarm::{REQUEST_TIMEOUT, Swarm, SwarmError};

/// A stream that brings nothing for so long makes the client ask whether the peer lives: a machine that lost its power
/// closes no connection.
const QUIET: Duration = Duration::from_secs(2);
/// How often a broken stream is opened again without a new event before the peer counts as gone,
const REOPENINGS: u32 = 3;
/// after a pause that grows by so much each time.
const PAUSE: Duration = Duration::from_millis(300);
/// What a peer gets to accept a job, or to answer a short one, while another place could take it.
const SUBMISSION: Duration = Duration::from_secs(5);

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

/// Tells `peer` that nobody waits for the job any more. The peer may be gone: then there is nothing to release.
pub async fn release(swarm: &Swarm, peer: PeerId, job: JobId) {
    if let Err(error) = swarm.request(peer, &JobRequest::Cancel(job), REQUEST_TIMEOUT).await {
        tracing::debug!(%peer, %job, %error, "a job could not be cancelled there");
    }
}

/// A job that is handed to a peer.
#[derive(Debug)]
pub struct Errand<'a, E> {
    /// The swarm that both are in.
    pub swarm: &'a Swarm,
    /// Who runs it.
    pub peer: PeerId,
    /// Where its events are written.
    pub job: &'a Job,
    /// What has arrived of the answer.
    pub answered: &'a mut Answered,
    /// A peer that reports no progress for so long loses the job, if another place can take it.
    pub stuck: Duration,
    /// Whether another place can take it. Where none can, a peer that is hard to reach is given all the time there is.
    pub elsewhere: E,
}

impl<E: Fn() -> bool> Errand<'_, E> {
    /// Has the peer run `spec` and writes what happens to the job's log. `Ok` means that the log has ended.
    ///
    /// # Errors
    /// When the peer refuses, and perhaps only for now, fails in a way that another may not, breaks the protocol, or is
    /// gone.
    pub async fn run(self, spec: JobSpec) -> Result<(), Rejection> {
        let prior = spec.prior.len();
        let response = self.submit(spec).await.map_err(|error| Rejection::from(lost(&error)))?;
        let mut reader = Reader { errand: self, prior, from: 0 };
        match response {
            JobResponse::Accepted { events, .. } if events.last().is_some_and(|last| last.event.is_last()) => {
                for record in events {
                    reader.take(record.event)?;
                }
                Ok(())
            }
            JobResponse::Accepted { job, .. } if job == reader.errand.job.spec.id => Ok(reader.read().await?),
            JobResponse::Rejected(rejection) => Err(rejection),
            _ => Err(reader.broke_protocol("answered a submission with something else").into()),
        }
    }

    async fn submit(&self, spec: JobSpec) -> Result<JobResponse, SwarmError> {
        let Self { swarm, peer, .. } = *self;
        let (dial, answer) =
            if (self.elsewhere)() { (swarm.patience(peer), SUBMISSION) } else { (REQUEST_TIMEOUT, REQUEST_TIMEOUT) };
        let connect = tokio::time::timeout(dial, swarm.connect(peer));
        connect.await.map_err(|_| SwarmError::Silent { peer, within: dial })??;
        swarm.request(peer, &JobRequest::Submit(Box::new(spec)), answer).await
    }

    /// How long the peer gets for what a living one does at once.
    fn patience(&self) -> Duration {
        if (self.elsewhere)() { self.swarm.patience(self.peer) } else { REQUEST_TIMEOUT }
    }
}

struct Reader<'a, E> {
    errand: Errand<'a, E>,
    /// Tokens that the peer was told to read back in.
    prior: usize,
    /// The next event.
    from: u64,
}

impl<E: Fn() -> bool> Reader<'_, E> {
    async fn read(&mut self) -> Result<(), JobError> {
        let mut reopenings = 0;
        loop {
            let before = self.from;
            let broken = match self.read_stream().await {
                Ok(true) => return Ok(()),
                Ok(false) => self.broke_protocol("closes the job's stream without an end"),
                Err(Broken::Stream(error)) => {
                    tracing::debug!(peer = %self.errand.peer, job = %self.errand.job.spec.id, %error, "a stream broke");
                    // A stream that broke may be opened again. A peer that cannot be reached is not waited for while
                    // another can go on.
                    if !matches!(error, SwarmError::Stream { .. }) && (self.errand.elsewhere)() {
                        return Err(lost(&error));
                    }
                    lost(&error)
                }
                Err(Broken::Job(error)) => return Err(error),
            };
            reopenings = if self.from > before { 0 } else { reopenings + 1 };
            if reopenings > REOPENINGS {
                return Err(broken);
            }
            tokio::time::sleep(PAUSE * reopenings).await;
        }
    }

    /// Reads one stream to its end; `true` when the job has ended with it.
    async fn read_stream(&mut self) -> Result<bool, Broken> {
        let Errand { swarm, peer, job, .. } = &self.errand;
        let request = OutputRequest { job: job.spec.id, from: self.from };
        let mut stream = swarm.open_output(*peer, request, self.errand.patience()).await?;
        while let Some(record) = self.next(&mut stream).await? {
            if record.number != self.from {
                return Err(Broken::Job(self.broke_protocol("sent an event out of order")));
            }
            self.from += 1;
            let last = record.event.is_last();
            self.take(record.event).map_err(Broken::Job)?;
            if last {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The next event; none at the end of the stream.
    async fn next(&self, stream: &mut FrameStream) -> Result<Option<EventRecord>, Broken> {
        let silent_since = Instant::now();
        let receive = stream.receive::<EventRecord>();
        tokio::pin!(receive);
        loop {
            match tokio::time::timeout(QUIET, &mut receive).await {
                Ok(record) => return Ok(record?),
                Err(_) => self.ask_whether_it_lives(silent_since.elapsed()).await?,
            }
        }
    }

    async fn ask_whether_it_lives(&self, silent: Duration) -> Result<(), Broken> {
        let Errand { swarm, peer, job, stuck, elsewhere, .. } = &self.errand;
        let status = JobRequest::Status(job.spec.id);
        match swarm.request(*peer, &status, self.errand.patience()).await? {
            // A job that has ended there has sent its last event, which is on the way. A peer that is too busy to say
            // how the job stands lives.
            answer @ (JobResponse::Status(Some(_)) | JobResponse::Rejected(_)) => {
                let queued = matches!(&answer, JobResponse::Status(Some(status)) if status.state == JobState::Queued);
                if silent > *stuck && !queued && elsewhere() {
                    let words = format!("reports no progress for {} s", silent.as_secs());
                    return Err(Broken::Job(self.broke_protocol(&words)));
                }
                Ok(())
            }
            _ => Err(Broken::Job(self.broke_protocol("no longer knows the job"))),
        }
    }

    /// Writes one event to the job's log, if it is what must come next.
    fn take(&mut self, event: JobEvent) -> Result<(), JobError> {
        let Errand { peer, job, ref mut answered, .. } = self.errand;
        let event = match event {
            JobEvent::Started { arithmetic, prompt_tokens } => match answered.arithmetic.replace(arithmetic.clone()) {
                None => JobEvent::Started { arithmetic, prompt_tokens },
                Some(first) => JobEvent::Moved {
                    peer: peer.to_string(),
                    prior_tokens: u32::try_from(self.prior).unwrap_or(u32::MAX),
                    exact: first == arithmetic,
                },
            },
            JobEvent::Token { index, id, text, logprob } => {
                let expected = job.spec.prior.len() + answered.tokens.len();
                if usize::try_from(index).ok() != Some(expected) || !answered.has_begun() {
                    return Err(self.broke_protocol("sent a token out of order"));
                }
                if index >= job.spec.generation.max_tokens {
                    return Err(self.broke_protocol("sent more tokens than were asked for"));
                }
                answered.tokens.push(id);
                JobEvent::Token { index, id, text, logprob }
            }
            JobEvent::Failed { error } if error.code.may_move() => return Err(error),
            // Whoever submitted a job is the only one to cancel it, and then reads no further.
            JobEvent::Cancelled => return Err(self.broke_protocol("cancelled the job")),
            JobEvent::Moved { .. } => return Err(self.broke_protocol("sent an event that is not its own to send")),
            event @ (JobEvent::Fetching { .. }
            | JobEvent::Fetched { .. }
            | JobEvent::Reading { .. }
            | JobEvent::Working { .. }
            | JobEvent::Done { .. }
            | JobEvent::Failed { .. }) => event,
        };
        job.append(event);
        Ok(())
    }

    fn broke_protocol(&self, what: &str) -> JobError {
        JobError::new(ErrorCode::WorkerLost, format!("peer {} {what}", self.errand.peer))
    }
}

fn lost(error: &SwarmError) -> JobError {
    JobError::new(ErrorCode::WorkerLost, error)
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
