//! Models as whole things: asked by named tensors, answering by named tensors, as Hugging Face's classes name them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use accel_backends::tensor::{Kind, Tensor, TensorError};

use crate::ModelError;
use crate::cache::State;
use crate::family::codec::Codec;
use crate::family::decoder::Decoder;
use crate::family::deformable::Deformable;
use crate::family::detection::Detection;
use crate::family::dit::Dit;
use crate::family::dual_encoder::DualEncoder;
use crate::family::encoder::Encoder;
use crate::family::encoder_decoder::EncoderDecoder;
use crate::family::multimodal::Multimodal;
use crate::family::retrieval::Retrieval;
use crate::family::segmentation::Segmentation;
use crate::family::speech::Speech;
use crate::family::time_series::TimeSeries;
use crate::family::unet::Unet;
use crate::family::vae::Vae;
use crate::family::vision::Vision;
use crate::family::vision_language::VisionLanguage;
use crate::layers::moe::Experts;
use crate::rules::Loader;
use crate::spec::Spec;
use crate::stack::Stack;
use crate::stage::Stage;
use crate::usage::ExpertUsage;

/// What a model is asked.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    tensors: BTreeMap<String, Tensor>,
    known: BTreeMap<String, Tensor>,
    numbers: BTreeMap<String, f64>,
}

/// Values of an input and its shape.
pub type Known<'a, T> = (Vec<T>, &'a [usize]);

/// What a model answers.
pub type Outputs = Vec<(String, Tensor)>;

impl Inputs {
    /// Adds a tensor.
    pub fn insert(&mut self, name: &str, tensor: Tensor) {
        self.known.insert(name.to_owned(), tensor.clone());
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Adds a tensor that is recorded, with values of it: what depends on them is settled by these.
    pub fn insert_recorded(&mut self, name: &str, tensor: Tensor, known: Tensor) {
        self.known.insert(name.to_owned(), known);
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Adds a number, or a truth as 1 or 0.
    pub fn insert_number(&mut self, name: &str, number: f64) {
        self.numbers.insert(name.to_owned(), number);
    }

    /// A tensor.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, ModelError> {
        self.optional(name).ok_or_else(|| missing(name))
    }

    /// A tensor that may be left out.
    pub fn optional(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Values of a tensor of whole numbers, and its shape; values are known even while it is recorded.
    ///
    /// # Errors
    ///
    /// When it is not there, or its elements are floats.
    pub fn whole(&self, name: &str) -> Result<Known<'_, i64>, ModelError> {
        let tensor = self.known.get(name).ok_or_else(|| missing(name))?;
        Ok((tensor.to_whole().map_err(ModelError::at(name))?, tensor.dims()))
    }

    /// The same, where it may be left out.
    ///
    /// # Errors
    ///
    /// When its elements are floats.
    pub fn optional_whole(&self, name: &str) -> Result<Option<Known<'_, i64>>, ModelError> {
        if self.known.contains_key(name) { self.whole(name).map(Some) } else { Ok(None) }
    }

    /// Where a mask of numbers or truths is not 0, and its shape; known even while other inputs are recorded.
    ///
    /// # Errors
    ///
    /// When its values are not known.
    pub fn optional_mask(&self, name: &str) -> Result<Option<Known<'_, bool>>, ModelError> {
        let Some(tensor) = self.known.get(name) else { return Ok(None) };
        let seen = match tensor.kind() {
            Kind::Whole => tensor.to_whole().map(|mask| mask.into_iter().map(|seen| seen != 0).collect()),
            Kind::Float => tensor.to_vec().map(|mask| mask.into_iter().map(|seen| seen != 0.0).collect()),
        };
        Ok(Some((seen.map_err(ModelError::at(name))?, tensor.dims())))
    }

    /// Gives a tensor on to the inputs of a part of the model, under that part's name for it, if it is there.
    ///
    /// # Errors
    ///
    /// When what is done to it fails.
    pub fn pass(
        &self,
        name: &str,
        to: &mut Self,
        own: &str,
        how: impl Fn(&Tensor) -> Result<Tensor, TensorError>,
    ) -> Result<(), TensorError> {
        if let (Some(tensor), Some(known)) = (self.tensors.get(name), self.known.get(name)) {
            to.insert_recorded(own, how(tensor)?, how(known)?);
        }
        Ok(())
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.numbers.get(name).copied()
    }

    /// The first name that is none of `supported`.
    ///
    /// # Errors
    ///
    /// When there is one.
    pub fn only(&self, supported: &[&str]) -> Result<(), ModelError> {
        let mut names = self.tensors.keys().chain(self.numbers.keys());
        match names.find(|name| !supported.contains(&name.as_str())) {
            None => Ok(()),
            Some(found) => Err(ModelError::Unsupported {
                what: "the input".into(),
                found: found.clone(),
                supported: supported.join(", "),
            }),
        }
    }
}

fn missing(name: &str) -> ModelError {
    ModelError::MissingInput { name: name.to_owned() }
}

/// A model with its weights: one of the families.
#[derive(Debug)]
pub enum Model {
    /// Decoders of text.
    Decoder(Box<Decoder>),
    /// Encoders of text.
    Encoder(Box<Encoder>),
    /// Encoders with a decoder of text.
    EncoderDecoder(Box<EncoderDecoder>),
    /// Transformers of diffusion.
    Dit(Box<Dit>),
    /// Codecs of sound.
    Codec(Box<Codec>),
    /// Models of speech.
    Speech(Box<Speech>),
    /// Models of time series.
    TimeSeries(Box<TimeSeries>),
    /// Networks that tell what to take off a noisy image.
    Unet(Box<Unet>),
    /// Autoencoders of images.
    Vae(Box<Vae>),
    /// Models of images.
    Vision(Box<Vision>),
    /// Models that find objects in images.
    Detection(Box<Detection>),
    /// Models that find objects by looking at points of images.
    Deformable(Box<Deformable>),
    /// Models that cut out what prompts point at.
    Segmentation(Box<Segmentation>),
    /// Models that compare images and texts.
    DualEncoder(Box<DualEncoder>),
    /// Models that write about images.
    VisionLanguage(Box<VisionLanguage>),
    /// Decoders of text that read images among their tokens.
    Multimodal(Box<Multimodal>),
    /// Generators of text that read documents.
    Retrieval(Box<Retrieval>),
}

/// Sequences in the making.
#[derive(Debug)]
pub struct Begun {
    /// What the model keeps of them.
    pub state: State,
    /// What they begin with: the prompt, or the token that starts a decoder.
    pub sequences: Vec<Vec<i64>>,
    /// Logits of the next token: `[sequences, vocabulary]`.
    pub logits: Tensor,
}

/// What the texts that a model writes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The most positions of what is read, and of what is written; of a model that knows no positions without number.
    pub contexts: [usize; 2],
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Bytes of state that one position takes.
    pub position_bytes: u64,
    /// Bytes of state that a sequence takes however long it is.
    pub sequence_bytes: u64,
    /// Positions of an image that what is written looks at, where they are known.
    pub image_positions: Option<usize>,
}

impl Model {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: Spec) -> Result<Self, ModelError> {
        Ok(match spec {
            Spec::Decoder(spec) => Self::Decoder(Box::new(Decoder::load(loader, *spec)?)),
            Spec::Encoder(spec) => Self::Encoder(Box::new(Encoder::load(loader, *spec)?)),
            Spec::EncoderDecoder(spec) => Self::EncoderDecoder(Box::new(EncoderDecoder::load(loader, *spec)?)),
            Spec::Dit(spec) => Self::Dit(Box::new(Dit::load(loader, *spec)?)),
            Spec::Codec(spec) => Self::Codec(Box::new(Codec::load(loader, *spec)?)),
            Spec::Speech(spec) => Self::Speech(Box::new(Speech::load(loader, *spec)?)),
            Spec::TimeSeries(spec) => Self::TimeSeries(Box::new(TimeSeries::load(loader, *spec)?)),
            Spec::Unet(spec) => Self::Unet(Box::new(Unet::load(loader, *spec)?)),
            Spec::Vae(spec) => Self::Vae(Box::new(Vae::load(loader, &spec)?)),
            Spec::Vision(spec) => Self::Vision(Box::new(Vision::load(loader, *spec)?)),
            Spec::Detection(spec) => Self::Detection(Box::new(Detection::load(loader, &spec)?)),
            Spec::Deformable(spec) => Self::Deformable(Box::new(Deformable::load(loader, &spec)?)),
            Spec::Segmentation(spec) => Self::Segmentation(Box::new(Segmentation::load(loader, &spec)?)),
            Spec::DualEncoder(spec) => Self::DualEncoder(Box::new(DualEncoder::load(loader, &spec)?)),
            Spec::VisionLanguage(spec) => Self::VisionLanguage(Box::new(VisionLanguage::load(loader, &spec)?)),
            Spec::Multimodal(spec) => Self::Multimodal(Box::new(Multimodal::load(loader, *spec)?)),
            Spec::Retrieval(spec) => Self::Retrieval(Box::new(Retrieval::load(loader, *spec)?)),
        })
    }

    /// The most positions of a sequence of text; those of a model that knows no positions are without number.
    pub fn context(&self) -> usize {
        match self {
            Self::Decoder(model) => model.context(),
            Self::Encoder(model) => model.context(),
            // Where both read the same text, it has to fit both.
            Self::EncoderDecoder(model) => model.contexts().into_iter().min().unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }

    /// What the texts take that a model writes after it has read its inputs whole; none where it writes none.
    pub fn extent(&self) -> Option<Extent> {
        match self {
            Self::EncoderDecoder(model) => Some(model.extent()),
            Self::VisionLanguage(model) => model.extent(),
            Self::Multimodal(model) => Some(model.extent()),
            _ => None,
        }
    }

    /// The stacks of layers in it that [`Stack::layers`] splits. A stack gives the states of some rows; what else a
    /// model has of layers stands in one place.
    pub fn stacks(&self) -> Vec<&Stack> {
        match self {
            Self::Decoder(model) => vec![model.stack()],
            Self::Encoder(model) => vec![model.stack()],
            Self::EncoderDecoder(model) => model.stacks().collect(),
            Self::Speech(model) => vec![model.stack()],
            Self::Vision(model) => model.stack().into_iter().collect(),
            Self::DualEncoder(model) => model.stacks().collect(),
            Self::VisionLanguage(model) => model.stacks().collect(),
            Self::Multimodal(model) => model.stacks().into(),
            Self::Retrieval(model) => model.stacks().collect(),
            _ => Vec::new(),
        }
    }

    /// Has somebody else work out the experts of all layers.
    pub fn set_experts(&mut self, experts: &Arc<dyn Experts>) {
        match self {
            Self::Decoder(model) => model.stack_mut().set_experts(experts),
            Self::EncoderDecoder(model) => model.stacks_mut().for_each(|stack| stack.set_experts(experts)),
            // Other families have none.
            _ => {}
        }
    }

    /// Has somebody else work out a range of layers of one stack. Layers are counted through all stacks.
    ///
    /// # Errors
    ///
    /// When no stack has all of them.
    pub fn set_stage(&mut self, range: Range<usize>, stage: Arc<dyn Stage>) -> Result<(), ModelError> {
        let stacks: Vec<&mut Stack> = match self {
            Self::Decoder(model) => vec![model.stack_mut()],
            Self::EncoderDecoder(model) => model.stacks_mut().collect(),
            _ => Vec::new(),
        };
        let mut first = 0;
        for stack in stacks {
            let end = first + stack.spec().layers.len();
            if (first..end).contains(&range.start) && range.end <= end {
                stack.set_stage(range.start - first..range.end - first, stage);
                return Ok(());
            }
            first = end;
        }
        let found = format!("{} to {}", range.start, range.end);
        Err(ModelError::State { place: "stage", expected: "layers of one stack".into(), found })
    }

    /// Whether somebody else works out some layers.
    pub fn has_stages(&self) -> bool {
        self.stacks().into_iter().any(Stack::has_stages)
    }

    /// Has the routers of all layers say what they choose.
    pub fn watch_experts(&mut self, usage: &Arc<ExpertUsage>) {
        match self {
            Self::Decoder(model) => model.stack_mut().watch_experts(0, usage),
            Self::EncoderDecoder(model) => {
                let mut first = 0;
                for stack in model.stacks_mut() {
                    stack.watch_experts(first, usage);
                    first += stack.spec().layers.len();
                }
            }
            // Other families have none.
            _ => {}
        }
    }

    /// Where the routers say what they choose, if anywhere.
    pub fn expert_usage(&self) -> Option<&Arc<ExpertUsage>> {
        self.stacks().into_iter().find_map(Stack::expert_usage)
    }

    /// Answers all that the model's class answers.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn forward(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        match self {
            Self::Decoder(model) => model.answer(inputs),
            Self::Encoder(model) => model.answer(inputs),
            Self::EncoderDecoder(model) => model.answer(inputs),
            Self::Dit(model) => model.answer(inputs),
            Self::Codec(model) => model.answer(inputs),
            Self::Speech(model) => model.answer(inputs),
            Self::TimeSeries(model) => model.answer(inputs),
            Self::Unet(model) => model.answer(inputs),
            Self::Vae(model) => model.answer(inputs),
            Self::Vision(model) => model.answer(inputs),
            Self::Detection(model) => model.answer(inputs),
            Self::Deformable(model) => model.answer(inputs),
            Self::Segmentation(model) => model.answer(inputs),
            Self::DualEncoder(model) => model.answer(inputs),
            Self::VisionLanguage(model) => model.answer(inputs),
            Self::Multimodal(model) => model.answer(inputs),
            Self::Retrieval(model) => model.answer(inputs),
        }
    }

    /// Reads what sequences begin with.
    ///
    /// # Errors
    ///
    /// When the model does not generate, or the inputs do not fit.
    pub fn begin(&self, inputs: &Inputs) -> Result<Begun, ModelError> {
        match self {
            Self::Decoder(model) => model.begin(inputs),
            Self::Encoder(model) => model.begin(inputs),
            Self::EncoderDecoder(model) => model.begin(inputs),
            Self::VisionLanguage(model) => model.begin(inputs),
            Self::Multimodal(model) => model.begin(inputs),
            Self::Retrieval(model) => model.begin(inputs),
            _ => Err(ModelError::no_generation()),
        }
    }

    /// Reads one token of each sequence, and answers logits of the next: `[sequences, vocabulary]`.
    ///
    /// # Errors
    ///
    /// When the model does not generate, or the state is another's.
    pub fn next(&self, tokens: &[i64], state: &mut State) -> Result<Tensor, ModelError> {
        match self {
            Self::Decoder(model) => model.next(tokens, state),
            Self::Encoder(model) => model.next(tokens, state),
            Self::EncoderDecoder(model) => model.next(tokens, state),
            Self::VisionLanguage(model) => model.next(tokens, state),
            Self::Multimodal(model) => model.next(tokens, state),
            Self::Retrieval(model) => model.next(tokens, state),
            _ => Err(ModelError::no_generation()),
        }
    }
}
