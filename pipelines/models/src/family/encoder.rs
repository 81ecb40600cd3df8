//! Encoders of text: a stack whose tokens see each other both ways, and a head.

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::State;
use crate::family::decoder::{Batch, NextTokens, absent, logits, logits_matrix, span};
use crate::layers::attention::Source;
use crate::layers::norm::Norm;
use crate::model::{Begun, Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::encoder::{EncoderHead, EncoderSpec, TokensSpec, Whole};
use crate::spec::{Activation, PositionSpec};
use crate::stack::{Reading, Stack};

/// An encoder with its weights.
#[derive(Debug)]
pub struct Encoder {
    stack: Stack,
    pooler: Option<(Linear, Activation)>,
    head: EncoderHead,
    tokens: Option<Tokens>,
    dense: Option<Linear>,
    layer: Option<Linear>,
    second: Option<Linear>,
}

#[derive(Debug)]
struct Tokens {
    spec: TokensSpec,
    transform: Option<(Linear, Norm)>,
    matrix: Linear,
}

impl Tokens {
    fn load(loader: &Loader<'_>, stack: &Stack, spec: &TokensSpec) -> Result<Self, ModelError> {
        let (hidden, width) = (stack.spec().hidden, stack.spec().embed.width);
        let transform = spec.transform.as_ref().map(|(_, norm)| {
            let layer = loader.linear("head.transform", width, hidden, true)?;
            Ok::<_, ModelError>((layer, Norm::load(loader, "head.transform_norm", norm, width)?))
        });
        let transform = transform.transpose()?;
        let inputs = if transform.is_some() { width } else { hidden };
        let matrix = logits_matrix(loader, stack, &spec.logits, inputs)?;
        Ok(Self { spec: spec.clone(), transform, matrix })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("head");
        let x = match (&self.transform, &self.spec.transform) {
            (Some((layer, norm)), Some((activation, _))) => {
                norm.forward(&x.linear(layer).and_then(|x| x.activate(*activation)).map_err(at())?)?
            }
            _ => x.clone(),
        };
        logits(&x, &self.matrix, &self.spec.logits).map_err(at())
    }
}

impl Encoder {
    /// Reads an encoder.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: EncoderSpec) -> Result<Self, ModelError> {
        let stack = Stack::load(loader, spec.stack)?;
        let hidden = stack.spec().hidden;
        let pooler = spec.pooler.map(|_| loader.linear("pooler", hidden, hidden, true)).transpose()?;
        let tokens = match &spec.head {
            EncoderHead::Tokens(tokens) | EncoderHead::Pretraining(tokens) => Some(tokens),
            _ => None,
        };
        let tokens = tokens.map(|tokens| Tokens::load(loader, &stack, tokens)).transpose()?;
        let linear = |name: &str, outputs: usize| loader.linear(name, outputs, hidden, true).map(Some);
        let dense = match &spec.head {
            EncoderHead::Labels { from: Whole::Dense(_), .. } | EncoderHead::Choice(Whole::Dense(_)) => {
                linear("head.dense", hidden)?
            }
            _ => None,
        };
        let layer = match &spec.head {
            EncoderHead::States | EncoderHead::Tokens(_) | EncoderHead::First(None) => None,
            EncoderHead::NextSentence | EncoderHead::Pretraining(_) => linear("head.next_sentence", 2)?,
            EncoderHead::Labels { labels, .. } => linear("head.labels", *labels)?,
            EncoderHead::Choice(_) => linear("head.labels", 1)?,
            EncoderHead::TokenLabels(labels) => linear("head.token_labels", *labels)?,
            EncoderHead::Span | EncoderHead::Reader => linear("head.span", 2)?,
            EncoderHead::First(Some(width)) => linear("head.projection", *width)?,
        };
        let second = match &spec.head {
            EncoderHead::Reader => linear("head.relevance", 1)?,
            _ => None,
        };
        Ok(Self { stack, pooler: pooler.zip(spec.pooler), head: spec.head, tokens, dense, layer, second })
    }

    /// Its layers.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The most positions of a sequence.
    pub fn context(&self) -> usize {
        match self.stack.spec().embed.positions {
            PositionSpec::Learned { rows, first, .. } => rows.saturating_sub(first),
            _ => usize::MAX,
        }
    }

    /// Answers all that the model's class answers: of `input_ids`, and perhaps `attention_mask` and `token_type_ids`,
    /// each `[sequences, tokens]`, or `[groups, choices, tokens]` for a choice. Models that look at something are perhaps
    /// given it, as `encoder_hidden_states` `[sequences, positions, hidden]` with `encoder_attention_mask`.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let known = ["input_ids", "attention_mask", "token_type_ids"];
        let looks = self.stack.spec().layers.iter().any(|layer| layer.cross.is_some());
        let at: &[_] = if looks { &["encoder_hidden_states", "encoder_attention_mask"] } else { &[] };
        inputs.only(&[&known[..], at].concat())?;
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?.with_types(inputs, "token_type_ids")?;
        let groups = inputs.whole("input_ids")?.1[0];
        let x = self.states(&batch, self.source(inputs, &batch)?.as_ref())?;
        self.outputs(&x, groups)
    }

    /// The states of a batch that looks at something: `[sequences, tokens, hidden]`.
    fn states(&self, batch: &Batch, source: Option<&Source>) -> Result<Tensor, ModelError> {
        let rows = batch.rows();
        let x = self.stack.states(batch.tokens(), &Reading { source, ..batch.reading(&rows) }, None)?;
        batch.apart(&x).map_err(ModelError::at("states"))
    }

    /// What the sequences of a batch look at.
    fn source(&self, inputs: &Inputs, batch: &Batch) -> Result<Option<Source>, ModelError> {
        const STATES: &str = "encoder_hidden_states";
        let (Some(states), hidden) = (inputs.optional(STATES), self.stack.spec().hidden) else { return Ok(None) };
        let &[sequences, length, width] = states.dims() else {
            return Err(ModelError::input(STATES, "[sequences, positions, hidden]", states.dims()));
        };
        if (sequences, width) != (batch.sequences, hidden) {
            let expected = format!("[{}, positions, {hidden}]", batch.sequences);
            return Err(ModelError::input(STATES, &expected, states.dims()));
        }
        let absent = absent(inputs, "encoder_attention_mask", sequences, length)?;
        let states = states.flatten(0, 1).map_err(ModelError::at(STATES))?;
        Ok(Some(Source { states, lengths: vec![length; sequences], absent }))
    }

    fn outputs(&self, x: &Tensor, groups: usize) -> Result<Outputs, ModelError> {
        let at = || ModelError::at("head");
        let named = |name: &str, tensor: Tensor| vec![(name.to_owned(), tensor)];
        let first = || x.at(1, 0);
        let layer = |x: &Tensor| self.layer.as_ref().map_or_else(|| Ok(x.clone()), |layer| x.linear(layer));
        let pooled = || match &self.pooler {
            Some((layer, activation)) => first()?.linear(layer)?.activate(*activation),
            None => first(),
        };
        let whole = |from: &Whole| match (from, &self.dense) {
            (Whole::Pooled, _) => pooled(),
            (Whole::Dense(activation), Some(dense)) => first()?.linear(dense)?.activate(*activation),
            _ => first(),
        };
        let tokens = || self.tokens.as_ref().map_or_else(|| Ok(x.clone()), |tokens| tokens.forward(x));
        let answers = || -> Result<Outputs, TensorError> {
            Ok(match &self.head {
                EncoderHead::States => {
                    let mut outputs = named("last_hidden_state", x.clone());
                    if self.pooler.is_some() {
                        outputs.push(("pooler_output".into(), pooled()?));
                    }
                    outputs
                }
                EncoderHead::NextSentence => named("logits", layer(&pooled()?)?),
                EncoderHead::Labels { from, .. } => named("logits", layer(&whole(from)?)?),
                EncoderHead::Choice(from) => {
                    let one = layer(&whole(from)?)?;
                    named("logits", one.reshape(&[groups, one.count() / groups.max(1)])?)
                }
                EncoderHead::TokenLabels(_) => named("logits", layer(x)?),
                EncoderHead::Span => span(&layer(x)?)?,
                EncoderHead::First(_) => named("pooler_output", layer(&first()?)?),
                EncoderHead::Reader => {
                    let mut outputs = span(&layer(x)?)?;
                    if let Some(relevance) = &self.second {
                        outputs.push(("relevance_logits".into(), first()?.linear(relevance)?.squeeze(-1)?));
                    }
                    outputs
                }
                EncoderHead::Tokens(_) => Vec::new(),
                EncoderHead::Pretraining(_) => named("seq_relationship_logits", layer(&pooled()?)?),
            })
        };
        let mut outputs = answers().map_err(at())?;
        match &self.head {
            EncoderHead::Tokens(_) => outputs.push(("logits".into(), tokens()?)),
            EncoderHead::Pretraining(_) => outputs.push(("prediction_logits".into(), tokens()?)),
            _ => {}
        }
        Ok(outputs)
    }

    /// Reads prompts of one length. Their tokens see each other both ways, and stay as they are for those that follow.
    ///
    /// # Errors
    ///
    /// When the model makes no logits of tokens, or the input is missing.
    pub fn begin(&self, inputs: &Inputs) -> Result<Begun, ModelError> {
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?.with_types(inputs, "token_type_ids")?;
        let (rows, mut state) = (batch.rows(), self.stack.state());
        let source = self.source(inputs, &batch)?;
        let reading = Reading { source: source.as_ref(), ..batch.reading(&rows) };
        let states = self.stack.states(batch.tokens(), &reading, Some(&mut state))?;
        let last = batch.apart(&states).and_then(|x| x.at(1, batch.length - 1)).map_err(ModelError::at("head"))?;
        batch.keep_types(inputs, &mut state)?;
        Ok(Begun { sequences: batch.sequences_of_tokens(), state, logits: self.logits(&last)? })
    }

    /// Reads one token more of each sequence.
    ///
    /// # Errors
    ///
    /// When the state is another's.
    pub fn next(&self, tokens: &[i64], state: &mut State) -> Result<Tensor, ModelError> {
        let next = NextTokens::new(self.stack.embedding().table().engine(), tokens, state)?;
        let rows = state.next_rows();
        let reading = Reading { rows: &rows, absent: &[], source: None };
        self.logits(&self.stack.states(next.tokens(), &reading, Some(state))?)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.tokens.as_ref().ok_or_else(ModelError::no_generation)?.forward(x)
    }
}
