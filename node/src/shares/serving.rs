//! Streams of peers that have shares of models held here: how they come, and how answers go back.

use std::time::Duration;

use accel_protocol::limits::{SHARE_REQUESTS, SHARE_STREAMS_PER_PEER};
use accel_protocol::{ShareAnswer, ShareReply};
use futures::StreamExt;
use libp2p::PeerId;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::frames::{FrameReader, FrameStream, FrameWriter};
use crate::places::Places;
use crate::store::FetchProgress;
use crate::swarm::{Swarm, SwarmError};

/// Streams of one protocol, of all peers together.
pub const STREAMS: usize = 64;
/// A stream on which nothing is held, and nothing said, is closed.
const IDLE: Duration = Duration::from_secs(10);
/// A request that has begun must be whole within this time.
const HALF_A_REQUEST: Duration = Duration::from_secs(10);
/// Who waits for what takes its time hears of it as often.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// A peer that takes no answers for so long is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// The way of an answer back to its stream; it holds a place among the stream's requests.
pub struct Reply {
    id: u64,
    answers: mpsc::Sender<ShareReply>,
    _place: OwnedSemaphorePermit,
}

impl Reply {
    /// The way of the answer to the request of that number.
    pub fn new(id: u64, answers: &mpsc::Sender<ShareReply>, place: OwnedSemaphorePermit) -> Self {
        Self { id, answers: answers.clone(), _place: place }
    }

    /// Says how a fetch goes; a step that finds no room is left out.
    pub fn progress(&self, now: &FetchProgress) {
        let total_bytes = now.fetched_bytes + now.missing_bytes;
        self.tell(ShareAnswer::Holding { done_bytes: now.fetched_bytes, total_bytes });
    }

    fn tell(&self, answer: ShareAnswer) {
        let _full = self.answers.try_send(ShareReply { id: self.id, answer });
    }

    /// Waits for what takes its time, and says now and then that it does.
    pub async fn busy<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            match tokio::time::timeout(SIGN_OF_LIFE, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.tell(ShareAnswer::Holding { done_bytes: 0, total_bytes: 0 }),
            }
        }
    }

    /// Sends an answer.
    pub async fn send(&self, answer: ShareAnswer) {
        // Where nobody takes answers any more, nobody wants this one.
        let _gone = self.answers.send(ShareReply { id: self.id, answer }).await;
    }

    /// The same from a thread that computes.
    pub fn send_blocking(&self, answer: ShareAnswer) {
        let _gone = self.answers.blocking_send(ShareReply { id: self.id, answer });
    }
}

/// Serves the streams of a protocol until `stop`: `read` takes what comes on one, and says where its answers go.
///
/// # Errors
/// When the swarm has stopped.
pub async fn serve<F>(
    swarm: &Swarm,
    protocol: &'static str,
    stop: CancellationToken,
    read: impl Fn(PeerId, FrameReader, mpsc::Sender<ShareReply>) -> F,
) -> Result<(), SwarmError>
where
    F: Future<Output = Result<(), SwarmError>> + Send + 'static,
{
    let failed = |error: rust_ipfs::Error| SwarmError::Ipfs { doing: "serve shares", message: format!("{error:#}") };
    let mut streams = swarm.ipfs().new_stream(protocol).await.map_err(failed)?;
    let places = Places::new(STREAMS, SHARE_STREAMS_PER_PEER);
    let at_work = TaskTracker::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some((peer, stream)) = streams.next() => {
                let Some(place) = places.enter(peer) else {
                    tracing::debug!(%peer, protocol, "too many streams are open; one more was dropped");
                    continue;
                };
                let (reader, writer) = FrameStream::new(peer, stream).split();
                let (answers, outbox) = mpsc::channel(SHARE_REQUESTS);
                let (read, stop) = (read(peer, reader, answers), stop.clone());
                at_work.spawn(async move {
                    let end = tokio::select! {
                        () = stop.cancelled() => Ok(()),
                        end = read => end,
                        end = write(peer, writer, outbox) => end,
                    };
                    if let Err(error) = end {
                        tracing::debug!(%peer, protocol, %error, "a stream for shares ended");
                    }
                    drop(place);
                });
            }
        }
    }
}

/// The next request on a stream, which may rest where something is held for it.
///
/// # Errors
/// When the peer is silent, or says something else.
pub async fn next<T: DeserializeOwned>(
    reader: &mut FrameReader,
    may_rest: impl Fn() -> bool,
) -> Result<Option<T>, SwarmError> {
    reader.receive_within(IDLE, may_rest, HALF_A_REQUEST).await
}

async fn write(
    peer: PeerId,
    mut writer: FrameWriter,
    mut outbox: mpsc::Receiver<ShareReply>,
) -> Result<(), SwarmError> {
    while let Some(reply) = outbox.recv().await {
        let send = async {
            let frame = writer.frame(&reply)?;
            writer.write(&frame).await?;
            while let Ok(reply) = outbox.try_recv() {
                let frame = writer.frame(&reply)?;
                writer.write(&frame).await?;
            }
            writer.flush().await
        };
        let silent = |_| SwarmError::Silent { peer, within: WRITE_TIMEOUT };
        tokio::time::timeout(WRITE_TIMEOUT, send).await.map_err(silent)??;
    }
    Ok(())
}
