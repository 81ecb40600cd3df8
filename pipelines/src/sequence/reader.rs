//! What becomes of a job's input before a model writes: a text for an encoder, a sound, a picture, or a conversation with
//! pictures.
//!
//! Follows the `preprocess` of `pipelines/text2text_generation.py`, `image_to_text.py`, `image_text_to_text.py` and
//! `automatic_speech_recognition.py` in `transformers`, and the processors of models that read pictures among their
//! tokens.

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::family::multimodal::Multimodal;
use accel_models::model::{Inputs, Model};
use accel_models::spec::Spec;
use accel_models::spec::encoder_decoder::SourceSpec;
use accel_models::spec::vision_language::TaskSpec;
use accel_protocol::{FileBytes, Input, JobSpec, Message, Role, Task};
use serde::Serialize;

use super::transcription::{Prompt, Said, Sound};
use crate::audio_input::{self, AudioPreprocessor};
use crate::error::PipelineError;
use crate::generation::settings::Settings;
use crate::image_input::{self, ImageInput, ImagePreprocessor};
use crate::task::image;
use crate::tokenizer::Tokenizer;

/// What a model reads before it writes.
pub enum Reader {
    /// A text, by an encoder.
    Text,
    /// A picture that a text is written about.
    Picture {
        /// What prepares it.
        preprocessor: ImagePreprocessor,
        /// The tokens that texts begin and end with.
        ends: [u32; 2],
    },
    /// A conversation with pictures among its tokens.
    Conversation(ImagePreprocessor),
    /// A sound that is written down.
    Sound(AudioPreprocessor),
}

/// What a model is given for a job.
pub struct Read {
    pub source: Source,
    /// What the sequence that is written begins with.
    pub prompt: Prompt,
    /// Tokens that are read.
    pub tokens: usize,
    /// Positions that are kept beside those of the sequence.
    pub kept: usize,
    /// Bytes that are kept beside positions.
    pub kept_bytes: u64,
}

/// What a model reads before it writes, or before it writes on.
pub enum Source {
    /// All at once, by name.
    Whole(Inputs),
    /// A window at a time.
    Sound(Sound),
}

impl Source {
    /// How many tokens stand whatever follows them.
    pub fn certain(&self, said: &[Said]) -> usize {
        match self {
            Self::Whole(_) => said.len(),
            Self::Sound(sound) => sound.certain(said),
        }
    }

    /// How many tokens stand at the end of a window.
    pub fn kept(&self, said: &[Said]) -> usize {
        match self {
            Self::Whole(_) => said.len(),
            Self::Sound(sound) => sound.kept(said),
        }
    }

    /// Whether a token is no part of the text.
    pub fn is_silent(&self, token: u32) -> bool {
        matches!(self, Self::Sound(sound) if sound.is_time(token))
    }
}

/// Who reads.
pub struct Reading<'a> {
    pub engine: &'a Engine,
    pub model: &'a Model,
    pub tokenizer: &'a Tokenizer,
    /// The most positions that are read, and that are written.
    pub contexts: [usize; 2],
}

/// A message as templates of models that see pictures expect it.
#[derive(Serialize)]
struct Turn<'a> {
    role: Role,
    content: Vec<Part<'a>>,
}

impl<'a> Turn<'a> {
    fn of(message: &'a Message) -> Self {
        Self { role: message.role, content: vec![Part::Text { text: &message.content }] }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Part<'a> {
    Image,
    Text { text: &'a str },
}

impl Reader {
    /// What a model reads that writes.
    ///
    /// # Errors
    ///
    /// When its files do not say how pictures or sounds are prepared.
    pub fn of(files: &dyn ModelFiles, spec: &Spec) -> Result<Self, PipelineError> {
        Ok(match spec {
            Spec::VisionLanguage(spec) => {
                let TaskSpec::Caption(writer) = &spec.task else {
                    return Err(ModelError::no_generation().into());
                };
                let token = |id: i64| {
                    u32::try_from(id).map_err(|_| {
                        PipelineError::tokenizer("config.json: text_config", format!("expected a token, found {id}"))
                    })
                };
                let ends = [token(writer.first)?, token(writer.last)?];
                Self::Picture { preprocessor: ImagePreprocessor::read(files)?, ends }
            }
            Spec::Multimodal(_) => Self::Conversation(ImagePreprocessor::read(files)?),
            Spec::EncoderDecoder(spec) if matches!(spec.source, SourceSpec::Features { .. }) => {
                Self::Sound(AudioPreprocessor::read(files)?)
            }
            _ => Self::Text,
        })
    }

    /// Whether what writes is a model within the model, with settings of its own.
    pub fn writes_within(&self) -> bool {
        matches!(self, Self::Picture { .. })
    }

    /// Whether answers have no spaces before punctuation where the tokenizer's files say so; other pipelines say no to it.
    pub fn tidies(&self) -> bool {
        matches!(self, Self::Picture { .. } | Self::Sound(_))
    }

    /// Sets what the model's class sets itself, whatever the files say.
    pub fn settle(&self, settings: &mut Settings) {
        if let Self::Picture { ends: [start, end], .. } = self {
            (settings.start, settings.ends) = (Some(*start), vec![*end]);
        }
    }

    /// Reads a job's input. How times follow is settled with it, where the model says them.
    ///
    /// # Errors
    ///
    /// When it is of another kind, cannot be read, or is too long for the model.
    pub fn read(&self, by: &Reading<'_>, spec: &JobSpec, settings: &mut Settings) -> Result<Read, PipelineError> {
        let (task, input) = (spec.task, &spec.input);
        let start = settings.start.ok_or_else(|| {
            let words = "expected decoder_start_token_id or bos_token_id, found neither";
            PipelineError::tokenizer("generation_config.json", words)
        });
        match self {
            Self::Text => text(by, task, input, &settings.prefix, start?),
            Self::Picture { preprocessor, ends } => {
                let prepared = preprocessor.prepare(&[image::picture(task, input)?])?;
                let mut inputs = image::inputs(by.engine, &prepared)?;
                // The model leaves the last token of a prompt away.
                inputs.insert("input_ids", ids(by.engine, ends)?);
                let kept = by.model.extent().and_then(|extent| extent.image_positions).unwrap_or(0);
                let (source, prompt) = (Source::Whole(inputs), Prompt::start(start?));
                Ok(Read { source, prompt, tokens: 0, kept, kept_bytes: 0 })
            }
            Self::Conversation(preprocessor) => conversation(by, task, input, preprocessor),
            Self::Sound(preprocessor) => sound(by, spec, preprocessor, settings, start?),
        }
    }
}

fn ids(engine: &Engine, tokens: &[u32]) -> Result<Tensor, PipelineError> {
    let ids = Tensor::whole(engine, tokens.iter().copied().map(i64::from).collect(), &[1, tokens.len()]);
    ids.map_err(|source| ModelError::Tensor { place: "input_ids".into(), source }.into())
}

fn text(by: &Reading<'_>, task: Task, input: &Input, prefix: &str, start: u32) -> Result<Read, PipelineError> {
    let Input::Text(text) = input else {
        return Err(PipelineError::input("the input", format!("expected one text for {task}")));
    };
    let tokens = by.tokenizer.encode_text(&format!("{prefix}{text}"));
    let tokens = within(by, tokens.map_err(|error| PipelineError::input("the text", error))?)?;
    let mut inputs = Inputs::default();
    inputs.insert("input_ids", ids(by.engine, &tokens)?);
    inputs.insert_number("decoder_start_token_id", start.into());
    let (source, prompt, tokens) = (Source::Whole(inputs), Prompt::start(start), tokens.len());
    Ok(Read { source, prompt, tokens, kept: tokens, kept_bytes: 0 })
}

/// Tokens of which there is at least one, and no more than the model has positions.
fn within(by: &Reading<'_>, tokens: Vec<u32>) -> Result<Vec<u32>, PipelineError> {
    let (found, context) = (tokens.len(), by.contexts[0]);
    if found > context {
        return Err(PipelineError::TooLong { found, context });
    }
    if found == 0 {
        return Err(PipelineError::input("the text", "expected at least one token, found none"));
    }
    Ok(tokens)
}

fn conversation(
    by: &Reading<'_>,
    task: Task,
    input: &Input,
    preprocessor: &ImagePreprocessor,
) -> Result<Read, PipelineError> {
    let (files, messages): (&[FileBytes], _) = match input {
        Input::Pictures(files, messages) => (files, messages),
        Input::Chat(messages) => (&[], messages),
        _ => {
            let expected = format!("expected a conversation, with pictures or without, for {task}");
            return Err(PipelineError::input("the input", expected));
        }
    };
    let Model::Multimodal(model) = by.model else { return Err(ModelError::no_generation().into()) };
    let template = by.tokenizer.chat();
    let template = template.ok_or_else(|| PipelineError::input("the input", "the model has no chat template"))?;
    let refused = |reason| PipelineError::input("the model's chat template", reason);
    let prompt = template.render(&turns(files.len(), messages)?).map_err(refused)?;
    let tokens = by.tokenizer.encode_rendered(&prompt).map_err(|error| PipelineError::input("the text", error))?;
    let pictures = files.iter().map(|file| image_input::decode(&file.0)).collect::<Result<Vec<_>, _>>()?;
    let prepared = preprocessor.prepare(&pictures)?;
    let tokens = within(by, if prepared.is_empty() { tokens } else { spread(tokens, model, &prepared)? })?;
    let mut inputs = image::inputs(by.engine, &prepared)?;
    inputs.insert("input_ids", ids(by.engine, &tokens)?);
    let read = tokens.len();
    let prompt = Prompt { tokens, read, is_text: true, languages: Vec::new() };
    Ok(Read { source: Source::Whole(inputs), prompt, tokens: read, kept: 0, kept_bytes: 0 })
}

/// A sound by its windows, and what the decoder's sequence begins with in each.
fn sound(
    by: &Reading<'_>,
    spec: &JobSpec,
    preprocessor: &AudioPreprocessor,
    settings: &mut Settings,
    start: u32,
) -> Result<Read, PipelineError> {
    let no_sounds = || PipelineError::from(ModelError::MissingInput { name: "input_features".into() });
    let window = match by.model {
        Model::EncoderDecoder(model) => model.frames().ok_or_else(no_sounds)?,
        _ => return Err(no_sounds()),
    };
    let transcription = settings.transcription.as_ref().ok_or_else(no_sounds)?;
    let input = audio_input::heard(preprocessor, spec.task, &spec.input)?;
    let sound = Sound::new(input, window, transcription.first_time());
    let timed = transcription.is_timed(sound.frames(), window);
    let prompt = transcription.prompt(start, spec.options.language.as_deref(), timed)?;
    if timed {
        settings.rules.timestamps = Some(transcription.rule(&settings.ends)?);
    }
    let (found, context) = (prompt.tokens.len(), by.contexts[1]);
    if found > context {
        return Err(PipelineError::TooLong { found, context });
    }
    let (kept, kept_bytes) = (sound.window_positions(), sound.bytes());
    // The encoder makes one position of two frames.
    let tokens = sound.frames().div_ceil(2);
    Ok(Read { source: Source::Sound(sound), prompt, tokens, kept, kept_bytes })
}

/// A conversation with so many pictures before what the person says last.
fn turns(pictures: usize, messages: &[Message]) -> Result<Vec<Turn<'_>>, PipelineError> {
    if messages.last().is_none_or(|message| message.role != Role::User) {
        let expected = "expected a conversation in which the person speaks last";
        return Err(PipelineError::input("the input", expected));
    }
    let mut turns: Vec<Turn<'_>> = messages.iter().map(Turn::of).collect();
    if let Some(last) = turns.last_mut() {
        last.content.splice(0..0, (0..pictures).map(|_| Part::Image));
    }
    Ok(turns)
}

/// The tokens with each that means a picture as often as the picture has embeddings.
fn spread(tokens: Vec<u32>, model: &Multimodal, prepared: &[ImageInput]) -> Result<Vec<u32>, PipelineError> {
    let means = |token: u32| i64::from(token) == model.image_token();
    let places = tokens.iter().filter(|token| means(**token)).count();
    if places != prepared.len() {
        let expected = format!("{} places for pictures in the prompt, found {places}", prepared.len());
        return Err(PipelineError::input("the model's chat template", format!("expected {expected}")));
    }
    let mut sizes = prepared.iter().map(|picture| model.embeddings(&picture.shape, picture.grid));
    let mut spread = Vec::with_capacity(tokens.len());
    for token in tokens {
        let count = if means(token) { sizes.next().transpose()?.unwrap_or(0) } else { 1 };
        spread.extend(std::iter::repeat_n(token, count));
    }
    Ok(spread)
}
