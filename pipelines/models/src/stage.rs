//! Layers that somebody else works out, another thread or another machine.
//!
//! What a stage keeps of sequences, it keeps as [`State`](crate::cache::State) would keep it here, under the same slots.
//! Passes are worked on in the order in which they are sent, so that many may be under way; whoever sends them hears of
//! each when it is done.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::mpsc::channel;

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::cache::Row;
use crate::layers::attention::Source;
use crate::usage::Routed;

/// Somebody who works out some layers.
pub trait Stage: Debug + Send + Sync {
    /// The sequences of a new state, none yet.
    fn begin(&self) -> Box<dyn Sequences>;
}

/// What a stage keeps of the sequences of one state; it forgets them when this is dropped.
pub trait Sequences: Debug + Send {
    /// Sends states through the layers; `done` is called once. That what was kept is gone it says by
    /// [`ModelError::Lost`]: the sequences are then to be read from their beginnings.
    fn send(&mut self, pass: StagePass, done: Done);

    /// Forgets a sequence.
    fn clear(&mut self, slot: usize);

    /// Makes of each slot a copy of the one that is named for it.
    fn reorder(&mut self, from: &[usize]);
}

/// Hears what came of a pass: `[wanted, hidden]`.
pub type Done = Box<dyn FnOnce(Result<Tensor, ModelError>) + Send>;

/// Tokens on their way through the layers of a stage.
#[derive(Clone, Debug)]
pub struct StagePass {
    /// The rows that they belong to, one after the other.
    pub rows: Vec<Row>,
    /// Their states: `[tokens, hidden]`.
    pub x: Tensor,
    /// The tokens whose states are wanted back; those of others go no further.
    pub wanted: Vec<usize>,
    /// Of each row which positions no token sees; empty where all are seen.
    pub absent: Vec<Vec<bool>>,
    /// What the sequences are made from, where that is not kept yet.
    pub source: Option<Source>,
    /// Whether the stage sees what came before, and keeps what it reads.
    pub keeps: bool,
    /// Who hears what the routers of the stage choose.
    pub routed: Option<Arc<dyn Routed>>,
}

/// Sends states through the layers, and waits.
///
/// # Errors
///
/// When the stage fails.
pub fn wait(sequences: &mut dyn Sequences, pass: StagePass) -> Result<Tensor, ModelError> {
    let (send, done) = channel();
    // Nobody else waits for it.
    sequences.send(pass, Box::new(move |made| drop(send.send(made))));
    let silent = |_| ModelError::Lost { part: "a stage".into(), reason: "it went without an answer".into() };
    done.recv().map_err(silent)?
}
