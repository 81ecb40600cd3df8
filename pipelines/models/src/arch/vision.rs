//! Model types of the vision family, one file each, and what their configurations share.

pub mod convnext;
pub mod resnet;
pub mod swin;
pub mod vit;
pub mod vit_msn;

use crate::ModelError;
use crate::arch::decoder;
use crate::arch::{HeadKind, ImageHead, labels, no_such_head};
use crate::config::{Config, ConfigError};
use crate::spec::vision::{BackboneSpec, PoolSpec, StatesShape, VisionHead, VisionSpec};
use crate::spec::{AttentionSpec, BiasSpec, EmbedSpec, LayerSpec, NormSpec, Spec, StackSpec};

/// A model of images, with a head of that kind.
struct Heads {
    /// What the one state of an image is made of, and how states are answered.
    states: (Option<PoolSpec>, StatesShape),
    /// What logits of labels are made of.
    labels: PoolSpec,
    /// Pixels along a side of what one state becomes.
    side: Option<usize>,
    /// The norm of each stage's map, and how many stages there are.
    stages: Option<(Option<NormSpec>, usize)>,
}

impl Heads {
    fn model(self, config: &Config, kind: HeadKind, backbone: BackboneSpec) -> Result<Spec, ModelError> {
        let ((pool, shape), channels) = (self.states, config.optional_size("num_channels")?.unwrap_or(3));
        let head = match (kind, self.side, self.stages) {
            (HeadKind::States, ..) => VisionHead::States { shape, pool },
            (HeadKind::Image(ImageHead::Unpooled), ..) => VisionHead::States { shape, pool: None },
            (HeadKind::Image(ImageHead::Labels), ..) => {
                VisionHead::Labels { pool: self.labels, labels: labels(config)? }
            }
            (HeadKind::Image(ImageHead::Pixels), Some(side), _) => VisionHead::Pixels { side, channels },
            (HeadKind::Image(ImageHead::Maps), _, Some((norm, count))) => {
                VisionHead::Maps { stages: stages(config, count)?, norm }
            }
            _ => return Err(no_such_head(kind)),
        };
        Ok(Spec::Vision(Box::new(VisionSpec { backbone, head, part: None })))
    }
}

/// The stages whose maps are wanted, of `count` after the first states; the last where none is named
/// (`backbone_utils.py`).
pub(super) fn stages(config: &Config, count: usize) -> Result<Vec<usize>, ConfigError> {
    if let Some(places) = config.optional_integers("out_indices")? {
        let place = |&place: &i64| usize::try_from(if place < 0 { place + count as i64 + 1 } else { place }).ok();
        let mut places = places.iter().map(|at| place(at).filter(|&at| at <= count)).collect::<Option<Vec<_>>>();
        if let Some(places) = &mut places {
            places.sort_unstable();
        }
        return places.ok_or_else(|| config.wrong("out_indices", format!("numbers of at most {count}")));
    }
    let names = config.texts("out_features")?;
    if names.is_empty() {
        return Ok(vec![count]);
    }
    let is = |stage: usize| {
        names.iter().any(|name| *name == if stage == 0 { "stem".into() } else { format!("stage{stage}") })
    };
    Ok((0..=count).filter(|&stage| is(stage)).collect())
}

/// A stack whose tokens are patches: all see each other, and nothing but their embeddings says where they are.
pub(super) fn patch_stack(hidden: usize, layers: usize, layer: LayerSpec, final_norm: Option<NormSpec>) -> StackSpec {
    StackSpec {
        hidden,
        embed: EmbedSpec::none(hidden),
        causal: false,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        layers: vec![layer; layers],
        final_norm,
    }
}

/// How many layers, where the configuration may leave it out.
pub(super) fn layers(config: &Config, key: &str, default: usize) -> Result<usize, ConfigError> {
    if config.has(key) { decoder::layers(config, key) } else { Ok(default) }
}

/// Attention with biases everywhere but perhaps at queries, keys and values; of `heads` where the configuration says
/// nothing.
pub(super) fn attention(
    config: &Config,
    hidden: usize,
    heads: usize,
    qkv_bias: bool,
) -> Result<AttentionSpec, ConfigError> {
    let heads = config.optional_size("num_attention_heads")?.unwrap_or(heads);
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong("num_attention_heads", format!("a divisor of {hidden}")));
    }
    Ok(AttentionSpec { qkv_bias, out_bias: true, ..AttentionSpec::plain(heads, heads, hidden / heads) })
}
