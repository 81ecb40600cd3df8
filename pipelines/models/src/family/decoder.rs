//! Decoders of text: a stack, and logits of the next token.

use accel_backends::tensor::{Engine, Linear, Tensor};

use crate::ModelError;
use crate::cache::{Row, State};
use crate::rules::Loader;
use crate::spec::{DecoderSpec, HeadSpec};
use crate::stack::Stack;

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder {
    stack: Stack,
    head: Linear,
    context: usize,
}

impl Decoder {
    /// Reads a decoder.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: DecoderSpec) -> Result<Self, ModelError> {
        let stack = Stack::load(loader, spec.stack)?;
        let head = match spec.head {
            HeadSpec::Tied => Linear { weight: stack.embedding().clone(), bias: None },
            HeadSpec::Own => loader.linear("head", stack.spec().vocabulary, stack.spec().hidden, false)?,
        };
        Ok(Self { stack, head, context: spec.context })
    }

    /// The most positions of a sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.stack.spec().vocabulary
    }

    /// A state without sequences.
    pub fn state(&self) -> State {
        State::new(self.stack.spec().layers.len())
    }

    /// Bytes of state that one position takes.
    pub fn position_bytes(&self) -> u64 {
        let width = |layer: &crate::spec::LayerSpec| (layer.attention.kv_heads * layer.attention.head) as u64;
        self.stack.spec().layers.iter().map(|layer| 2 * 4 * width(layer)).sum()
    }

    /// Reads tokens, and answers the logits after some of them: `[wanted, vocabulary]`.
    ///
    /// `ids` are the tokens of all rows, one after the other; `wanted` are places in `ids`.
    ///
    /// # Errors
    ///
    /// When the rows do not fit the tokens or the state.
    pub fn forward(
        &self,
        engine: &Engine,
        ids: &[u32],
        rows: &[Row],
        wanted: &[usize],
        state: &mut State,
    ) -> Result<Option<Tensor>, ModelError> {
        let tokens: usize = rows.iter().map(|row| row.len).sum();
        if tokens != ids.len() || tokens == 0 {
            let expected = format!("{tokens} tokens, and at least one");
            return Err(ModelError::State { place: "rows", expected, found: ids.len().to_string() });
        }
        let x = self.stack.embed(engine, ids)?;
        let x = self.stack.layers(engine, 0..self.stack.spec().layers.len(), x, rows, state)?;
        if wanted.is_empty() {
            return Ok(None);
        }
        self.head(engine, &x, wanted).map(Some)
    }

    fn head(&self, engine: &Engine, x: &Tensor, wanted: &[usize]) -> Result<Tensor, ModelError> {
        let x = x.rows(engine, wanted).map_err(ModelError::at("head"))?;
        self.stack.finish(engine, &x)?.linear(engine, &self.head).map_err(ModelError::at("head"))
    }
}
