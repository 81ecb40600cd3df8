//! Models that read and write texts about images: stacks of text that look at the states of an image
//! (<https://arxiv.org/abs/2201.12086>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::backbone::Backbone;
use crate::cache::{Row, State};
use crate::family::decoder::Batch;
use crate::family::dual_encoder::unit;
use crate::family::vision::asked;
use crate::layers::attention::Source;
use crate::layers::embed::Tokens;
use crate::layers::norm::Norm;
use crate::model::{Begun, Extent, Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::PositionSpec;
use crate::spec::vision::{BackboneSpec, ImageSize};
use crate::spec::vision_language::{TaskSpec, VisionLanguageSpec, WriterSpec};
use crate::spec::{Activation, StackSpec};
use crate::stack::{Reading, Stack};

/// A model with its weights.
#[derive(Debug)]
pub struct VisionLanguage {
    image: Backbone,
    /// How many states an image has, where images have one size.
    places: Option<usize>,
    task: Task,
}

#[derive(Debug)]
enum Task {
    Caption(Writer),
    Answer { reader: Stack, writer: Writer },
    Match(Matcher),
}

/// What compares a text with an image, with its weights.
#[derive(Debug)]
struct Matcher {
    reader: Stack,
    /// To logits of not fitting and fitting, of a text that looks at the image.
    fitting: Linear,
    /// To vectors of one space, of an image and of a text by itself.
    vectors: [Linear; 2],
}

/// What writes texts, with its weights.
#[derive(Debug)]
struct Writer {
    stack: Stack,
    dense: Linear,
    activation: Activation,
    norm: Norm,
    matrix: Linear,
    first: i64,
    /// Whether the first token of an answer is taken for padding.
    first_hidden: bool,
}

impl VisionLanguage {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &VisionLanguageSpec) -> Result<Self, ModelError> {
        let reader = |stack: &StackSpec| Stack::load(&loader.part("reader"), stack.clone());
        let task = match &spec.task {
            // A prompt is seen as a whole, whatever its first token.
            TaskSpec::Caption(writer) => Task::Caption(Writer::load(loader, writer, false)?),
            TaskSpec::Answer { reader: stack, writer } => {
                let first_hidden = writer.first == writer.padding;
                Task::Answer { reader: reader(stack)?, writer: Writer::load(loader, writer, first_hidden)? }
            }
            TaskSpec::Match { reader: stack, space } => {
                let vector = |name: &str, width: usize| loader.linear(name, *space, width, true);
                Task::Match(Matcher {
                    fitting: loader.linear("head.match", 2, stack.hidden, true)?,
                    vectors: [vector("head.image", spec.image.width())?, vector("head.text", stack.hidden)?],
                    reader: reader(stack)?,
                })
            }
        };
        let places = match &spec.image {
            BackboneSpec::Patches(patches) => match patches.embed.image {
                ImageSize::Fixed(size) => Some(patches.embed.tokens(size)),
                ImageSize::Padded | ImageSize::Cut => None,
            },
            _ => None,
        };
        Ok(Self { image: Backbone::load(&loader.part("image"), &spec.image)?, places, task })
    }

    /// The stacks of layers in it.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        let texts = match &self.task {
            Task::Caption(writer) => [Some(&writer.stack), None],
            Task::Answer { reader, writer } => [Some(reader), Some(&writer.stack)],
            Task::Match(matcher) => [Some(&matcher.reader), None],
        };
        self.image.stack().into_iter().chain(texts.into_iter().flatten())
    }

    /// What the texts that it writes take; none where it writes none.
    pub fn extent(&self) -> Option<Extent> {
        let writer = match &self.task {
            Task::Caption(writer) | Task::Answer { writer, .. } => writer,
            Task::Match(_) => return None,
        };
        let spec = writer.stack.spec();
        let written = match spec.embed.positions {
            PositionSpec::Learned { rows, first, .. } => rows.saturating_sub(first),
            _ => usize::MAX,
        };
        Some(Extent {
            contexts: [usize::MAX, written],
            vocabulary: spec.embed.vocabulary,
            position_bytes: writer.stack.position_bytes(),
            sequence_bytes: writer.stack.sequence_bytes(),
            image_positions: self.places,
        })
    }

    /// Answers all that the model's class answers: of `input_ids` and perhaps `attention_mask`, and of an image as
    /// [`asked`] says. A text that answers a question is no part of it. A text is compared with an image as
    /// `use_itm_head` says: looking at it, or each by itself.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let known = ["input_ids", "attention_mask", "pixel_values", "interpolate_pos_encoding"];
        match self.task {
            Task::Answer { .. } => {
                inputs.only(&[&known[..], &["decoder_input_ids", "decoder_attention_mask"]].concat())?;
            }
            Task::Match(_) => inputs.only(&[&known[..], &["use_itm_head"]].concat())?,
            Task::Caption(_) => inputs.only(&known)?,
        }
        let seen = self.see(inputs)?;
        let mut outputs = match &self.task {
            Task::Caption(writer) => {
                let batch = Batch::of(inputs, "input_ids", "attention_mask")?;
                let states = read(&writer.stack, &batch, Some(&source(&seen)?))?;
                let logits = batch.apart(&writer.logits(&states)?).map_err(ModelError::at("logits"))?;
                vec![("logits".into(), logits), ("image_embeds".into(), seen.clone())]
            }
            Task::Answer { .. } => vec![("image_embeds".into(), seen.clone())],
            Task::Match(matcher) => matcher.compare(inputs, &seen)?,
        };
        outputs.push(("last_hidden_state".into(), seen));
        Ok(outputs)
    }

    /// The states of an image: `[batch, places, width]`.
    fn see(&self, inputs: &Inputs) -> Result<Tensor, ModelError> {
        Ok(self.image.see(&asked(inputs)?, &[])?.last.states)
    }

    /// Begins to write: a prompt is continued from before its last token, which ends it; an answer begins anew.
    ///
    /// # Errors
    ///
    /// When the model does not write, or an input is missing.
    pub fn begin(&self, inputs: &Inputs) -> Result<Begun, ModelError> {
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?;
        let seen = self.see(inputs)?;
        match &self.task {
            Task::Caption(writer) => {
                let prompt = |ids: &[i64]| {
                    let kept = ids.len().saturating_sub(1);
                    ids[..kept].iter().enumerate().map(|(at, &id)| if at == 0 { writer.first } else { id }).collect()
                };
                writer.begin(batch.known.chunks(batch.length.max(1)).map(prompt).collect(), &source(&seen)?)
            }
            Task::Answer { reader, writer } => {
                let read = read(reader, &batch, Some(&source(&seen)?))?;
                let question =
                    Source { states: read, lengths: vec![batch.length; batch.sequences], absent: Vec::new() };
                writer.begin(vec![vec![writer.first]; batch.sequences], &question)
            }
            Task::Match(_) => Err(ModelError::no_generation()),
        }
    }

    /// Writes on: reads one token of each sequence, and answers logits of the next.
    ///
    /// # Errors
    ///
    /// When the model does not write, or the state is another's.
    pub fn next(&self, tokens: &[i64], state: &mut State) -> Result<Tensor, ModelError> {
        match &self.task {
            Task::Caption(writer) | Task::Answer { writer, .. } => writer.next(tokens, state),
            Task::Match(_) => Err(ModelError::no_generation()),
        }
    }
}

/// What texts look at, of `[batch, places, width]`.
fn source(seen: &Tensor) -> Result<Source, ModelError> {
    let run = || {
        let [batch, places, width] = seen.sizes()?;
        let states = seen.reshape(&[batch * places, width])?;
        Ok::<_, TensorError>(Source { states, lengths: vec![places; batch], absent: Vec::new() })
    };
    run().map_err(ModelError::at("image"))
}

/// The states of texts, which may look at something: `[batch * length, hidden]`.
fn read(stack: &Stack, batch: &Batch, source: Option<&Source>) -> Result<Tensor, ModelError> {
    let rows = batch.rows();
    stack.states(batch.tokens(), &Reading { source, ..batch.reading(&rows) }, None)
}

impl Matcher {
    /// seen: `[images, places, width]`. To logits `[batch, 2]`, or similarities `[images, texts]`, and the texts' states.
    fn compare(&self, inputs: &Inputs, seen: &Tensor) -> Result<Outputs, ModelError> {
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?;
        let at = || ModelError::at("match");
        let looking = inputs.number("use_itm_head").is_none_or(|number| number != 0.0);
        let source = looking.then(|| source(seen)).transpose()?;
        let states = batch.apart(&read(&self.reader, &batch, source.as_ref())?).map_err(at())?;
        let score = || {
            let first = states.at(1, 0)?;
            if looking {
                return first.linear(&self.fitting);
            }
            let [image, text] = &self.vectors;
            unit(&seen.at(1, 0)?.linear(image)?)?.matmul(&unit(&first.linear(text)?)?.transpose(0, 1)?)
        };
        let score = score().map_err(at())?;
        Ok(vec![("itm_score".into(), score), ("question_embeds".into(), states)])
    }
}

impl Writer {
    fn load(loader: &Loader<'_>, spec: &WriterSpec, first_hidden: bool) -> Result<Self, ModelError> {
        let stack = Stack::load(&loader.part("writer"), spec.stack.clone())?;
        let (hidden, vocabulary) = (spec.stack.hidden, spec.stack.embed.vocabulary);
        let weight = match spec.tied {
            true => stack.embedding().table().clone(),
            false => loader.weight("head.next_token", &[vocabulary, hidden])?,
        };
        Ok(Self {
            dense: loader.linear("head.dense", hidden, hidden, true)?,
            norm: Norm::load(loader, "head.norm", &spec.norm, hidden)?,
            matrix: Linear { weight, bias: Some(loader.tensor("head.bias", &[vocabulary])?) },
            activation: spec.activation,
            first: spec.first,
            first_hidden,
            stack,
        })
    }

    /// x: `[tokens, hidden]` to `[tokens, vocabulary]`.
    fn logits(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("logits");
        let x = x.linear(&self.dense).and_then(|x| x.activate(self.activation)).map_err(at())?;
        self.norm.forward(&x)?.linear(&self.matrix).map_err(at())
    }

    fn begin(&self, sequences: Vec<Vec<i64>>, source: &Source) -> Result<Begun, ModelError> {
        let length = sequences.first().map_or(0, Vec::len);
        if length == 0 {
            return Err(ModelError::input("input_ids", "at least two tokens", &[sequences.len(), length]));
        }
        let mut state = self.stack.state();
        let rows = Row::whole(vec![length; sequences.len()]);
        let last: Vec<usize> = (1..=sequences.len()).map(|text| text * length - 1).collect();
        let states = self.states(&sequences.concat(), &rows, Some(source), &mut state)?;
        if self.first_hidden {
            (0..sequences.len()).for_each(|text| state.hide(text, vec![true]));
        }
        let logits = self.logits(&states.pick(0, &last).map_err(ModelError::at("logits"))?)?;
        Ok(Begun { state, sequences, logits })
    }

    fn next(&self, tokens: &[i64], state: &mut State) -> Result<Tensor, ModelError> {
        let rows = state.next_rows();
        self.logits(&self.states(tokens, &rows, None, state)?)
    }

    fn states(
        &self,
        known: &[i64],
        rows: &[Row],
        source: Option<&Source>,
        state: &mut State,
    ) -> Result<Tensor, ModelError> {
        let engine = self.stack.embedding().table().engine();
        let ids = Tensor::whole(engine, known.to_vec(), &[known.len()]).map_err(ModelError::at("tokens"))?;
        let tokens = Tokens { ids: &ids, known, types: None };
        // As `prepare_inputs_for_generation` counts: padding is at 1, and what comes after it begins at 0.
        let counted = |row: &Row| match row.past {
            _ if !self.first_hidden => *row,
            0 => Row { past: 1, ..*row },
            past => Row { past: past - 1, ..*row },
        };
        let counted: Vec<Row> = rows.iter().map(counted).collect();
        let x = self.stack.embed(tokens, &counted)?;
        let reading = Reading { rows, absent: &[], source };
        let x = self.stack.layers(0..self.stack.spec().layers.len(), x, &reading, Some(state))?;
        state.advance(rows);
        self.stack.finish(&x)
    }
}
