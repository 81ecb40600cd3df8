//! Models that are spread over several peers: what a peer offers to hold, and the messages of `/accel/experts/1`. Those of
//! `/accel/stages/1` are in [`stage`](crate::stage).
//!
//! A peer that works on a model with others opens one stream to each of them, and keeps it. Many requests may be under
//! way on it; replies come in any order and name their request. What a stream had the other side hold is let go of when
//! the stream closes.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::capability::Arithmetic;
use crate::error::JobError;
use crate::model::ModelRef;

/// Stream protocol for experts.
pub const EXPERTS_PROTOCOL: &str = "/accel/experts/1";

/// Numbers of an activation, row after row, each exactly as it was computed.
#[derive(Clone, PartialEq)]
pub struct Floats(pub Vec<f32>);

impl fmt::Debug for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Floats({} numbers)", self.0.len())
    }
}

impl Serialize for Floats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(4 * self.0.len());
        self.0.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Floats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Bytes)
    }
}

struct Bytes;

impl Visitor<'_> for Bytes {
    type Value = Floats;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers of four bytes each")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Floats, E> {
        let (numbers, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        Ok(Floats(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()))
    }
}

/// Some experts of a layer. Layers are counted through all stacks of a model, an encoder's before its decoder's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerExperts {
    /// The layer.
    pub layer: u32,
    /// The experts.
    pub experts: Vec<u32>,
}

/// The question what a peer could do for a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferRequest {
    /// The model.
    pub model: ModelRef,
    /// How most of its weights are stored, as GGUF or safetensors calls it: the pace depends on it.
    pub dtype: String,
}

/// What a peer could do for a model that is spread over several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Whether it works on models with others at all.
    pub serves: bool,
    /// Peers of one number share the processors of one machine.
    pub host: u64,
    /// Processors of that machine.
    pub cores: u32,
    /// Threads that compute there.
    pub threads: u32,
    /// Bytes of memory that weights may still take there, idle models not counted.
    pub memory_bytes: u64,
    /// Bytes of disk that blocks may still take there.
    pub disk_bytes: u64,
    /// The arithmetic it computes with: only peers with the same give the same bits together.
    pub arithmetic: Arithmetic,
    /// 10^9 bytes of weights a second that it goes through for one token.
    pub gbytes_per_second: f64,
    /// 10^9 floating-point operations a second for many tokens.
    pub gflops: f64,
    /// Experts that are on its disk whole.
    pub experts: Vec<LayerExperts>,
    /// Layers that are on its disk whole, but for their experts.
    pub layers: Vec<u32>,
    /// Whether the whole model is on its disk.
    pub whole: bool,
}

/// A request to a peer that holds a share of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareRequest<A> {
    /// What the reply names; each is used once on a stream.
    pub id: u64,
    /// What is asked.
    pub ask: A,
}

/// A request on a stream of [`EXPERTS_PROTOCOL`].
pub type ExpertRequest = ShareRequest<ExpertAsk>;

/// What is asked of a peer that holds experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ExpertAsk {
    /// Have these experts in memory, fetched by CID if need be. Answered by [`ShareAnswer::Holding`] as often as there is
    /// something to tell, and at last by [`ShareAnswer::Held`].
    Hold {
        /// What later requests call them; asking again under one name adds to what it has.
        holding: u32,
        /// The model.
        model: ModelRef,
        /// The experts.
        experts: Vec<LayerExperts>,
    },
    /// Put rows through experts. Answered by [`ShareAnswer::Rows`]: one row for each of `places`, not weighed.
    Forward {
        /// What was held.
        holding: u32,
        /// The layer of the experts.
        layer: u32,
        /// Which row goes through which expert.
        places: Vec<(u32, u32)>,
        /// The rows.
        rows: Floats,
    },
    /// Send these rows back, to measure the way. Answered by [`ShareAnswer::Rows`].
    Echo(Floats),
    /// Let go of what is held. Answered by [`ShareAnswer::Held`] with nothing in it.
    Release {
        /// What was held.
        holding: u32,
    },
}

/// A reply on a stream of [`EXPERTS_PROTOCOL`] or [`STAGES_PROTOCOL`](crate::stage::STAGES_PROTOCOL).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareReply {
    /// The request.
    pub id: u64,
    /// The answer.
    pub answer: ShareAnswer,
}

/// What a peer answers that holds a share of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ShareAnswer {
    /// It fetches what it is to hold.
    Holding {
        /// Bytes that came so far.
        done_bytes: u64,
        /// Bytes that are to come, as far as is known, and those that came.
        total_bytes: u64,
    },
    /// It holds what it was to hold.
    Held {
        /// Bytes in memory.
        memory_bytes: u64,
        /// Bytes that came from peers.
        fetched_bytes: u64,
        /// Bytes that were on its disk.
        here_bytes: u64,
    },
    /// Rows that were asked for.
    Rows {
        /// The rows, in the order of what was asked.
        rows: Floats,
        /// Microseconds from when the request was read to when the rows were ready, those it waited included.
        micros: u64,
    },
    /// It could not.
    Failed(JobError),
    /// Rows that were asked for, the first of them: more follow, and [`ShareAnswer::Rows`] has the last.
    Piece(Floats),
    /// Experts that routers chose in the pass whose rows follow: of each layer those of one token after the other.
    Routed(Vec<LayerExperts>),
}
