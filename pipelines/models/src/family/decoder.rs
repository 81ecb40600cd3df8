//! Decoders of text: a stack, and a head that makes logits of its states.

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
    head: HeadSpec,
    matrix: Option<Linear>,
    context: usize,
}

/// Something that a model answers, as Hugging Face's classes name it.
#[derive(Debug)]
pub struct Output {
    /// Its name.
    pub name: &'static str,
    /// `[tokens, ..]`, the tokens of all rows one after the other, or `[rows, ..]`.
    pub tensor: Tensor,
}

impl Decoder {
    /// Reads a decoder.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: DecoderSpec) -> Result<Self, ModelError> {
        let stack = Stack::load(loader, spec.stack)?;
        let (vocabulary, hidden) = (stack.spec().vocabulary, stack.spec().hidden);
        let matrix = match spec.head {
            HeadSpec::States => None,
            HeadSpec::NextToken { tied: true } => Some(Linear { weight: stack.embedding().clone(), bias: None }),
            HeadSpec::NextToken { tied: false } => Some(loader.linear("head.next_token", vocabulary, hidden, false)?),
            HeadSpec::SequenceLabels { labels, .. } => Some(loader.linear("head.labels", labels, hidden, false)?),
            HeadSpec::TokenLabels { labels } => Some(loader.linear("head.labels", labels, hidden, true)?),
            HeadSpec::Span => Some(loader.linear("head.span", 2, hidden, true)?),
        };
        Ok(Self { stack, head: spec.head, matrix, context: spec.context })
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

    /// Reads tokens, and answers what the head makes of some of them: `[wanted, vocabulary]` for logits of the next
    /// token.
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
        fits(ids, rows)?;
        let x = self.stack.embed(engine, ids)?;
        let x = self.stack.layers(engine, 0..self.stack.spec().layers.len(), x, rows, state)?;
        if wanted.is_empty() {
            return Ok(None);
        }
        self.head(engine, &x, wanted).map(Some)
    }

    /// Reads tokens, and answers all that the model's class answers about them.
    ///
    /// # Errors
    ///
    /// When the rows do not fit the tokens or the state.
    pub fn outputs(
        &self,
        engine: &Engine,
        ids: &[u32],
        rows: &[Row],
        state: &mut State,
    ) -> Result<Vec<Output>, ModelError> {
        fits(ids, rows)?;
        let wanted = match self.head {
            HeadSpec::SequenceLabels { padding, .. } => last_tokens(ids, rows, padding),
            _ => (0..ids.len()).collect(),
        };
        let Some(tensor) = self.forward(engine, ids, rows, &wanted, state)? else { return Ok(Vec::new()) };
        let name = match self.head {
            HeadSpec::States => "last_hidden_state",
            HeadSpec::NextToken { .. } | HeadSpec::SequenceLabels { .. } | HeadSpec::TokenLabels { .. } => "logits",
            HeadSpec::Span => {
                let column = |name, column| {
                    let values = tensor.read(|all| all.iter().skip(column).step_by(2).copied().collect::<Vec<_>>())?;
                    Ok(Output { name, tensor: Tensor::new(values, &[ids.len()])? })
                };
                let columns = [column("start_logits", 0), column("end_logits", 1)];
                return columns.into_iter().collect::<Result<_, _>>().map_err(ModelError::at("head"));
            }
        };
        Ok(vec![Output { name, tensor }])
    }

    fn head(&self, engine: &Engine, x: &Tensor, wanted: &[usize]) -> Result<Tensor, ModelError> {
        let x = x.rows(engine, wanted).map_err(ModelError::at("head"))?;
        let x = self.stack.finish(engine, &x)?;
        self.matrix.as_ref().map_or(Ok(x.clone()), |matrix| x.linear(engine, matrix)).map_err(ModelError::at("head"))
    }
}

fn fits(ids: &[u32], rows: &[Row]) -> Result<(), ModelError> {
    let tokens: usize = rows.iter().map(|row| row.len).sum();
    if tokens == ids.len() && tokens > 0 {
        return Ok(());
    }
    let expected = format!("{tokens} tokens, and at least one");
    Err(ModelError::State { place: "rows", expected, found: ids.len().to_string() })
}

/// The place in `ids` of each row's last token that is no padding; its first where all are, as Hugging Face has it.
fn last_tokens(ids: &[u32], rows: &[Row], padding: Option<i64>) -> Vec<usize> {
    let mut begin = 0;
    let last = |row: &Row| {
        let own = &ids[begin..begin + row.len];
        let last = own.iter().rposition(|&id| padding != Some(i64::from(id))).unwrap_or(0);
        begin += row.len;
        begin - row.len + last
    };
    rows.iter().map(last).collect()
}
