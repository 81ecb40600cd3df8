//! One long-lived stream to a peer, with many requests under way on it.
//!
//! Whoever asks hands in what is to be called with the answer, so that a thread that computes and a task that fetches
//! ask by the same stream. When the stream breaks, everybody who waits is told at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use accel_protocol::share::EXPERTS_PROTOCOL;
use accel_protocol::{ExpertAsk, ExpertRequest, ShareAnswer, ShareReply, frame};
use libp2p::PeerId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::frames::{FrameReader, FrameWriter};
use crate::swarm::{Swarm, SwarmError};

/// Frames that wait to be written.
const FRAMES: usize = 256;
/// A peer that takes nothing for so long is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

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
pub struct Link {
    peer: PeerId,
    frames: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    next: AtomicU64,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Link {
    /// Opens a stream to a peer.
    ///
    /// # Errors
    /// When the peer cannot be reached, or does not speak the protocol.
    pub async fn open(swarm: &Swarm, peer: PeerId, within: Duration) -> Result<Self, SwarmError> {
        let (reader, writer) = swarm.open_stream(peer, EXPERTS_PROTOCOL, within).await?.split();
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
        Ok(Self { peer, frames, waiting, next: AtomicU64::new(1), tasks: [write, read] })
    }

    /// Whether the stream is still open.
    pub fn is_open(&self) -> bool {
        self.waiting.is_open()
    }

    /// Asks something. What is called is called once more at least, be it with an error.
    pub fn ask(&self, ask: ExpertAsk, mut answered: Answered) {
        let closed = |reason: &dyn std::fmt::Display| Closed { peer: self.peer, reason: reason.to_string() };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = match frame::frame(&ExpertRequest { id, ask }) {
            Ok(frame) => frame,
            Err(error) => return answered(Err(closed(&error))),
        };
        if let Err((mut answered, reason)) = self.waiting.enter(id, answered) {
            return answered(Err(closed(&reason)));
        }
        // A queue that is full has long stopped moving.
        if let Err(error) = self.frames.try_send(frame)
            && let Some(mut answered) = self.waiting.leave(id)
        {
            answered(Err(closed(&error)));
        }
    }
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
        let goes_on = matches!(answer, ShareAnswer::Holding { .. });
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
