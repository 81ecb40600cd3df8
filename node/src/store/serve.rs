//! Blocks to other nodes over one long-lived stream each.
//!
//! Bitswap serves every IPFS peer; nodes of ours ask over `/accel/blocks/1` instead, because bitswap asks twice for each
//! block (have, then block), reads and hashes it twice, cannot be told which peer to ask, and does not say who sent
//! what. The protocol is the least that does: the asker writes CIDs (a length byte, then the CID), the server
//! answers in that order with a length (32 bits, big-endian) and the block, or with `ABSENT`. Blocks are not
//! verified here: the asker must do that anyhow.

use std::time::Duration;

use cid::Cid;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use futures::stream::{self, Stream, StreamExt};
use rust_ipfs::{Ipfs, StreamProtocol};
use tokio::task::JoinHandle;

use super::blocks::{Blocks, MAX_BLOCK_BYTES};
use super::dag;
use super::error::StoreError;
use crate::peers::Peers;
use crate::places::Places;

/// The protocol's name.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/accel/blocks/1");
/// Answers "not here" in place of a length.
pub(super) const ABSENT: u32 = u32::MAX;
/// A CID of version 1 with a 32-byte hash is 36 bytes; this leaves room for longer codecs.
pub(super) const MAX_CID_BYTES: usize = 64;

/// Streams served at once; more are refused, and their askers use bitswap or another peer.
const MAX_STREAMS: usize = 64;
/// Streams served at once to one peer: a node opens one for each model that it fetches.
const MAX_STREAMS_PER_PEER: usize = 8;
/// Blocks read ahead of the network for one stream.
const READ_AHEAD: usize = 3;
/// A stream on which nobody asks is closed.
const IDLE: Duration = Duration::from_secs(120);
/// A CID that has begun must be whole within this time.
const HALF_A_WANT: Duration = Duration::from_secs(10);
/// A peer that takes no bytes is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The task that serves; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Serving {
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Serving {
    pub async fn start(ipfs: &Ipfs, blocks: Blocks, peers: Peers) -> Result<Self, StoreError> {
        let mut incoming = ipfs.new_stream(PROTOCOL).await.map_err(|error| StoreError::Swarm {
            doing: "take block streams (it must be built `with_streams`)",
            found: error.to_string(),
        })?;
        let task = tokio::spawn(async move {
            let places = Places::new(MAX_STREAMS, MAX_STREAMS_PER_PEER);
            let mut streams = tokio::task::JoinSet::new();
            while let Some((peer, stream)) = incoming.next().await {
                while streams.try_join_next().is_some() {}
                if peers.is_only_relayed(&peer) {
                    tracing::debug!(%peer, "asked for blocks by a relay, where none go");
                    continue;
                }
                let Some(place) = places.enter(peer) else {
                    tracing::debug!(%peer, "too many block streams are open; one more was refused");
                    continue;
                };
                let blocks = blocks.clone();
                streams.spawn(async move {
                    if let Err(error) = serve(stream, blocks).await {
                        tracing::debug!(%peer, %error, "a block stream ended");
                    }
                    drop(place);
                });
            }
        });
        Ok(Self { task })
    }
}

async fn serve(stream: rust_ipfs::Stream, blocks: Blocks) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let answers = wants(reader).map(|cid| {
        let blocks = blocks.clone();
        async move {
            let cid = cid?;
            let read = move || blocks.read_unverified(&cid);
            tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)?.map_err(std::io::Error::other)
        }
    });
    let mut answers = std::pin::pin!(answers.buffered(READ_AHEAD));
    while let Some(answer) = answers.next().await {
        let block = answer?.filter(|block| block.len() as u64 <= MAX_BLOCK_BYTES);
        let write = async {
            match block {
                Some(block) => {
                    writer.write_all(&(block.len() as u32).to_be_bytes()).await?;
                    writer.write_all(&block).await?;
                }
                None => writer.write_all(&ABSENT.to_be_bytes()).await?,
            }
            writer.flush().await
        };
        tokio::time::timeout(WRITE_TIMEOUT, write).await??;
    }
    writer.close().await
}

/// The CIDs a peer asks for, until it closes its side.
fn wants<R: futures::AsyncRead + Unpin>(reader: R) -> impl Stream<Item = std::io::Result<Cid>> {
    let reader = futures::io::BufReader::new(reader);
    stream::try_unfold(reader, |mut reader| async move {
        let mut length = [0];
        match tokio::time::timeout(IDLE, reader.read(&mut length)).await? {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        let length = length[0] as usize;
        if length > MAX_CID_BYTES {
            return Err(std::io::Error::other(format!("a CID of {length} bytes; {MAX_CID_BYTES} at most")));
        }
        let mut bytes = [0; MAX_CID_BYTES];
        tokio::time::timeout(HALF_A_WANT, reader.read_exact(&mut bytes[..length])).await??;
        let cid = Cid::try_from(&bytes[..length]).map_err(std::io::Error::other)?;
        let cid = dag::canonical(&cid).map_err(std::io::Error::other)?;
        Ok(Some((cid, reader)))
    })
}
