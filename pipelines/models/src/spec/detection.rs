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
    /// Whether the norm after the last layer of objects comes after each of them, too.
    pub normed_between: bool,
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
    /// Where in the image it looks.
    pub looks: LooksSpec,
    /// What each state goes through after it.
    pub mlp: MlpSpec,
}

/// Where in the image attention looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LooksSpec {
    /// Everywhere.
    Everywhere,
    /// At points of several maps (<https://arxiv.org/abs/2010.04159>).
    AtPoints {
        /// How many maps.
        levels: usize,
        /// Points of each.
        points: usize,
    },
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
        /// What becomes of their logits.
        scores: ScoresSpec,
    },
    /// Labels, boxes and masks.
    Masks {
        /// How many labels, that of no object among them.
        labels: usize,
    },
}

/// What becomes of the logits of objects' labels (`post_process_object_detection` of the image processors).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoresSpec {
    /// Each object has one label; the last of them is that of no object.
    OneOrNone,
    /// Each label of each object stands for itself.
    Each {
        /// How many of the likeliest are looked at.
        top: usize,
    },
}

/// A model that finds objects by looking at points of maps of several sizes (<https://arxiv.org/abs/2010.04159>).
#[derive(Clone, Debug, PartialEq)]
pub struct DeformableSpec {
    /// What sees the image.
    pub backbone: BackboneSpec,
    /// The stages whose maps are used; further maps are made of the last.
    pub stages: Vec<usize>,
    /// How many maps there are.
    pub levels: usize,
    /// Elements of a state.
    pub hidden: usize,
    /// What says where places are.
    pub places: PlaceSpec,
    /// The layers in which places see each other.
    pub encoder: FinderSpec,
    /// The layers in which objects see each other and the places.
    pub decoder: FinderSpec,
    /// The norm within layers.
    pub norm: NormSpec,
    /// How many objects are looked for.
    pub queries: usize,
    /// Labels and boxes, where they are wanted.
    pub head: Option<DeformableHead>,
}

/// What is said of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeformableHead {
    /// How many labels.
    pub labels: usize,
    /// What becomes of their logits.
    pub scores: ScoresSpec,
    /// Where objects are looked for.
    pub begin: DeformableBegin,
}

/// Where objects are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeformableBegin {
    /// Where each query has learned, in all layers.
    Learned,
    /// The same, and each layer then moves the box.
    Refined,
    /// At places that look like objects, and each layer then moves the box.
    Proposed,
}
