//! One long-lived stream to a peer, with many requests under way on it.
//!
//! Whoever asks hands in what is to be called with the answer, so that a thread that computes and a task that fetches
//! ask by the same stream. When the stream breaks, everybody who waits is told at once.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use accel_protocol::share::EXPERTS_PROTOCOL;
use accel_protocol::stage::STAGES_PROTOCOL;
use accel_protocol::{ExpertAsk, Floats, ShareAnswer, ShareReply, ShareRequest, StageAsk, frame};
use libp2p::PeerId;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::frames::{FrameReader, FrameWriter};
use crate::swarm::{Swarm, SwarmError};

/// Frames that wait to be written.
const FRAMES: usize = 256;
/// A peer that takes nothing for so long is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer that has not answered, and says nothing of it for so long, will not.
const SILENCE: Duration = Duration::from_secs(30);
/// What a peer gets to send rows back.
const ECHO: Duration = Duration::from_secs(2);
/// Echoes of a row that the way to a peer is the median of.
const ECHOES: usize = 9;
/// What passes between two of them.
const BETWEEN: Duration = Duration::from_millis(2);
/// Numbers of an echo that tells how many bytes go through in a second.
const LONG_ECHO: usize = 32 << 10;

/// What can be asked of a peer that holds a share of a model.
pub trait Ask: Serialize + Send + 'static {
    /// The protocol of its streams.
    const PROTOCOL: &'static str;

    /// Has rows sent back.
    fn echo(rows: Floats) -> Self;
}

impl Ask for ExpertAsk {
    const PROTOCOL: &'static str = EXPERTS_PROTOCOL;

    fn echo(rows: Floats) -> Self {
        Self::Echo(rows)
    }
}

impl Ask for StageAsk {
    const PROTOCOL: &'static str = STAGES_PROTOCOL;

    fn echo(rows: Floats) -> Self {
        Self::Echo(rows)
    }
}

/// The stream is gone, and with it the answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the stream with peer {peer} is closed: {reason}")]
pub struct Closed {
    /// The peer.
    pub peer: PeerId,
    /// What closed it.
    pub reason: String,
}

/// What is called with an answer, or told that there will be none. A request that is told of its progress is called more
/// than once.
pub type Answered = Box<dyn FnMut(Result<ShareAnswer, Closed>) + Send>;

/// A stream to a peer.
#[derive(Debug)]
pub struct Link<A> {
    peer: PeerId,
    frames: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    next: AtomicU64,
    tasks: [JoinHandle<()>; 2],
    asks: PhantomData<fn(A)>,
}

impl<A> Drop for Link<A> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl<A: Ask> Link<A> {
    /// Opens a stream to a peer.
    ///
    /// # Errors
    /// When the peer cannot be reached, or does not speak the protocol.
    pub async fn open(swarm: &Swarm, peer: PeerId, within: Duration) -> Result<Self, SwarmError> {
        swarm.connect_directly(peer).await?;
        let (reader, writer) = swarm.open_stream(peer, A::PROTOCOL, within).await?.split();
        let (frames, outbox) = mpsc::channel(FRAMES);
        let waiting = Waiting::new(peer);
        let write = {
            let waiting = waiting.clone();
            tokio::spawn(async move {
                if let Err(error) = write(writer, outbox).await {
                    waiting.close(&error);
                }
            })
        };
        let read = {
            let waiting = waiting.clone();
            tokio::spawn(async move {
                let end = read(reader, &waiting).await;
                let error = end.err().map_or_else(|| "the peer closed it".to_owned(), |error| error.to_string());
                waiting.close(&error);
            })
        };
        Ok(Self { peer, frames, waiting, next: AtomicU64::new(1), tasks: [write, read], asks: PhantomData })
    }

    /// Whether the stream is still open.
    pub fn is_open(&self) -> bool {
        self.waiting.is_open()
    }

    /// Asks something. What is called is called once more at least, be it with an error.
    pub fn ask(&self, ask: A, answered: Answered) {
        self.ask_in_pieces(Vec::new(), ask, answered);
    }

    /// The same with what comes before it under its number.
    pub fn ask_in_pieces(&self, pieces: Vec<A>, ask: A, mut answered: Answered) {
        let closed = |reason: &dyn std::fmt::Display| Closed { peer: self.peer, reason: reason.to_string() };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frames = pieces.into_iter().chain([ask]).map(|ask| frame::frame(&ShareRequest { id, ask }));
        let frames = match frames.collect::<Result<Vec<_>, _>>() {
            Ok(frames) => frames,
            Err(error) => return answered(Err(closed(&error))),
        };
        if let Err((mut answered, reason)) = self.waiting.enter(id, answered) {
            return answered(Err(closed(&reason)));
        }
        // A queue that is full has long stopped moving.
        let sent = frames.into_iter().try_for_each(|frame| self.frames.try_send(frame));
        if let Err(error) = sent
            && let Some(mut answered) = self.waiting.leave(id)
        {
            answered(Err(closed(&error)));
        }
    }

    /// Asks, and waits for the last answer, as long as there are signs of life.
    ///
    /// # Errors
    /// In words, when there is none.
    pub async fn answer(&self, ask: A) -> Result<ShareAnswer, String> {
        let (send, mut answers) = mpsc::unbounded_channel();
        // Who gave up waiting does not want it.
        self.ask(ask, Box::new(move |answer| drop(send.send(answer))));
        loop {
            let answer = tokio::time::timeout(SILENCE, answers.recv()).await;
            let answer = answer.map_err(|_| format!("it said nothing for {} s", SILENCE.as_secs()))?;
            match answer.ok_or_else(|| "no answer".to_owned())? {
                Ok(answer) if goes_on(&answer) => {}
                answer => return answer.map_err(|closed| closed.to_string()),
            }
        }
    }

    /// The way to the peer: seconds that a row takes there and back, and bytes in a second beyond that.
    ///
    /// # Errors
    /// In words, when it does not answer.
    pub async fn way(&self, hidden: usize) -> Result<(f64, f64), String> {
        let echo = async |numbers: usize| {
            // Rows leave one now and then, and find processors that have gone to rest.
            tokio::time::sleep(BETWEEN).await;
            let sent = Instant::now();
            let answer = tokio::time::timeout(ECHO, self.answer(A::echo(Floats(vec![1.0; numbers])))).await;
            match answer.map_err(|_| "it does not answer".to_owned())?? {
                ShareAnswer::Rows { rows, .. } if rows.0.len() == numbers => Ok(sent.elapsed().as_secs_f64()),
                _ => Err("it sent something else back".to_owned()),
            }
        };
        let median = async |numbers: usize, times: usize| {
            let mut seconds = Vec::with_capacity(times);
            for _ in 0..times {
                seconds.push(echo(numbers).await?);
            }
            seconds.sort_by(f64::total_cmp);
            Ok::<f64, String>(seconds[times / 2])
        };
        let short = median(hidden.clamp(1, LONG_ECHO / 2), ECHOES).await?;
        let long = median(LONG_ECHO, 3).await?;
        // There and back.
        Ok((short, 8.0 * LONG_ECHO as f64 / (long - short).max(1e-6)))
    }
}

/// Whether an answer is followed by another.
fn goes_on(answer: &ShareAnswer) -> bool {
    matches!(answer, ShareAnswer::Holding { .. } | ShareAnswer::Piece(_) | ShareAnswer::Routed(_))
}

async fn write(mut writer: FrameWriter, mut outbox: mpsc::Receiver<Vec<u8>>) -> Result<(), String> {
    while let Some(frame) = outbox.recv().await {
        let send = async {
            writer.write(&frame).await?;
            while let Ok(frame) = outbox.try_recv() {
                writer.write(&frame).await?;
            }
            writer.flush().await
        };
        let sent = tokio::time::timeout(WRITE_TIMEOUT, send).await;
        sent.map_err(|_| format!("it took nothing for {} s", WRITE_TIMEOUT.as_secs()))?
            .map_err(|error| error.to_string())?;
    }
    writer.close().await;
    Ok(())
}

async fn read(mut reader: FrameReader, waiting: &Waiting) -> Result<(), SwarmError> {
    while let Some(ShareReply { id, answer }) = reader.receive().await? {
        waiting.answer(id, answer);
    }
    Ok(())
}

/// Those who wait for answers. Clones share them.
#[derive(Clone)]
struct Waiting {
    peer: PeerId,
    /// By their requests, or why the stream is closed.
    open: Arc<Mutex<Result<HashMap<u64, Answered>, String>>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Waiting {
    fn new(peer: PeerId) -> Self {
        Self { peer, open: Arc::new(Mutex::new(Ok(HashMap::new()))) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Result<HashMap<u64, Answered>, String>) -> T) -> T {
        // Each change to the table is a whole one.
        work(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_open(&self) -> bool {
        self.with(|open| open.is_ok())
    }

    fn enter(&self, id: u64, answered: Answered) -> Result<(), (Answered, String)> {
        self.with(|open| match open {
            Ok(waiting) => {
                waiting.insert(id, answered);
                Ok(())
            }
            Err(reason) => Err((answered, reason.clone())),
        })
    }

    fn leave(&self, id: u64) -> Option<Answered> {
        self.with(|open| open.as_mut().ok()?.remove(&id))
    }

    fn answer(&self, id: u64, answer: ShareAnswer) {
        let goes_on = goes_on(&answer);
        // Called without the lock: it may ask again.
        if let Some(mut answered) = self.leave(id) {
            answered(Ok(answer));
            if goes_on && let Err((mut answered, reason)) = self.enter(id, answered) {
                answered(Err(Closed { peer: self.peer, reason }));
            }
        }
    }

    fn close(&self, reason: &str) {
        let waiting = self.with(|open| std::mem::replace(open, Err(reason.to_owned())));
        for mut answered in waiting.into_iter().flat_map(HashMap::into_values) {
            answered(Err(Closed { peer: self.peer, reason: reason.to_owned() }));
        }
    }
}
