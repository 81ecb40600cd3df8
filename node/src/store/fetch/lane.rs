//! A lane: one way blocks come in, as a task that takes wants and reports what became of them.
//!
//! The lane here is a stream to one node of ours; wants are answered in order, so it needs no numbering, and what comes
//! is the work of that peer and no other. (The other kind of lane is in `bitswap`.) Lanes verify and store; what to
//! ask whom is decided by the exchange.

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p_stream::OpenStreamError;
use rust_ipfs::{Ipfs, PeerId};
use tokio::sync::mpsc::{Receiver, Sender};

use crate::store::blocks::{Blocks, MAX_BLOCK_BYTES, Put, Reservation};
use crate::store::dag;
use crate::store::error::StoreError;
use crate::store::serve::{ABSENT, PROTOCOL};
use crate::store::tree::Missing;

/// Dialling and negotiation take seconds at most; an undialable peer must not hold the others up.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Blocks of one lane that are hashed and written at once; bounds memory besides the window.
const STORING: usize = 3;

/// A block to get, and where its bytes are reserved.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub block: Missing,
    pub reserved: Arc<Reservation>,
}

/// What a lane reports.
#[derive(Debug)]
pub(super) enum Event {
    /// It takes wants from now on.
    Ready,
    /// A block came and is stored.
    Stored { cid: Cid, bytes: u64, put: Put },
    /// The other side does not have a block.
    Absent { cid: Cid },
    /// Other bytes than those of the CID came.
    Wrong { cid: Cid },
    /// This node cannot go on: its disk, its quota, or the DAG itself.
    Failed(StoreError),
    /// The lane has ended.
    Closed { unsupported: bool, reason: String },
}

/// Reports of a lane, with its number.
#[derive(Debug, Clone)]
pub(super) struct Reports {
    pub lane: usize,
    pub events: Sender<(usize, Event)>,
}

impl Reports {
    /// The exchange going away ends the lane at its next want.
    pub async fn send(&self, event: Event) {
        let _ = self.events.send((self.lane, event)).await;
    }
}

/// Runs a stream to one of our nodes until the wants end or the stream breaks.
pub(super) async fn direct(ipfs: Ipfs, peer: PeerId, blocks: Blocks, wants: Receiver<Order>, reports: Reports) {
    let closed = match open(&ipfs, peer).await {
        Err(closed) => closed,
        Ok(stream) => {
            reports.send(Event::Ready).await;
            let reason = match exchange(stream, blocks, wants, &reports).await {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            };
            Event::Closed { unsupported: false, reason }
        }
    };
    reports.send(closed).await;
}

async fn open(ipfs: &Ipfs, peer: PeerId) -> Result<libp2p::Stream, Event> {
    let closed = |unsupported, reason| Event::Closed { unsupported, reason };
    let mut control = ipfs.stream_control().await.map_err(|error| closed(true, error.to_string()))?;
    match tokio::time::timeout(OPEN_TIMEOUT, control.open_stream(peer, PROTOCOL)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(OpenStreamError::UnsupportedProtocol(_))) => Err(closed(true, "speaks bitswap only".into())),
        Ok(Err(error)) => Err(closed(false, error.to_string())),
        Err(_) => Err(closed(false, format!("no answer within {OPEN_TIMEOUT:?}"))),
    }
}

async fn exchange(
    stream: libp2p::Stream,
    blocks: Blocks,
    mut wants: Receiver<Order>,
    reports: &Reports,
) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    // As many as wants can be in the channel and on the wire; the exchange's window bounds both.
    let (asked, mut answers) = tokio::sync::mpsc::channel(wants.max_capacity().max(1) * 2);
    let ask = async {
        while let Some(want) = wants.recv().await {
            let mut next = Some(want);
            while let Some(want) = next {
                let cid = want.block.cid.to_bytes();
                writer.write_all(&[cid.len() as u8]).await?;
                writer.write_all(&cid).await?;
                if asked.send(want).await.is_err() {
                    return Ok(());
                }
                next = wants.try_recv().ok();
            }
            writer.flush().await?;
        }
        drop(asked);
        writer.close().await
    };
    let take = async {
        let mut storing = FuturesUnordered::new();
        while let Some(want) = answers.recv().await {
            match read_answer(&mut reader).await? {
                None => reports.send(Event::Absent { cid: want.block.cid }).await,
                Some(block) => storing.push(store(&blocks, want, block)),
            }
            while storing.len() >= STORING {
                if let Some(event) = storing.next().await {
                    reports.send(event).await;
                }
            }
            // What is stored by now is reported while the next block is on its way.
            while let Some(Some(event)) = futures::FutureExt::now_or_never(storing.next()) {
                reports.send(event).await;
            }
            if answers.is_empty() {
                while let Some(event) = storing.next().await {
                    reports.send(event).await;
                }
            }
        }
        Ok(())
    };
    futures::future::try_join(ask, take).await.map(|_| ())
}

async fn read_answer(reader: &mut (impl futures::AsyncRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length);
    if length == ABSENT {
        return Ok(None);
    }
    if u64::from(length) > MAX_BLOCK_BYTES {
        return Err(std::io::Error::other(format!("a block of {length} bytes; {MAX_BLOCK_BYTES} at most")));
    }
    let mut block = vec![0; length as usize];
    reader.read_exact(&mut block).await?;
    Ok(Some(block))
}

/// Compares a block with its CID, and stores it.
pub(super) async fn store(blocks: &Blocks, want: Order, block: Vec<u8>) -> Event {
    let blocks = blocks.clone();
    let work = move || {
        let cid = want.block.cid;
        if !dag::matches(&cid, &block) {
            return Event::Wrong { cid };
        }
        let bytes = block.len() as u64;
        if let Err(error) = check_length(&want.block, bytes) {
            return Event::Failed(error);
        }
        // The bytes of a leaf were reserved when it became known; those of a node are known only now.
        let put = match want.block.bytes {
            Some(_) => blocks.put_reserved(&cid, &block, &want.reserved),
            None => blocks.put(&cid, &block),
        };
        match put {
            Ok(put) => Event::Stored { cid, bytes, put },
            Err(error) => Event::Failed(error),
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Event::Failed(StoreError::Cancelled))
}

pub(super) fn check_length(want: &Missing, bytes: u64) -> Result<(), StoreError> {
    match want.bytes {
        Some(declared) if declared != bytes => Err(StoreError::NotUnixFs {
            cid: want.cid,
            found: format!("a block of {bytes} bytes where its file declares {declared}"),
        }),
        _ => Ok(()),
    }
}
