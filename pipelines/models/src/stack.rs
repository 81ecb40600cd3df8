//! The stack of layers under every text model: `embed`, then `layers` over any range, then `finish`.
//!
//! Tokens of all sequences lie flat, `[tokens, hidden]`; only what mixes tokens looks at the rows that they belong to. A
//! stage of a model that is split between peers is a range of layers.

mod layer;
mod layers;

use std::ops::Range;
use std::sync::Arc;

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::cache::{Row, State};
use crate::layers::attention::Source;
use crate::layers::embed::{Embed, Spliced, Tokens};
use crate::layers::moe::Experts;
use crate::layers::norm::Norm;
use crate::layers::rope::Place;
use crate::rules::Loader;
use crate::spec::StackSpec;
use crate::stage::Stage;
use crate::usage::{ExpertUsage, Routed};
use layer::normed;
pub use layers::{Layers, Segment};

/// A stack with its weights.
#[derive(Debug)]
pub struct Stack {
    embed: Embed,
    layers: Layers,
    final_norm: Option<Norm>,
    usage: Option<Arc<ExpertUsage>>,
}

/// Sequences as a stack reads them.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The rows, one after the other.
    pub rows: &'a [Row],
    /// Which positions of each row's sequence no token sees, where there is no state that knows.
    pub absent: &'a [Vec<bool>],
    /// What the sequences are made from.
    pub source: Option<&'a Source>,
}

impl Reading<'_> {
    /// Which positions of each row's sequence no token sees.
    fn absent_of(&self, state: Option<&State>) -> Vec<Vec<bool>> {
        match state {
            Some(state) => self.rows.iter().map(|row| state.absent(row.slot).to_vec()).collect(),
            None => (0..self.rows.len()).map(|row| self.absent.get(row).cloned().unwrap_or_default()).collect(),
        }
    }
}

impl Stack {
    /// Reads a stack.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: StackSpec) -> Result<Self, ModelError> {
        Self::load_shared(loader, spec, None)
    }

    /// Reads a stack whose table of tokens is another part's.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load_shared(loader: &Loader<'_>, spec: StackSpec, shared: Option<&Tensor>) -> Result<Self, ModelError> {
        let embed = Embed::load(loader, &spec.embed, spec.hidden, shared)?;
        let final_norm = Norm::load_optional(loader, "final_norm", spec.final_norm.as_ref(), spec.hidden)?;
        Ok(Self { embed, layers: Layers::load(loader, spec)?, final_norm, usage: None })
    }

    /// What makes states of tokens.
    pub fn embedding(&self) -> &Embed {
        &self.embed
    }

    /// What it is made of.
    pub fn spec(&self) -> &StackSpec {
        self.layers.spec()
    }

    /// A state without sequences.
    pub fn state(&self) -> State {
        self.layers.state()
    }

    /// The states of tokens: `[tokens, hidden]`.
    ///
    /// # Errors
    ///
    /// When a token is not in the vocabulary.
    pub fn embed(&self, tokens: Tokens<'_>, rows: &[Row]) -> Result<Tensor, ModelError> {
        self.embed.forward(tokens, rows, None)
    }

    /// The same with other states in place of some tokens'.
    ///
    /// # Errors
    ///
    /// When a token or a position is in no table.
    pub fn embed_spliced(
        &self,
        tokens: Tokens<'_>,
        rows: &[Row],
        spliced: Option<&Spliced>,
    ) -> Result<Tensor, ModelError> {
        self.embed.forward(tokens, rows, spliced)
    }

    /// A range of layers. x: `[tokens, hidden]`, the tokens of all rows one after the other, to the same shape. With a
    /// state, what came before is seen, and what was read is kept.
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state.
    pub fn layers(
        &self,
        range: Range<usize>,
        x: Tensor,
        reading: &Reading<'_>,
        state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        let places = state.as_ref().and_then(|state| state.places(reading.rows));
        self.placed_layers(range, x, reading, places.as_deref(), state)
    }

    /// The same for tokens that are at these places, one row after the other.
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state.
    pub fn placed_layers(
        &self,
        range: Range<usize>,
        x: Tensor,
        reading: &Reading<'_>,
        places: Option<&[Place]>,
        state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        self.layers.forward(range, x, reading, places, state)
    }

    /// Where the layers of a range are, in their order.
    ///
    /// # Errors
    ///
    /// When some are nowhere.
    pub fn segments(&self, range: Range<usize>) -> Result<Vec<Segment>, ModelError> {
        self.layers.segments(range)
    }

    /// Has somebody else work out a range of layers.
    pub fn set_stage(&mut self, range: Range<usize>, stage: Arc<dyn Stage>) {
        self.layers.set_stage(range, stage);
    }

    /// Whether somebody else works out some layers.
    pub fn has_stages(&self) -> bool {
        self.layers.has_stages()
    }

    /// Has somebody else work out the experts of all layers that have any.
    pub fn set_experts(&mut self, experts: &Arc<dyn Experts>) {
        self.layers.set_experts(experts);
    }

    /// Has the routers of all layers say what they choose; `first` is the number of this stack's first layer in the model.
    pub fn watch_experts(&mut self, first: usize, usage: &Arc<ExpertUsage>) {
        self.layers.watch_experts(first, Some(&(usage.clone() as Arc<dyn Routed>)));
        self.usage = Some(usage.clone());
    }

    /// Where the routers say what they choose.
    pub fn expert_usage(&self) -> Option<&Arc<ExpertUsage>> {
        self.usage.as_ref()
    }

    /// All layers and the norm after them.
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state.
    pub fn states(
        &self,
        tokens: Tokens<'_>,
        reading: &Reading<'_>,
        mut state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        let x = self.embed(tokens, reading.rows)?;
        let x = self.layers(0..self.spec().layers.len(), x, reading, state.as_deref_mut())?;
        if let Some(state) = state {
            state.advance(reading.rows);
        }
        self.finish(&x)
    }

    /// The norm after the last layer.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn finish(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        normed(self.final_norm.as_ref(), x)
    }

    /// Bytes of keys and values that one position takes here.
    pub fn position_bytes(&self) -> u64 {
        self.layers.position_bytes()
    }

    /// Bytes that a sequence takes here however long it is: what its layers carry.
    pub fn sequence_bytes(&self) -> u64 {
        self.layers.sequence_bytes()
    }
}
