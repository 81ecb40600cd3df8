//! What tasks other than generation give, with the names that Hugging Face's pipelines have for it.

use serde::{Deserialize, Serialize};

use crate::file_bytes::FileBytes;

/// What a task gives for one input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskResult {
    /// Labels, likeliest first.
    Labels(Vec<Label>),
    /// What may stand at each mask of a text, likeliest first.
    Fillings(Vec<Vec<Filling>>),
    /// Parts of a text that have a label, in their order.
    Entities(Vec<Entity>),
    /// Answers to a question, likeliest first.
    Answers(Vec<Span>),
    /// Numbers: `[tokens, width]`, or `[width]` for a whole text.
    Features {
        /// Their shape.
        shape: Vec<u32>,
        /// The numbers, the last axis fastest.
        values: Vec<f32>,
    },
    /// Things in a picture, in the order of the model's places for them.
    Things(Vec<Thing>),
    /// Shapes in a picture.
    Masks(Vec<Mask>),
    /// A picture, as PNG.
    Picture(FileBytes),
}

impl TaskResult {
    /// About what it takes to remember it.
    pub fn bytes(&self) -> usize {
        const EACH: usize = 64;
        match self {
            Self::Labels(labels) => labels.iter().map(|label| EACH + label.label.len()).sum(),
            Self::Fillings(masks) => {
                let fillings = masks.iter().flatten();
                fillings.map(|filling| EACH + filling.token_str.len() + filling.sequence.len()).sum()
            }
            Self::Entities(entities) => {
                entities.iter().map(|entity| EACH + entity.entity.len() + entity.word.len()).sum()
            }
            Self::Answers(spans) => spans.iter().map(|span| EACH + span.answer.len()).sum(),
            Self::Features { values, .. } => EACH + size_of_val(values.as_slice()),
            Self::Things(things) => things.iter().map(|thing| EACH + thing.label.len()).sum(),
            Self::Masks(masks) => masks.iter().map(|mask| EACH + size_of_val(mask.counts.as_slice())).sum(),
            Self::Picture(file) => EACH + file.0.len(),
        }
    }
}

/// A label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Its name.
    pub label: String,
    /// How likely it is, or, where a model measures something, how much.
    pub score: f32,
}

/// A token that may stand at a mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Filling {
    /// Its probability.
    pub score: f32,
    /// The token.
    pub token: u32,
    /// Its text.
    pub token_str: String,
    /// The whole text with it.
    pub sequence: String,
}

/// A part of a text with its label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entity {
    /// The label.
    pub entity: String,
    /// How likely it is.
    pub score: f32,
    /// The token it is of, where it is of one.
    pub index: Option<u32>,
    /// What the tokenizer makes of the part.
    pub word: String,
    /// Its first character.
    pub start: u32,
    /// The character after its last.
    pub end: u32,
}

/// A part of a text that answers a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The part.
    pub answer: String,
    /// How likely it is.
    pub score: f32,
    /// Its first character.
    pub start: u32,
    /// The character after its last.
    pub end: u32,
}

/// A thing in a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thing {
    /// How likely it is.
    pub score: f32,
    /// What it is.
    pub label: String,
    /// Where it is.
    #[serde(rename = "box")]
    pub bounds: Bounds,
}

/// A rectangle in a picture, in pixels from its left upper corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Its left edge.
    pub xmin: i32,
    /// Its upper edge.
    pub ymin: i32,
    /// Its right edge.
    pub xmax: i32,
    /// Its lower edge.
    pub ymax: i32,
}

/// A shape in a picture, as run lengths in the order of COCO: column by column, first the pixels outside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mask {
    /// How good the model thinks that it is.
    pub score: f32,
    /// Height and width of the picture, in pixels.
    pub size: [u32; 2],
    /// Pixels outside, inside, outside, and so on.
    pub counts: Vec<u32>,
}
