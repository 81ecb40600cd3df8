//! The messages of `/accel/stages/1`: layers of a model that a peer works out, and what it keeps of sequences.
//!
//! What is asked of one holding is done in the order in which it is asked. Rows that do not fit one frame travel in pieces.

use serde::{Deserialize, Serialize};

use crate::model::ModelRef;
use crate::share::{Floats, LayerExperts, ShareRequest};

/// Stream protocol for stages.
pub const STAGES_PROTOCOL: &str = "/accel/stages/1";

/// A request on a stream of [`STAGES_PROTOCOL`].
pub type StageRequest = ShareRequest<StageAsk>;

/// What is asked of a peer that works out layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StageAsk {
    /// Have these layers in memory, fetched by CID if need be. Answered by
    /// [`ShareAnswer::Holding`](crate::ShareAnswer::Holding) as often as there is something to tell, and at last by
    /// [`ShareAnswer::Held`](crate::ShareAnswer::Held).
    Hold {
        /// What later requests call them; each name is used once on a stream.
        holding: u32,
        /// The model.
        model: ModelRef,
        /// The first layer, counted through all stacks.
        first: u32,
        /// How many layers, all of one stack.
        count: u32,
        /// Experts of these layers that are to be held too.
        experts: Vec<LayerExperts>,
        /// Who is to be asked for the others.
        elsewhere: Vec<PeerExperts>,
    },
    /// Rows of the pass whose [`StageAsk::Forward`] follows under the same number; not answered.
    Piece {
        /// What was held.
        holding: u32,
        /// The rows.
        rows: Floats,
    },
    /// Put tokens through the layers. Answered by pieces and [`ShareAnswer::Rows`](crate::ShareAnswer::Rows): the rows of
    /// what is wanted.
    Forward(Box<StageForward>),
    /// Change what is kept of sequences. Answered by [`ShareAnswer::Held`](crate::ShareAnswer::Held) with nothing in it.
    Change {
        /// What was held.
        holding: u32,
        /// The sequences: a name that whoever asks gave them.
        state: u32,
        /// What is done to them.
        change: StateChange,
    },
    /// Send these rows back, to measure the way. Answered by [`ShareAnswer::Rows`](crate::ShareAnswer::Rows).
    Echo(Floats),
    /// Let go of what is held. Answered by [`ShareAnswer::Held`](crate::ShareAnswer::Held) with nothing in it.
    Release {
        /// What was held.
        holding: u32,
    },
}

/// Experts that a peer has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerExperts {
    /// The peer id.
    pub peer: String,
    /// What it is to be asked for.
    pub experts: Vec<LayerExperts>,
}

/// A pass through the layers of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageForward {
    /// What was held.
    pub holding: u32,
    /// The sequences that are continued, a name that whoever asks gave them; none where nothing came before, and nothing
    /// is to be kept.
    pub state: Option<u32>,
    /// Which tokens these are, one row after the other.
    pub rows: Vec<StageRow>,
    /// The tokens whose rows are wanted back.
    pub wanted: Vec<u32>,
    /// Of each row which positions of its sequence no token sees; empty where all are seen.
    pub absent: Vec<Vec<bool>>,
    /// What the sequences are made from, where that is not kept yet: its rows come after those of the tokens.
    pub source: Option<StageSource>,
    /// Whether it is to be said what the routers of the layers choose, by [`ShareAnswer::Routed`].
    ///
    /// [`ShareAnswer::Routed`]: crate::share::ShareAnswer::Routed
    pub routed: bool,
    /// The rows, without those that came in pieces.
    pub floats: Floats,
}

/// Some tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRow {
    /// How many tokens.
    pub len: u32,
    /// How many positions of the sequence came before.
    pub past: u32,
    /// The sequence.
    pub slot: u32,
    /// How many positions the sequence began with.
    pub horizon: u32,
}

/// What sequences are made from: the states of an encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSource {
    /// Positions of each sequence.
    pub lengths: Vec<u32>,
    /// Which of them no token sees.
    pub absent: Vec<Vec<bool>>,
}

/// A change of what is kept of sequences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateChange {
    /// Forget a sequence.
    Clear(u32),
    /// Make of each slot a copy of the one that is named for it.
    Reorder(Vec<u32>),
    /// Forget all of them.
    Forget,
}
