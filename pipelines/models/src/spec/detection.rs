//! What models that find objects are made of.

use super::vision::BackboneSpec;
use super::{AttentionSpec, MlpSpec, NormSpec};

/// A model that finds objects in images.
#[derive(Clone, Debug, PartialEq)]
pub struct DetectionSpec {
    /// What sees the image.
    pub backbone: BackboneSpec,
    /// The stages whose maps are used.
    pub stages: Vec<usize>,
    /// Elements of a state.
    pub hidden: usize,
    /// What says where places are.
    pub places: PlaceSpec,
    /// The layers in which places see each other.
    pub encoder: FinderSpec,
    /// The layers in which objects see each other and the places.
    pub decoder: FinderSpec,
    /// How many objects are looked for.
    pub queries: usize,
    /// The norm within layers and after the last.
    pub norm: NormSpec,
    /// What is said of objects.
    pub head: DetectionHead,
}

/// What says where the places of a map are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PlaceSpec {
    /// Sines and cosines of rows and columns.
    Waves {
        /// What is added to the number of a row, from 1 on.
        shift: f32,
    },
    /// Embeddings of rows and columns.
    Learned,
}

/// Layers that are alike.
#[derive(Clone, Debug, PartialEq)]
pub struct FinderSpec {
    /// How many.
    pub layers: usize,
    /// Their attention.
    pub attention: AttentionSpec,
    /// What each state goes through after it.
    pub mlp: MlpSpec,
}

/// What is said of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectionHead {
    /// Nothing: their states.
    States,
    /// Labels and boxes.
    Objects {
        /// How many labels, that of no object among them.
        labels: usize,
    },
    /// Labels, boxes and masks.
    Masks {
        /// How many labels, that of no object among them.
        labels: usize,
    },
}
