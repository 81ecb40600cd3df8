//! `ViT` as masked Siamese networks train it (`transformers/models/vit_msn`; <https://arxiv.org/abs/2204.07141>).

use super::{Heads, vit};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead};
use crate::config::Config;
use crate::spec::Spec;
use crate::spec::vision::{BackboneSpec, PoolOf, PoolSpec, StatesShape};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace { model_type: "vit_msn", classes: CLASSES, spec, stack: vit::STACK, heads: vit::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "ViTMSNModel", head: HeadKind::States, base: "" },
    Class { name: "ViTMSNForImageClassification", head: HeadKind::Image(ImageHead::Labels), base: "vit." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let heads = Heads {
        states: (None, StatesShape::Sequence),
        labels: PoolSpec::plain(PoolOf::First),
        side: None,
        stages: None,
    };
    heads.model(config, kind, BackboneSpec::Patches(vit::patches(config, 1e-6, false)?))
}
