//! Encoders with a decoder of text: a stack whose tokens see each other both ways, and one that sees its states.

use accel_backends::tensor::{Activation, Convolution, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::{Row, State};
use crate::family::decoder::{Batch, NextTokens, absent, logits, logits_matrix, span};
use crate::layers::attention::Source;
use crate::layers::layer_weights::LayerWeights;
use crate::model::{Begun, Extent, Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::PositionSpec;
use crate::spec::encoder_decoder::{EncoderDecoderHead, EncoderDecoderSpec, SourceSpec};
use crate::stack::{Reading, Stack};

/// An encoder with a decoder, and their weights.
#[derive(Debug)]
pub struct EncoderDecoder {
    encoder: Stack,
    features: Option<Features>,
    decoder: Option<Stack>,
    head: EncoderDecoderHead,
    matrix: Option<Linear>,
    row: Option<Tensor>,
    dense: Option<Linear>,
    weights: Option<LayerWeights>,
    start: Option<i64>,
    padding: Option<i64>,
}

/// What makes states of sound.
#[derive(Debug)]
struct Features {
    first: Linear,
    second: Linear,
    positions: Tensor,
}

impl Features {
    fn load(loader: &Loader<'_>, hidden: usize, channels: usize, positions: usize) -> Result<Self, ModelError> {
        Ok(Self {
            first: loader.layer("encoder.conv.1", &[hidden, channels, 3], true)?,
            second: loader.layer("encoder.conv.2", &[hidden, hidden, 3], true)?,
            positions: loader.weight("encoder.positions", &[positions, hidden])?,
        })
    }

    /// x: `[sounds, channels, time]` to `[sounds, (time + 1) / 2, hidden]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let x = x.convolution(&Convolution::new(1).padding(1), &self.first)?.activate(Activation::Gelu)?;
        let x = x.convolution(&Convolution::new(1).padding(1).stride(2), &self.second)?.activate(Activation::Gelu)?;
        let x = x.transpose(1, 2)?;
        let length = x.dim(1)?;
        x.add(&self.positions.narrow(0, 0, length)?)
    }
}

impl EncoderDecoder {
    /// Reads both.
    ///
    /// # Errors
    ///
    /// When their weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: EncoderDecoderSpec) -> Result<Self, ModelError> {
        let hidden = spec.encoder.hidden;
        let features = match spec.source {
            SourceSpec::Tokens => None,
            SourceSpec::Features { channels, positions } => Some(Features::load(loader, hidden, channels, positions)?),
        };
        let encoder = Stack::load(&loader.part("encoder"), spec.encoder)?;
        let shared = spec.shared.then(|| encoder.embedding().table().clone());
        let decoder = spec.decoder.map(|spec| Stack::load_shared(&loader.part("decoder"), spec, shared.as_ref()));
        let decoder = decoder.transpose()?;
        let (mut matrix, mut row, mut dense, mut weights) = (None, None, None, None);
        match &spec.head {
            EncoderDecoderHead::States => {}
            EncoderDecoderHead::NextToken { logits, row: has_row } => {
                let stack = decoder.as_ref().unwrap_or(&encoder);
                matrix = Some(logits_matrix(loader, stack, logits, hidden)?);
                let vocabulary = stack.spec().embed.vocabulary;
                row = has_row.then(|| loader.tensor("head.row", &[1, vocabulary])).transpose()?;
            }
            EncoderDecoderHead::Labels { labels, .. } => {
                dense = Some(loader.linear("head.dense", hidden, hidden, true)?);
                matrix = Some(loader.linear("head.labels", *labels, hidden, true)?);
            }
            EncoderDecoderHead::Span => matrix = Some(loader.linear("head.span", 2, hidden, true)?),
            EncoderDecoderHead::TokenLabels(labels) => {
                matrix = Some(loader.linear("head.token_labels", *labels, hidden, true)?);
            }
            EncoderDecoderHead::MeanLabels { labels, width, weighted } => {
                let layers = encoder.spec().layers.len();
                weights = weighted.then(|| LayerWeights::load(loader, "head.weights", layers)).transpose()?;
                dense = Some(loader.linear("head.dense", *width, hidden, true)?);
                matrix = Some(loader.linear("head.labels", *labels, *width, true)?);
            }
        }
        let (start, padding) = (spec.start, spec.padding);
        Ok(Self { encoder, features, decoder, head: spec.head, matrix, row, dense, weights, start, padding })
    }

    /// The stack of the encoder, and that of the decoder where there is one.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        std::iter::once(&self.encoder).chain(&self.decoder)
    }

    /// The same, to have somebody else work out their experts, or look at what is chosen.
    pub fn stacks_mut(&mut self) -> impl Iterator<Item = &mut Stack> {
        std::iter::once(&mut self.encoder).chain(&mut self.decoder)
    }

    /// The most positions of what is given, and of what the decoder writes; those of a stack that learned no positions
    /// are without number.
    pub fn contexts(&self) -> [usize; 2] {
        let of = |stack: &Stack| match stack.spec().embed.positions {
            PositionSpec::Learned { rows, first, .. } => rows.saturating_sub(first),
            _ => usize::MAX,
        };
        [of(&self.encoder), self.decoder.as_ref().map_or(usize::MAX, of)]
    }

    /// Frames of sound that the encoder reads at once; none where it reads tokens.
    pub fn frames(&self) -> Option<usize> {
        self.features.as_ref().map(|features| 2 * features.positions.dims().first().copied().unwrap_or(0))
    }

    /// Tokens in the decoder's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.decoder.as_ref().unwrap_or(&self.encoder).spec().embed.vocabulary
    }

    /// Bytes of state that one position of the decoder takes, and that one of the encoder's takes in it.
    pub fn position_bytes(&self) -> u64 {
        self.decoder.as_ref().map_or(0, Stack::position_bytes)
    }

    /// What the texts that it writes take.
    pub fn extent(&self) -> Extent {
        Extent {
            contexts: self.contexts(),
            vocabulary: self.vocabulary(),
            position_bytes: self.position_bytes(),
            sequence_bytes: self.decoder.as_ref().map_or(0, Stack::sequence_bytes),
            image_positions: None,
        }
    }

    /// The encoder's states of what is given, `input_ids` with `attention_mask` or `input_features`, for each sequence:
    /// `[sequences, positions, hidden]`, and as what a decoder sees.
    ///
    /// # Errors
    ///
    /// When an input is missing or of the wrong shape.
    pub fn encode(&self, inputs: &Inputs) -> Result<(Tensor, Source), ModelError> {
        let at = || ModelError::at("encoder");
        if let Some(features) = &self.features {
            let x = features.forward(inputs.tensor("input_features")?).map_err(at())?;
            let [sounds, length, hidden] = x.sizes().map_err(at())?;
            let rows = Row::whole(vec![length; sounds]);
            let flat = x.reshape(&[sounds * length, hidden]).map_err(at())?;
            let reading = Reading { rows: &rows, absent: &[], source: None };
            let layers = self.encoder.spec().layers.len();
            let states = match &self.weights {
                None => self.encoder.finish(&self.encoder.layers(0..layers, flat, &reading, None)?)?,
                Some(weights) => {
                    let (mut x, mut all) = (flat.clone(), vec![flat]);
                    for number in 0..layers {
                        x = self.encoder.layers(number..number + 1, x, &reading, None)?;
                        // The last states are those after the norm.
                        x = if number + 1 == layers { self.encoder.finish(&x)? } else { x };
                        all.push(x.clone());
                    }
                    weights.sum(&all).map_err(at())?
                }
            };
            let source = Source { states: states.clone(), lengths: vec![length; sounds], absent: Vec::new() };
            return Ok((states.reshape(&[sounds, length, hidden]).map_err(at())?, source));
        }
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?;
        let rows = batch.rows();
        let states = self.encoder.states(batch.tokens(), &batch.reading(&rows), None)?;
        let apart = batch.apart(&states).map_err(at())?;
        Ok((apart, Source { states, lengths: vec![batch.length; batch.sequences], absent: batch.absent }))
    }

    /// Answers all that the model's class answers.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(&[
            "input_ids",
            "input_features",
            "attention_mask",
            "decoder_input_ids",
            "decoder_attention_mask",
            "use_cache",
            "output_router_logits",
        ])?;
        let (encoded, source) = self.encode(inputs)?;
        let Some(decoder) = &self.decoder else { return self.of_states(&encoded, None) };
        let batch = self.decoder_batch(inputs, source.lengths.len())?;
        let rows = batch.rows();
        let reading = Reading { rows: &rows, absent: &batch.absent, source: Some(&source) };
        let states =
            batch.apart(&decoder.states(batch.tokens(), &reading, None)?).map_err(ModelError::at("decoder"))?;
        let ends = match &self.head {
            EncoderDecoderHead::Labels { end, .. } => Some(last_of(inputs, *end)?),
            _ => None,
        };
        let mut outputs = self.of_states(&states, ends)?;
        outputs.push(("encoder_last_hidden_state".into(), encoded));
        Ok(outputs)
    }

    /// What the decoder reads: its own input, or the encoder's one place later, after the token that starts it.
    fn decoder_batch(&self, inputs: &Inputs, sequences: usize) -> Result<Batch, ModelError> {
        if inputs.optional("decoder_input_ids").is_some() {
            return Batch::of(inputs, "decoder_input_ids", "decoder_attention_mask");
        }
        let missing = || ModelError::MissingInput { name: "decoder_input_ids".into() };
        let start = self.start.ok_or_else(missing)?;
        let (ids, dims) = inputs.whole("input_ids")?;
        let length = dims.last().copied().unwrap_or(0);
        let later = |row: &[i64]| {
            let before = row.iter().take(length.saturating_sub(1)).copied();
            std::iter::once(start).chain(before).collect::<Vec<_>>()
        };
        let known: Vec<i64> = ids.chunks(length.max(1)).flat_map(later).collect();
        let ids = Tensor::whole(self.encoder.embedding().table().engine(), known.clone(), &[known.len()]);
        let ids = ids.map_err(ModelError::at("decoder_input_ids"))?;
        let absent = absent(inputs, "decoder_attention_mask", sequences, length)?;
        Ok(Batch { ids, known, sequences, length, absent, types: None })
    }

    /// What the head makes of states `[sequences, positions, hidden]`.
    fn of_states(&self, x: &Tensor, ends: Option<Vec<usize>>) -> Result<Outputs, ModelError> {
        let matrix = || self.matrix.as_ref().ok_or_else(ModelError::no_generation);
        let at = || ModelError::at("head");
        let logits = match &self.head {
            EncoderDecoderHead::States => return Ok(vec![("last_hidden_state".into(), x.clone())]),
            EncoderDecoderHead::Span => return span(&x.linear(matrix()?).map_err(at())?).map_err(at()),
            EncoderDecoderHead::NextToken { .. } => self.logits(x)?,
            EncoderDecoderHead::TokenLabels(_) => x.linear(matrix()?).map_err(at())?,
            EncoderDecoderHead::Labels { activation, .. } => {
                let dense = self.dense.as_ref().ok_or_else(ModelError::no_generation)?;
                let each = || -> Result<Tensor, TensorError> {
                    let ends = ends.unwrap_or_default();
                    let states = ends.iter().enumerate().map(|(row, &end)| x.at(0, row)?.narrow(0, end, 1));
                    Tensor::concat(&states.collect::<Result<Vec<_>, _>>()?, 0)?.linear(dense)?.activate(*activation)
                };
                each().and_then(|x| x.linear(self.matrix.as_ref().unwrap_or(dense))).map_err(at())?
            }
            EncoderDecoderHead::MeanLabels { .. } => {
                let dense = self.dense.as_ref().ok_or_else(ModelError::no_generation)?;
                let mean = x.linear(dense).and_then(|x| x.mean(&[1])?.squeeze(1)).map_err(at())?;
                mean.linear(matrix()?).map_err(at())?
            }
        };
        Ok(vec![("logits".into(), logits)])
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (EncoderDecoderHead::NextToken { logits: spec, .. }, Some(matrix)) = (&self.head, &self.matrix) else {
            return Err(ModelError::no_generation());
        };
        let made = logits(x, matrix, spec).and_then(|made| match &self.row {
            Some(row) => made.add(row),
            None => Ok(made),
        });
        made.map_err(ModelError::at("head"))
    }

    /// Encodes what is given, and starts a sequence from each.
    ///
    /// # Errors
    ///
    /// When the model makes no logits of tokens, an input is missing, or nothing says which token starts.
    pub fn begin(&self, inputs: &Inputs) -> Result<Begun, ModelError> {
        let (_, source) = self.encode(inputs)?;
        let decoder = self.decoder.as_ref().ok_or_else(ModelError::no_generation)?;
        let sequences = source.lengths.len();
        let missing = || ModelError::MissingInput { name: "decoder_start_token_id".into() };
        let start = inputs.number("decoder_start_token_id").map(|start| start as i64).or(self.start);
        let start = start.or(self.padding).ok_or_else(missing)?;
        let mut state = decoder.state();
        let known = vec![start; sequences];
        let logits = self.read(&known, &Row::whole(vec![1; sequences]), Some(&source), &mut state)?;
        Ok(Begun { state, sequences: known.into_iter().map(|start| vec![start]).collect(), logits })
    }

    /// Reads one token of each sequence, and answers logits of the next.
    ///
    /// # Errors
    ///
    /// When the state is another's.
    pub fn next(&self, tokens: &[i64], state: &mut State) -> Result<Tensor, ModelError> {
        let rows = state.next_rows();
        self.read(tokens, &rows, None, state)
    }

    fn read(
        &self,
        known: &[i64],
        rows: &[Row],
        source: Option<&Source>,
        state: &mut State,
    ) -> Result<Tensor, ModelError> {
        let decoder = self.decoder.as_ref().ok_or_else(ModelError::no_generation)?;
        let next = NextTokens::new(decoder.embedding().table().engine(), known, state)?;
        let states = decoder.states(next.tokens(), &Reading { rows, absent: &[], source }, Some(state))?;
        self.logits(&states)
    }
}

/// The place of the last token with that id in each sequence of the encoder's input.
fn last_of(inputs: &Inputs, end: i64) -> Result<Vec<usize>, ModelError> {
    let (ids, dims) = inputs.whole("input_ids")?;
    let length = dims.last().copied().unwrap_or(0).max(1);
    let last = |row: &[i64]| row.iter().rposition(|&id| id == end);
    let missing = || ModelError::State {
        place: "head",
        expected: format!("a token {end} in every sequence"),
        found: "a sequence without it".into(),
    };
    ids.chunks(length).map(|row| last(row).ok_or_else(missing)).collect()
}
