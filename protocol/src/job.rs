//! A job: what is asked, and the events that answer it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::capability::Arithmetic;
use crate::error::JobError;
use crate::file_bytes::FileBytes;
use crate::model::ModelRef;
use crate::result::TaskResult;

mod validate;

/// A job's name, chosen at random by whoever submits it, so that submitting twice is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub [u8; 16]);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("a job id is 32 hexadecimal digits, found {found:?}")]
pub struct InvalidJobId {
    found: String,
}

impl FromStr for JobId {
    type Err = InvalidJobId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidJobId { found: text.chars().take(64).collect() };
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let value = u128::from_str_radix(text, 16).map_err(|_| invalid())?;
        Ok(Self(value.to_be_bytes()))
    }
}

/// People and programs read an id as hexadecimal text; peers exchange its 16 bytes.
impl Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

/// What a model is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Continue a text or answer in a conversation.
    TextGeneration,
    /// Say what may stand where a text has its mask.
    FillMask,
    /// The states of a text's tokens.
    FeatureExtraction,
    /// One vector for a whole text, by which texts are compared.
    Embedding,
    /// The labels of a text, or of a pair of texts.
    TextClassification,
    /// The labels of parts of a text.
    TokenClassification,
    /// The part of a text that answers a question.
    QuestionAnswering,
    /// The labels of a picture.
    ImageClassification,
    /// Say in fewer words what a text says.
    Summarization,
    /// Say a text in another language.
    Translation,
    /// Write down what is said in a sound.
    AutomaticSpeechRecognition,
    /// The things in a picture, and where they are.
    ObjectDetection,
    /// The shapes of what is in a picture.
    MaskGeneration,
    /// Say what a picture shows.
    ImageToText,
    /// Answer in a conversation about pictures.
    ImageTextToText,
    /// How series go on.
    TimeSeriesForecasting,
    /// Paint what a text says.
    TextToImage,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 17] = [
        Self::TextGeneration,
        Self::FillMask,
        Self::FeatureExtraction,
        Self::Embedding,
        Self::TextClassification,
        Self::TokenClassification,
        Self::QuestionAnswering,
        Self::ImageClassification,
        Self::Summarization,
        Self::Translation,
        Self::AutomaticSpeechRecognition,
        Self::ObjectDetection,
        Self::MaskGeneration,
        Self::ImageToText,
        Self::ImageTextToText,
        Self::TimeSeriesForecasting,
        Self::TextToImage,
    ];

    /// As people write it: Hugging Face's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextGeneration => "text-generation",
            Self::FillMask => "fill-mask",
            Self::FeatureExtraction => "feature-extraction",
            Self::Embedding => "embedding",
            Self::TextClassification => "text-classification",
            Self::TokenClassification => "token-classification",
            Self::QuestionAnswering => "question-answering",
            Self::ImageClassification => "image-classification",
            Self::Summarization => "summarization",
            Self::Translation => "translation",
            Self::AutomaticSpeechRecognition => "automatic-speech-recognition",
            Self::ObjectDetection => "object-detection",
            Self::MaskGeneration => "mask-generation",
            Self::ImageToText => "image-to-text",
            Self::ImageTextToText => "image-text-to-text",
            Self::TimeSeriesForecasting => "time-series-forecasting",
            Self::TextToImage => "text-to-image",
        }
    }

    /// Whether the answer is a text, which may come token by token; the others come whole, as [`TaskResult`]s.
    pub fn is_generation(self) -> bool {
        matches!(
            self,
            Self::TextGeneration
                | Self::Summarization
                | Self::Translation
                | Self::AutomaticSpeechRecognition
                | Self::ImageToText
                | Self::ImageTextToText
        )
    }

    /// Whether it is done on one file of a picture or a sound.
    pub fn reads_file(self) -> bool {
        matches!(
            self,
            Self::ImageClassification
                | Self::AutomaticSpeechRecognition
                | Self::ObjectDetection
                | Self::MaskGeneration
                | Self::ImageToText
        )
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no task of that name.
#[derive(Debug, thiserror::Error)]
#[error("{found:?} is no task; tasks: {}", Task::ALL.map(Task::name).join(", "))]
pub struct InvalidTask {
    found: String,
}

impl FromStr for Task {
    type Err = InvalidTask;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|task| task.name() == text);
        found.ok_or_else(|| InvalidTask { found: text.chars().take(64).collect() })
    }
}

/// How a task is done, beside how tokens are chosen. What is none is as the task has it by custom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskOptions {
    /// How many of the likeliest to report.
    pub top_k: Option<u32>,
    /// What becomes of tokens that belong together, where tokens get labels.
    pub aggregation: Aggregation,
    /// How likely a thing in a picture has to be to be reported, from 0 to 1.
    pub threshold: Option<f32>,
    /// The language that is spoken, as the model names it.
    pub language: Option<String>,
    /// How a picture is painted.
    pub painting: Painting,
}

/// How a picture is painted from a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Painting {
    /// Steps from noise to the picture.
    pub steps: Option<u32>,
    /// How closely it keeps to the text.
    pub guidance: Option<f32>,
    /// What it is not to show.
    pub negative: Option<String>,
    /// Its width in pixels.
    pub width: Option<u32>,
    /// Its height in pixels.
    pub height: Option<u32>,
}

/// How labels of tokens become labels of longer parts of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// Each token stands alone.
    #[default]
    None,
    /// Neighbours with the same label are one part.
    Simple,
    /// As `simple`, after each word has taken the label of its first token.
    First,
    /// As `simple`, after each word has taken the label that its tokens have on average.
    Average,
    /// As `simple`, after each word has taken the label of its surest token.
    Max,
}

/// Who speaks in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The person asking.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// What a job works on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// A text to continue exactly as it stands.
    Text(String),
    /// A conversation, rendered by the model's own chat template.
    Chat(Vec<Message>),
    /// Several texts, each for itself.
    Texts(Vec<String>),
    /// Two texts that belong together: a question and the text to find its answer in, or two that are compared.
    Pair(String, String),
    /// A file of a picture or a sound, as it is.
    File(FileBytes),
    /// A conversation about pictures, which come before what the person says last.
    Pictures(Vec<FileBytes>, Vec<Message>),
    /// Numbers that were measured together, at one time after another: `[times, channels]`.
    Series(Vec<Vec<f32>>),
    /// An input over the inline limit: the CID of a file that holds the JSON of one of the other variants.
    Blob(String),
}

/// How tokens are chosen and when to stop.
///
/// Sampling is a function of the seed and the position, never of the state of a generator, so an answer that moves to
/// another peer goes on with the same draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generation {
    /// Tokens to produce at most.
    pub max_tokens: u32,
    /// Softmax temperature; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens whose probabilities sum to `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Keep the tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divide (or, below zero, multiply) the logits of tokens seen so far by this; 1 changes nothing.
    pub repetition_penalty: f32,
    /// The seed of the draws.
    pub seed: u64,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// How many alternatives to report with each token; none reports no log probabilities.
    pub logprobs: Option<u8>,
    /// Go on past the model's end-of-text token.
    pub ignore_eos: bool,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            logprobs: None,
            ignore_eos: false,
        }
    }
}

/// A whole job, as it is submitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The job's name.
    pub id: JobId,
    /// The model to run.
    pub model: ModelRef,
    /// What to do.
    pub task: Task,
    /// What to do it on.
    pub input: Input,
    /// How to choose tokens.
    pub generation: Generation,
    /// How to do the task.
    pub options: TaskOptions,
    /// Tokens of the answer that another peer has produced already: they are read back in, not produced again.
    pub prior: Vec<u32>,
    /// The only arithmetic that may continue `prior` exactly; none when there is nothing to continue.
    pub arithmetic: Option<Arithmetic>,
    /// Milliseconds from acceptance within which the job must have ended.
    pub deadline_ms: u64,
}

/// One thing that happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobEvent {
    /// The worker is fetching the model.
    Fetching {
        /// Bytes that are here.
        done_bytes: u64,
        /// Bytes of the whole model.
        total_bytes: u64,
        /// Peers that serve it.
        peers: u32,
    },
    /// The worker has fetched what it lacked of the model, and checked all of it.
    Fetched {
        /// Bytes that came from peers.
        bytes: u64,
        /// Peers that sent them.
        peers: u32,
        /// Milliseconds it took.
        elapsed_ms: u64,
    },
    /// The model is loaded and the prompt is being read.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// The arithmetic that answers.
        arithmetic: Arithmetic,
    },
    /// The prompt, and the answer so far of a job that moved, are being read in.
    Reading {
        /// Tokens read.
        done_tokens: u32,
        /// Tokens to read.
        total_tokens: u32,
    },
    /// A part of the work is done of which nothing is to be seen yet: an input of several, a step of a search for the
    /// best answer, or of a painting.
    Working {
        /// Parts done.
        done: u32,
        /// Parts to do, at most.
        total: u32,
    },
    /// The worker went away and another goes on with the answer.
    Moved {
        /// The peer that goes on.
        peer: String,
        /// Tokens that it reads back in.
        prior_tokens: u32,
        /// Whether it computes with the same arithmetic, so that the answer is what it would have been.
        exact: bool,
    },
    /// One token of the answer.
    Token {
        /// Position in the answer, from 0.
        index: u32,
        /// The token.
        id: u32,
        /// The text that became certain with this token; may be empty.
        text: String,
        /// Its log probability and the alternatives, where asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The job is done.
    Done {
        /// Text that was held back in case a stop text began with it.
        text: String,
        /// What a task other than generation gives, for each of its inputs.
        results: Vec<TaskResult>,
        /// Why the answer ends.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The job failed.
    Failed {
        /// Why.
        error: JobError,
    },
    /// The job was cancelled.
    Cancelled,
}

impl JobEvent {
    /// Whether no event follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. } | Self::Cancelled)
    }
}

/// An event with its place in the job's stream, by which a broken stream resumes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Place in the stream, from 0, without holes.
    pub number: u64,
    /// What happened.
    pub event: JobEvent,
}

/// A token's log probability beside those of the likeliest tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Natural logarithm of the chosen token's probability, before temperature and cuts.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first: id, text, log probability.
    pub top: Vec<(u32, String, f32)>,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfText,
    /// A stop text came.
    Stop,
    /// `max_tokens`, or the end of the model's context, was reached.
    Length,
    /// Nothing is left to say: the task is not one that chooses tokens.
    Complete,
}

/// What a job took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer, those of earlier peers included.
    pub completion_tokens: u32,
    /// Milliseconds the prompt took.
    pub prefill_ms: f64,
    /// Milliseconds the answer took on the peer that ended it.
    pub decode_ms: f64,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Accepted, not begun.
    Queued,
    /// Being worked on.
    Running,
    /// Ended with a result.
    Done,
    /// Ended with an error.
    Failed,
    /// Ended because somebody asked.
    Cancelled,
}

/// A job as `ps` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job's name.
    pub id: JobId,
    /// Its model.
    pub model: ModelRef,
    /// Where it stands.
    pub state: JobState,
    /// Tokens produced so far.
    pub tokens: u32,
    /// The peer that works on it; none when it is this one.
    pub peer: Option<String>,
    /// Milliseconds since it was accepted.
    pub age_ms: u64,
}
