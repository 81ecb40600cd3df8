//! Values on a stream with one peer, each in a frame.

use std::time::Duration;

use accel_protocol::frame::{self, PREFIX_BYTES};
use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::swarm::SwarmError;

/// A stream both ways.
#[derive(Debug)]
pub struct FrameStream {
    reader: FrameReader,
    writer: FrameWriter,
}

/// What a peer sends.
#[derive(Debug)]
pub struct FrameReader {
    peer: PeerId,
    stream: ReadHalf<Stream>,
}

/// What is sent to a peer.
#[derive(Debug)]
pub struct FrameWriter {
    peer: PeerId,
    stream: WriteHalf<Stream>,
}

impl FrameStream {
    /// Frames on a stream with `peer`.
    pub fn new(peer: PeerId, stream: Stream) -> Self {
        let (reader, writer) = stream.split();
        Self { reader: FrameReader { peer, stream: reader }, writer: FrameWriter { peer, stream: writer } }
    }

    /// Both sides, to be used at the same time.
    pub fn split(self) -> (FrameReader, FrameWriter) {
        (self.reader, self.writer)
    }

    /// Sends one value.
    ///
    /// # Errors
    /// When the value is too large or the stream breaks.
    pub async fn send<T: Serialize>(&mut self, value: &T) -> Result<(), SwarmError> {
        let bytes = self.writer.frame(value)?;
        self.writer.write(&bytes).await?;
        self.writer.flush().await
    }

    /// The next value; none when the peer closed the stream between two frames.
    ///
    /// # Errors
    /// When the frame is too large, malformed or cut off.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, SwarmError> {
        self.reader.receive().await
    }

    /// Closes our side.
    pub async fn close(&mut self) {
        self.writer.close().await;
    }
}

impl FrameReader {
    /// The next value; none when the peer closed the stream between two frames.
    ///
    /// # Errors
    /// When the frame is too large, malformed or cut off.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, SwarmError> {
        match self.begin().await? {
            Some(begun) => self.rest(begun).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same from a peer that has to begin a frame within `idle`, unless it `may_rest` then, and to end it within `whole`.
    ///
    /// # Errors
    /// When it does not, and as `receive`.
    pub async fn receive_within<T: DeserializeOwned>(
        &mut self,
        idle: Duration,
        may_rest: impl Fn() -> bool,
        whole: Duration,
    ) -> Result<Option<T>, SwarmError> {
        let peer = self.peer;
        let silent = |within| SwarmError::Silent { peer, within };
        let begun = loop {
            match tokio::time::timeout(idle, self.begin()).await {
                Ok(begun) => break begun?,
                Err(_) if may_rest() => {}
                Err(_) => return Err(silent(idle)),
            }
        };
        match begun {
            Some(begun) => tokio::time::timeout(whole, self.rest(begun)).await.map_err(|_| silent(whole))?.map(Some),
            None => Ok(None),
        }
    }

    /// The first bytes of a frame, and how many there are.
    async fn begin(&mut self) -> Result<Option<([u8; PREFIX_BYTES], usize)>, SwarmError> {
        let peer = self.peer;
        let mut prefix = [0; PREFIX_BYTES];
        let first = self.stream.read(&mut prefix).await.map_err(|source| SwarmError::Stream { peer, source })?;
        Ok((first > 0).then_some((prefix, first)))
    }

    async fn rest<T: DeserializeOwned>(
        &mut self,
        (mut prefix, first): ([u8; PREFIX_BYTES], usize),
    ) -> Result<T, SwarmError> {
        let peer = self.peer;
        let broken = |source| SwarmError::Stream { peer, source };
        self.stream.read_exact(&mut prefix[first..]).await.map_err(broken)?;
        let length = frame::body_length(prefix).map_err(|source| SwarmError::Frame { peer, source })?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.map_err(broken)?;
        frame::decode(&body).map_err(|source| SwarmError::Frame { peer, source })
    }
}

impl FrameWriter {
    /// The frame of a value.
    ///
    /// # Errors
    /// When the value is too large.
    pub fn frame<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, SwarmError> {
        frame::frame(value).map_err(|source| SwarmError::Frame { peer: self.peer, source })
    }

    /// Writes a frame; it may lie in a buffer until the next [`FrameWriter::flush`].
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn write(&mut self, frame: &[u8]) -> Result<(), SwarmError> {
        self.stream.write_all(frame).await.map_err(|source| SwarmError::Stream { peer: self.peer, source })
    }

    /// Sends what was written.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn flush(&mut self) -> Result<(), SwarmError> {
        self.stream.flush().await.map_err(|source| SwarmError::Stream { peer: self.peer, source })
    }

    /// Closes our side.
    pub async fn close(&mut self) {
        if let Err(error) = self.stream.close().await {
            tracing::debug!(peer = %self.peer, %error, "a stream did not close cleanly");
        }
    }
}
