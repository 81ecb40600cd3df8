//! A job as a program waits for it: what comes of its answer, part by part, and its end when nobody waits any more.

use std::collections::VecDeque;
use std::sync::Arc;

use accel_protocol::{
    Arithmetic, ErrorCode, EventRecord, FinishReason, JobError, JobEvent, JobId, JobSpec, Rejection, TaskResult,
    TokenLogprob, Usage,
};
use futures::stream::{self, Stream};

use super::Shared;
use crate::jobs::Job;

/// A job whose answer is waited for. Dropped before its end, it cancels the job.
pub(super) struct Answer {
    job: Arc<Job>,
    next: u64,
    ready: VecDeque<EventRecord>,
}

/// Something that came of a job.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// The model is being fetched: bytes that are here, and bytes in all.
    Fetching(u64, u64),
    /// The answer begins.
    Begun { arithmetic: Arithmetic },
    /// A token of it.
    Token { id: u32, text: String, logprob: Option<TokenLogprob> },
    /// It is whole.
    End { text: String, results: Vec<TaskResult>, reason: FinishReason, usage: Usage },
}

impl Answer {
    /// Hands a job to the scheduler.
    pub fn submit(shared: &Shared, spec: JobSpec) -> Result<Self, Rejection> {
        let job = shared.node.scheduler.submit(spec, None)?;
        Ok(Self { job, next: 0, ready: VecDeque::new() })
    }

    /// Its name.
    pub fn id(&self) -> JobId {
        self.job.spec.id
    }

    /// What comes next; nothing after the end.
    pub async fn next(&mut self) -> Result<Part, JobError> {
        loop {
            if self.ready.is_empty() {
                // A reader that is so slow that events are dropped before it takes them loses the answer.
                self.ready.extend(self.job.log.next(self.next).await.unwrap_or_default());
            }
            let Some(record) = self.ready.pop_front() else {
                return Err(JobError::new(ErrorCode::Internal, "the answer broke off without an end"));
            };
            self.next = record.number + 1;
            match record.event {
                JobEvent::Fetching { done_bytes, total_bytes, .. } => {
                    return Ok(Part::Fetching(done_bytes, total_bytes));
                }
                JobEvent::Started { arithmetic, .. } => return Ok(Part::Begun { arithmetic }),
                JobEvent::Token { id, text, logprob, .. } => return Ok(Part::Token { id, text, logprob }),
                JobEvent::Done { text, results, reason, usage } => {
                    return Ok(Part::End { text, results, reason, usage });
                }
                JobEvent::Failed { error } => return Err(error),
                JobEvent::Cancelled => return Err(JobError::new(ErrorCode::Internal, "the job was cancelled")),
                JobEvent::Fetched { .. }
                | JobEvent::Reading { .. }
                | JobEvent::Working { .. }
                | JobEvent::Moved { .. } => {}
            }
        }
    }

    /// All that comes, to the end or an error.
    pub fn parts(self) -> impl Stream<Item = Result<Part, JobError>> + Send {
        stream::unfold(Some(self), |answer| async move {
            let mut answer = answer?;
            let part = answer.next().await;
            let goes_on = matches!(part, Ok(Part::Fetching(..) | Part::Begun { .. } | Part::Token { .. }));
            Some((part, goes_on.then_some(answer)))
        })
    }

    /// The whole of it: its text and the log probabilities of its tokens, what it gives beside, and how it ended.
    pub async fn whole(mut self) -> Result<Whole, JobError> {
        let mut whole = Whole::default();
        loop {
            match self.next().await? {
                Part::Fetching(..) => {}
                Part::Begun { arithmetic } => whole.arithmetic = Some(arithmetic),
                Part::Token { id, text, logprob } => {
                    whole.logprobs.extend(logprob.map(|of| Likely::of(id, &text, of)));
                    whole.text.push_str(&text);
                }
                Part::End { text, results, reason, usage } => {
                    whole.text.push_str(&text);
                    return Ok(Whole { results, reason: Some(reason), usage, ..whole });
                }
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // One that has ended is not changed by it.
        self.job.stop();
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    pub text: String,
    /// Of each token; none unless asked for.
    pub logprobs: Vec<Likely>,
    pub results: Vec<TaskResult>,
    pub arithmetic: Option<Arithmetic>,
    pub reason: Option<FinishReason>,
    pub usage: Usage,
}

/// How likely a token was, beside the likeliest.
#[derive(Clone, Debug)]
pub(super) struct Likely {
    pub token: String,
    pub logprob: f32,
    pub top: Vec<(String, f32)>,
}

impl Likely {
    /// A token that is not among the likeliest has no text of its own, only that which became certain with it.
    pub fn of(id: u32, text: &str, of: TokenLogprob) -> Self {
        let token = of.top.iter().find(|(other, ..)| *other == id).map_or(text, |(_, own, _)| own).to_owned();
        let top = of.top.into_iter().map(|(_, text, logprob)| (text, logprob)).collect();
        Self { token, logprob: of.logprob, top }
    }
}
