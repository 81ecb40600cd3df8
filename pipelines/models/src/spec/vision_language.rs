//! What models that read and write texts about images are made of.

use super::vision::BackboneSpec;
use super::{Activation, NormSpec, StackSpec};

/// A model that reads or writes texts about an image.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionLanguageSpec {
    /// What sees the image.
    pub image: BackboneSpec,
    /// What is done with texts.
    pub task: TaskSpec,
}

/// What is done with texts.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskSpec {
    /// One is continued.
    Caption(WriterSpec),
    /// One is answered by another.
    Answer {
        /// What reads the question, looking at the image.
        reader: StackSpec,
        /// What writes the answer, looking at the states of the question.
        writer: WriterSpec,
    },
    /// One is compared with the image.
    Match {
        /// What reads the text, looking at the image.
        reader: StackSpec,
        /// Elements of the vectors by which each text is compared with each image, where none looks at the other.
        space: usize,
    },
}

/// What writes texts.
#[derive(Clone, Debug, PartialEq)]
pub struct WriterSpec {
    /// The stack.
    pub stack: StackSpec,
    /// What states go through, after a layer, before they become logits.
    pub activation: Activation,
    /// The norm after it.
    pub norm: NormSpec,
    /// Whether the matrix of logits is the table of embeddings.
    pub tied: bool,
    /// The token that texts begin with.
    pub first: i64,
    /// The token that ends texts.
    pub last: i64,
    /// The id of padding. Where answers begin with it, later tokens neither see nor count the first one.
    pub padding: i64,
}
