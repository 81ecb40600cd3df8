//! Decoders of text: a stack, and a head that makes logits of its states.

use accel_backends::tensor::{Engine, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::{Row, State};
use crate::layers::embed::{Spliced, Tokens};
use crate::layers::summary::Summary;
use crate::model::{Begun, Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::{DecoderSpec, HeadSpec, LogitsSpec};
use crate::stack::{Reading, Stack};

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder {
    stack: Stack,
    head: HeadSpec,
    matrix: Option<Linear>,
    summary: Option<Summary>,
    context: usize,
}

/// Sequences of one length, padded where some are shorter.
#[derive(Debug)]
pub struct Batch {
    /// Whole `[sequences * length]`.
    pub ids: Tensor,
    /// Their values.
    pub known: Vec<i64>,
    /// How many sequences.
    pub sequences: usize,
    /// How many tokens each has.
    pub length: usize,
    /// Which tokens of each are padding.
    pub absent: Vec<Vec<bool>>,
    /// Whole `[sequences * length]`: the types of tokens, where they are given.
    pub types: Option<Tensor>,
}

impl Batch {
    /// The sequences `[sequences, length]` of that input, and which tokens of them the mask of the other name leaves out.
    ///
    /// # Errors
    ///
    /// When they are missing or of another shape.
    pub fn of(inputs: &Inputs, ids: &str, mask: &str) -> Result<Self, ModelError> {
        let (known, dims) = inputs.whole(ids)?;
        // Several choices of each are sequences too.
        let (sequences, length) = match *dims {
            [sequences, length] => (sequences, length),
            [groups, choices, length] => (groups * choices, length),
            _ => return Err(ModelError::input(ids, "[batch, tokens]", dims)),
        };
        let absent = absent(inputs, mask, sequences, length)?;
        let ids = inputs.tensor(ids)?.reshape(&[sequences * length]).map_err(ModelError::at(ids))?;
        Ok(Self { ids, known, sequences, length, absent, types: None })
    }

    /// The same with the types of that input, where it is given.
    ///
    /// # Errors
    ///
    /// When they are of another shape.
    pub fn with_types(self, inputs: &Inputs, types: &str) -> Result<Self, ModelError> {
        let flat = |types: &Tensor| types.reshape(&[self.sequences * self.length]).map_err(ModelError::at("types"));
        Ok(Self { types: inputs.optional(types).map(flat).transpose()?, ..self })
    }

    /// Its tokens.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens { ids: &self.ids, known: &self.known, types: self.types.as_ref() }
    }

    /// Its rows.
    pub fn rows(&self) -> Vec<Row> {
        Row::whole(vec![self.length; self.sequences])
    }

    /// Its tokens, sequence by sequence.
    pub fn sequences_of_tokens(&self) -> Vec<Vec<i64>> {
        self.known.chunks(self.length.max(1)).map(<[i64]>::to_vec).collect()
    }

    /// Has the state know the type of each sequence's last token, where types are given.
    ///
    /// # Errors
    ///
    /// When they are no whole numbers.
    pub fn keep_types(&self, inputs: &Inputs, state: &mut State) -> Result<(), ModelError> {
        if let Some((types, _)) = inputs.optional_whole("token_type_ids")? {
            let last = types.chunks(self.length.max(1)).filter_map(<[i64]>::last);
            last.enumerate().for_each(|(slot, &last)| state.set_last_type(slot, last));
        }
        Ok(())
    }

    /// What a stack reads of it.
    pub fn reading<'a>(&'a self, rows: &'a [Row]) -> Reading<'a> {
        Reading { rows, absent: &self.absent, source: None }
    }

    /// `[sequences * length, ..]` as `[sequences, length, ..]`.
    ///
    /// # Errors
    ///
    /// When it is of another shape.
    pub fn apart(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        x.reshape(&[&[self.sequences, self.length], &x.dims()[1..]].concat())
    }
}

/// One token more of each sequence.
#[derive(Debug)]
pub struct NextTokens<'a> {
    ids: Tensor,
    known: &'a [i64],
    types: Option<Tensor>,
}

impl<'a> NextTokens<'a> {
    /// These tokens, of the types that their sequences ended with.
    ///
    /// # Errors
    ///
    /// When a tensor cannot be made.
    pub fn new(engine: &Engine, known: &'a [i64], state: &State) -> Result<Self, ModelError> {
        let whole = |values: Vec<i64>| Tensor::whole(engine, values, &[known.len()]).map_err(ModelError::at("tokens"));
        Ok(Self { ids: whole(known.to_vec())?, known, types: state.last_types().map(whole).transpose()? })
    }

    /// As a stack reads them.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens { ids: &self.ids, known: self.known, types: self.types.as_ref() }
    }
}

/// Which positions a mask `[sequences, length]` leaves out; none where there is no mask.
///
/// # Errors
///
/// When it is of another shape.
pub fn absent(inputs: &Inputs, mask: &str, sequences: usize, length: usize) -> Result<Vec<Vec<bool>>, ModelError> {
    match inputs.optional_whole(mask)? {
        Some((mask, [lead @ .., columns])) if (lead.iter().product(), *columns) == (sequences, length) => {
            Ok(mask.chunks(length.max(1)).map(|row| row.iter().map(|&seen| seen == 0).collect()).collect())
        }
        Some((_, dims)) => Err(ModelError::input(mask, &format!("[{sequences}, {length}]"), dims)),
        None => Ok(vec![Vec::new(); sequences]),
    }
}

impl Decoder {
    /// Reads a decoder.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: DecoderSpec) -> Result<Self, ModelError> {
        let stack = Stack::load(loader, spec.stack)?;
        let hidden = stack.spec().hidden;
        let matrix = match &spec.head {
            HeadSpec::States => None,
            HeadSpec::NextToken(logits) => Some(logits_matrix(loader, &stack, logits, hidden)?),
            HeadSpec::SequenceLabels { labels, .. } => Some(loader.linear("head.labels", *labels, hidden, false)?),
            HeadSpec::TokenLabels { labels } => Some(loader.linear("head.token_labels", *labels, hidden, true)?),
            HeadSpec::Span => Some(loader.linear("head.span", 2, hidden, true)?),
        };
        let summary = spec.summary.as_ref().map(|summary| Summary::load(loader, summary, hidden)).transpose()?;
        Ok(Self { stack, head: spec.head, matrix, summary, context: spec.context })
    }

    /// The most positions of a sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Elements of a token's state.
    pub fn hidden(&self) -> usize {
        self.stack.spec().hidden
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.stack.spec().embed.vocabulary
    }

    /// A state without sequences.
    pub fn state(&self) -> State {
        self.stack.state()
    }

    /// Bytes of state that one position takes.
    pub fn position_bytes(&self) -> u64 {
        self.stack.position_bytes()
    }

    /// Bytes of state that a sequence takes however long it is.
    pub fn sequence_bytes(&self) -> u64 {
        self.stack.sequence_bytes()
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
        let known: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        let ids = Tensor::whole(engine, known.clone(), &[ids.len()]).map_err(ModelError::at("tokens"))?;
        self.read(Tokens { ids: &ids, known: &known, types: None }, rows, wanted, state, None)
    }

    fn read(
        &self,
        tokens: Tokens<'_>,
        rows: &[Row],
        wanted: &[usize],
        state: &mut State,
        spliced: Option<&Spliced>,
    ) -> Result<Option<Tensor>, ModelError> {
        let x = self.states(tokens, rows, state, spliced)?;
        if wanted.is_empty() { Ok(None) } else { self.head(&x, wanted).map(Some) }
    }

    /// The states of tokens after all layers, before the norm.
    fn states(
        &self,
        tokens: Tokens<'_>,
        rows: &[Row],
        state: &mut State,
        spliced: Option<&Spliced>,
    ) -> Result<Tensor, ModelError> {
        check_rows(rows, tokens.known.len())?;
        let x = self.stack.embed_spliced(tokens, rows, spliced)?;
        let x = self.layers(0..self.stack.spec().layers.len(), x, rows, state)?;
        state.advance(rows);
        Ok(x)
    }

    /// Its layers.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The states of tokens: the first stage of a model that is split.
    ///
    /// # Errors
    ///
    /// When a token or a position is in no table.
    pub fn embed(&self, tokens: Tokens<'_>, rows: &[Row]) -> Result<Tensor, ModelError> {
        self.stack.embed(tokens, rows)
    }

    /// The same of tokens by their numbers, those of all rows one after the other.
    ///
    /// # Errors
    ///
    /// When they do not fit the rows, or one is not in the vocabulary.
    pub fn embed_ids(&self, engine: &Engine, ids: &[u32], rows: &[Row]) -> Result<Tensor, ModelError> {
        let known: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        check_rows(rows, known.len())?;
        let ids = Tensor::whole(engine, known.clone(), &[ids.len()]).map_err(ModelError::at("tokens"))?;
        self.embed(Tokens { ids: &ids, known: &known, types: None }, rows)
    }

    /// A range of layers: a stage. x: `[tokens, hidden]` to the same shape. The stage that reads a sequence's tokens last
    /// has the state [`advance`](State::advance).
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state.
    pub fn layers(
        &self,
        range: std::ops::Range<usize>,
        x: Tensor,
        rows: &[Row],
        state: &mut State,
    ) -> Result<Tensor, ModelError> {
        self.stack.layers(range, x, &Reading { rows, absent: &[], source: None }, Some(state))
    }

    /// How many layers there are.
    pub fn depth(&self) -> usize {
        self.stack.spec().layers.len()
    }

    /// Its layers, to have somebody else work out their experts, or look at what is chosen.
    pub fn stack_mut(&mut self) -> &mut Stack {
        &mut self.stack
    }

    /// What the head makes of the states of some tokens: the last stage. x: `[tokens, hidden]` to `[wanted, ..]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn head(&self, x: &Tensor, wanted: &[usize]) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("head");
        let all = wanted.len() == x.dims()[0] && wanted.iter().copied().eq(0..wanted.len());
        let x = if all { x.clone() } else { x.pick(0, wanted).map_err(at())? };
        let x = self.stack.finish(&x)?;
        let Some(matrix) = &self.matrix else { return Ok(x) };
        match &self.head {
            HeadSpec::NextToken(spec) => logits(&x, matrix, spec).map_err(at()),
            _ => x.linear(matrix).map_err(at()),
        }
    }

    /// Answers all that the model's class answers: of `input_ids`, and perhaps `attention_mask` and `token_type_ids`, each
    /// `[sequences, tokens]` or `[groups, choices, tokens]`; and perhaps of `mc_token_ids`, the tokens that stand for
    /// sequences.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let known = ["input_ids", "attention_mask", "token_type_ids"];
        inputs.only(&[&known[..], if self.summary.is_some() { &["mc_token_ids"] } else { &[] }].concat())?;
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?.with_types(inputs, "token_type_ids")?;
        let places = match inputs.optional_whole("mc_token_ids")? {
            Some((places, _)) if places.len() == batch.sequences => Some(places),
            Some((_, dims)) => {
                let expected = format!("a token of each of {} sequences", batch.sequences);
                return Err(ModelError::input("mc_token_ids", &expected, dims));
            }
            None => None,
        };
        let outputs = self.answered(&batch, &mut self.state(), None, places.as_deref())?;
        match *inputs.whole("input_ids")?.1 {
            [groups, choices, _] => {
                outputs.into_iter().map(|(name, x)| Ok((name, grouped(&x, groups, choices)?))).collect()
            }
            _ => Ok(outputs),
        }
    }

    /// The same of a batch that is read anew into a state, with other states in place of some tokens'.
    ///
    /// # Errors
    ///
    /// When the batch does not fit.
    pub fn answer_batch(
        &self,
        batch: &Batch,
        state: &mut State,
        spliced: Option<&Spliced>,
    ) -> Result<Outputs, ModelError> {
        self.answered(batch, state, spliced, None)
    }

    fn answered(
        &self,
        batch: &Batch,
        state: &mut State,
        spliced: Option<&Spliced>,
        places: Option<&[i64]>,
    ) -> Result<Outputs, ModelError> {
        let rows = batch.rows();
        for (slot, absent) in batch.absent.iter().enumerate() {
            state.hide(slot, absent.clone());
        }
        let wanted = match self.head {
            HeadSpec::SequenceLabels { padding, .. } => last_tokens(batch, padding),
            _ => (0..batch.known.len()).collect(),
        };
        let states = self.states(batch.tokens(), &rows, state, spliced)?;
        let x = self.head(&states, &wanted)?;
        let summary = match &self.summary {
            Some(summary) => {
                let finished = self.stack.finish(&states)?;
                let made = batch.apart(&finished).and_then(|x| summary.forward(&x, places));
                Some(made.map_err(ModelError::at("summary"))?)
            }
            None => None,
        };
        let named = || -> Result<Outputs, TensorError> {
            Ok(match &self.head {
                HeadSpec::States => vec![("last_hidden_state".into(), batch.apart(&x)?)],
                HeadSpec::SequenceLabels { .. } => vec![("logits".into(), x)],
                HeadSpec::NextToken(_) | HeadSpec::TokenLabels { .. } => vec![("logits".into(), batch.apart(&x)?)],
                HeadSpec::Span => span(&batch.apart(&x)?)?,
            })
        };
        let mut outputs = named().map_err(ModelError::at("head"))?;
        outputs.extend(summary.map(|summary| ("mc_logits".into(), summary)));
        Ok(outputs)
    }

    /// Reads prompts of one length: `input_ids`, all of whose tokens are seen.
    ///
    /// # Errors
    ///
    /// When the model does not generate, or the input is missing.
    pub fn begin(&self, inputs: &Inputs) -> Result<Begun, ModelError> {
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?.with_types(inputs, "token_type_ids")?;
        let mut begun = self.begin_batch(&batch, self.state(), None)?;
        batch.keep_types(inputs, &mut begun.state)?;
        Ok(begun)
    }

    /// The same of a batch that is read anew into a state, with other states in place of some tokens'.
    ///
    /// # Errors
    ///
    /// When the model does not generate, or the batch does not fit.
    pub fn begin_batch(&self, batch: &Batch, mut state: State, spliced: Option<&Spliced>) -> Result<Begun, ModelError> {
        if !matches!(self.head, HeadSpec::NextToken(_)) {
            return Err(ModelError::no_generation());
        }
        let wanted: Vec<usize> = (1..=batch.sequences).map(|row| (row * batch.length).saturating_sub(1)).collect();
        let logits = self.read(batch.tokens(), &batch.rows(), &wanted, &mut state, spliced)?;
        let logits = logits.ok_or_else(ModelError::no_generation)?;
        Ok(Begun { state, sequences: batch.sequences_of_tokens(), logits })
    }

    /// Reads one token of each sequence, and answers logits of the next.
    ///
    /// # Errors
    ///
    /// When the state is another's.
    pub fn next(&self, tokens: &[i64], state: &mut State) -> Result<Tensor, ModelError> {
        let next = NextTokens::new(self.stack.embedding().table().engine(), tokens, state)?;
        let wanted: Vec<usize> = (0..tokens.len()).collect();
        let rows = state.next_rows();
        let logits = self.read(next.tokens(), &rows, &wanted, state, None)?;
        logits.ok_or_else(ModelError::no_generation)
    }
}

fn check_rows(rows: &[Row], tokens: usize) -> Result<(), ModelError> {
    let count: usize = rows.iter().map(|row| row.len).sum();
    if count != tokens || count == 0 {
        let expected = format!("{count} tokens, and at least one");
        return Err(ModelError::State { place: "rows", expected, found: tokens.to_string() });
    }
    Ok(())
}

/// The matrix that makes logits of `inputs` elements: the table of embeddings, or one of its own.
///
/// # Errors
///
/// When its weights cannot be read.
pub fn logits_matrix(
    loader: &Loader<'_>,
    stack: &Stack,
    spec: &LogitsSpec,
    inputs: usize,
) -> Result<Linear, ModelError> {
    let vocabulary = stack.spec().embed.vocabulary;
    if !spec.tied {
        return loader.linear("head.next_token", vocabulary, inputs, spec.bias);
    }
    let bias = spec.bias.then(|| loader.tensor("head.next_token.bias", &[vocabulary])).transpose()?;
    Ok(Linear { weight: stack.embedding().table().clone(), bias })
}

/// Logits of states `[.., hidden]`.
///
/// # Errors
///
/// When the shape does not fit.
pub fn logits(x: &Tensor, matrix: &Linear, spec: &LogitsSpec) -> Result<Tensor, TensorError> {
    let mut logits = x.linear(matrix)?;
    if spec.scale != 1.0 {
        logits = logits.scale(spec.scale)?;
    }
    match spec.softcap {
        Some(cap) => logits.scale(1.0 / cap)?.tanh()?.scale(cap),
        None => Ok(logits),
    }
}

/// `[.., 2]` as logits of the first and of the last token.
///
/// # Errors
///
/// When it is of another shape.
pub fn span(x: &Tensor) -> Result<Outputs, TensorError> {
    Ok(vec![("start_logits".into(), x.at(-1, 0)?), ("end_logits".into(), x.at(-1, 1)?)])
}

/// `[groups * choices, ..]` as `[groups, choices, ..]`.
fn grouped(x: &Tensor, groups: usize, choices: usize) -> Result<Tensor, ModelError> {
    let rest = x.dims().get(1..).unwrap_or_default();
    x.reshape(&[&[groups, choices], rest].concat()).map_err(ModelError::at("head"))
}

/// The place of each sequence's last token that is no padding; its first where all are, as Hugging Face has it.
fn last_tokens(batch: &Batch, padding: Option<i64>) -> Vec<usize> {
    let last = |(row, ids): (usize, &[i64])| {
        let last = ids.iter().rposition(|&id| padding != Some(id)).unwrap_or(0);
        row * batch.length + last
    };
    batch.known.chunks(batch.length.max(1)).enumerate().map(last).collect()
}
