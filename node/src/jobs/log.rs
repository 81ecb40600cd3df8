//! A job's events, in order, without holes: the one place that decides that a job ends exactly once.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use accel_protocol::limits::EVENTS_KEPT_BYTES;
use accel_protocol::{EventRecord, FinishReason, JobEvent, JobState, Usage};
use tokio::sync::watch;

/// Bytes that an event without text counts for.
const EVENT_BYTES: usize = 64;

/// The events asked for are no longer kept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {asked} is no longer kept; the first one kept is {first}")]
pub struct Lost {
    asked: u64,
    first: u64,
}

/// The events of one job.
#[derive(Debug)]
pub struct EventLog {
    events: Mutex<Events>,
    grown: watch::Sender<u64>,
}

#[derive(Debug)]
struct Events {
    kept: VecDeque<EventRecord>,
    next: u64,
    bytes: usize,
    tokens: u32,
    first_token: Option<Instant>,
    state: JobState,
    ended: Option<Instant>,
    done: Option<(FinishReason, Usage)>,
}

impl EventLog {
    /// An empty log of a job whose answer has `prior_tokens` already.
    pub fn new(prior_tokens: u32) -> Self {
        let events = Events {
            kept: VecDeque::new(),
            next: 0,
            bytes: 0,
            tokens: prior_tokens,
            first_token: None,
            state: JobState::Queued,
            ended: None,
            done: None,
        };
        Self { events: Mutex::new(events), grown: watch::Sender::new(0) }
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        // `append` is the only writer and leaves the fields consistent at every step that can panic.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Nothing follows a last event: it is dropped, and the answer is `false`.
    pub(super) fn append(&self, event: JobEvent) -> bool {
        let mut events = self.events();
        if events.ended.is_some() {
            return false;
        }
        match &event {
            JobEvent::Fetching { .. }
            | JobEvent::Fetched { .. }
            | JobEvent::Moved { .. }
            | JobEvent::Started { .. }
            | JobEvent::Reading { .. }
            | JobEvent::Working { .. } => {
                events.state = JobState::Running;
            }
            JobEvent::Token { index, .. } => {
                events.state = JobState::Running;
                events.tokens = index + 1;
                events.first_token.get_or_insert_with(Instant::now);
            }
            JobEvent::Done { reason, usage, .. } => {
                events.state = JobState::Done;
                events.done = Some((*reason, *usage));
            }
            JobEvent::Failed { .. } => events.state = JobState::Failed,
            JobEvent::Cancelled => events.state = JobState::Cancelled,
        }
        if event.is_last() {
            events.ended = Some(Instant::now());
        }
        events.bytes += size(&event);
        let number = events.next;
        events.next += 1;
        events.kept.push_back(EventRecord { number, event });
        while events.bytes > EVENTS_KEPT_BYTES {
            let Some(oldest) = events.kept.pop_front() else { break };
            events.bytes -= size(&oldest.event);
        }
        let next = events.next;
        drop(events);
        self.grown.send_replace(next);
        true
    }

    /// The events from number `from` on that are there now, and whether the last is among or before them.
    ///
    /// # Errors
    /// When event `from` is no longer kept.
    pub fn since(&self, from: u64) -> Result<(Vec<EventRecord>, bool), Lost> {
        let events = self.events();
        let first = events.next - events.kept.len() as u64;
        if from < first {
            return Err(Lost { asked: from, first });
        }
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        Ok((events.kept.iter().skip(skip).cloned().collect(), events.ended.is_some()))
    }

    /// Waits for events from number `from` on; empty when the log has ended before it.
    ///
    /// # Errors
    /// When event `from` is no longer kept.
    pub async fn next(&self, from: u64) -> Result<Vec<EventRecord>, Lost> {
        let mut grown = self.grown.subscribe();
        loop {
            let (events, ended) = self.since(from)?;
            if !events.is_empty() || ended {
                return Ok(events);
            }
            // The sender lives as long as the log, so this can only mean that the log has grown.
            if grown.changed().await.is_err() {
                return Ok(Vec::new());
            }
        }
    }

    /// Waits until the job has ended.
    pub async fn end(&self) {
        let mut grown = self.grown.subscribe();
        while self.ended().is_none() {
            if grown.changed().await.is_err() {
                return;
            }
        }
    }

    /// Where the job stands.
    pub fn state(&self) -> JobState {
        self.events().state
    }

    /// Bytes of the events that are kept.
    pub fn bytes(&self) -> usize {
        self.events().bytes
    }

    /// Tokens of the answer so far.
    pub fn tokens(&self) -> u32 {
        self.events().tokens
    }

    /// When the first token came.
    pub fn first_token(&self) -> Option<Instant> {
        self.events().first_token
    }

    /// Why the answer ended and what it took, once it is done.
    pub fn done(&self) -> Option<(FinishReason, Usage)> {
        self.events().done
    }

    /// When the job ended.
    pub fn ended(&self) -> Option<Instant> {
        self.events().ended
    }
}

fn size(event: &JobEvent) -> usize {
    EVENT_BYTES
        + match event {
            JobEvent::Token { text, logprob, .. } => {
                text.len() + logprob.as_ref().map_or(0, |of| of.top.iter().map(|(_, text, _)| 32 + text.len()).sum())
            }
            JobEvent::Done { text, results, .. } => {
                text.len() + results.iter().map(accel_protocol::TaskResult::bytes).sum::<usize>()
            }
            JobEvent::Failed { error } => error.message.len(),
            JobEvent::Moved { peer, .. } => peer.len(),
            JobEvent::Started { arithmetic, .. } => arithmetic.0.len(),
            JobEvent::Fetching { .. }
            | JobEvent::Fetched { .. }
            | JobEvent::Reading { .. }
            | JobEvent::Working { .. }
            | JobEvent::Cancelled => 0,
        }
}
