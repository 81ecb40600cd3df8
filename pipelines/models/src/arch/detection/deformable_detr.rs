//! Deformable DETR (`transformers/models/deformable_detr`; <https://arxiv.org/abs/2010.04159>).

use super::{attention, backbone, detr, places};
use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::vision::layers;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead, labels, no_such_head, unsupported};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::detection::{DeformableBegin, DeformableHead, DeformableSpec, FinderSpec, LooksSpec, ScoresSpec};
use crate::spec::{MlpSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace { model_type: "deformable_detr", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "DeformableDetrForObjectDetection", head: HeadKind::Image(ImageHead::Objects), base: "model." },
    Class { name: "DeformableDetrModel", head: HeadKind::States, base: "" },
];

const STACK: &[Rule] = &joined::<{ POINTS.len() + detr::STACK.len() }>(POINTS, detr::STACK);

const POINTS: &[Rule] = &[
    Rule::new("projections.{}.conv", "input_proj.{}.0"),
    Rule::new("projections.{}.norm", "input_proj.{}.1"),
    Rule::new("levels", "level_embed"),
    Rule::new("points", "reference_points"),
    Rule::new("encoder.{}.attn.offsets", "encoder.layers.{}.self_attn.sampling_offsets"),
    Rule::new("encoder.{}.attn.weights", "encoder.layers.{}.self_attn.attention_weights"),
    Rule::new("encoder.{}.attn.v", "encoder.layers.{}.self_attn.value_proj"),
    Rule::new("encoder.{}.attn.out", "encoder.layers.{}.self_attn.output_proj"),
    Rule::new("decoder.{}.cross.offsets", "decoder.layers.{}.encoder_attn.sampling_offsets"),
    Rule::new("decoder.{}.cross.weights", "decoder.layers.{}.encoder_attn.attention_weights"),
    Rule::new("decoder.{}.cross.v", "decoder.layers.{}.encoder_attn.value_proj"),
    Rule::new("decoder.{}.cross.out", "decoder.layers.{}.encoder_attn.output_proj"),
    Rule::new("proposals.state", "enc_output"),
    Rule::new("proposals.state_norm", "enc_output_norm"),
    Rule::new("proposals.place", "pos_trans"),
    Rule::new("proposals.place_norm", "pos_trans_norm"),
];

// Heads that layers use too are stored as either's.
const HEADS: &[Rule] = &[
    Rule::new("objects.{}.labels", "class_embed.{}"),
    Rule::new("objects.{}.labels", "model.decoder.class_embed.{}"),
    Rule::new("objects.{}.boxes.{}", "bbox_embed.{}.layers.{}"),
    Rule::new("objects.{}.boxes.{}", "model.decoder.bbox_embed.{}.layers.{}"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let levels = config.optional_size("num_feature_levels")?.unwrap_or(4);
    let (backbone, stages) = backbone(config, if levels > 1 { &[2, 3, 4] } else { &[4] })?;
    if levels > LEVELS_MAX || stages.len() > levels {
        let expected = format!("{} to {LEVELS_MAX}", stages.len());
        return Err(config.wrong("num_feature_levels", expected).into());
    }
    let hidden = config.optional_size("d_model")?.unwrap_or(256);
    let act = activation(config, "activation_function", "relu")?;
    let finder = |part: &str| -> Result<FinderSpec, ModelError> {
        let key = |rest: &str| format!("{part}_{rest}");
        Ok(FinderSpec {
            layers: layers(config, &key("layers"), 6)?,
            attention: attention(config, &key("attention_heads"), hidden)?,
            looks: LooksSpec::AtPoints { levels, points: config.optional_size(&key("n_points"))?.unwrap_or(4) },
            mlp: MlpSpec::plain(config.optional_size(&key("ffn_dim"))?.unwrap_or(1024), act),
        })
    };
    let (proposed, refined) = (config.truth_or("two_stage", false)?, config.truth_or("with_box_refine", false)?);
    let begin = match (proposed, refined) {
        (true, true) => DeformableBegin::Proposed,
        (true, false) => return Err(config.wrong("with_box_refine", "true where two_stage is").into()),
        (false, true) => DeformableBegin::Refined,
        (false, false) => DeformableBegin::Learned,
    };
    let head = match kind {
        HeadKind::Image(ImageHead::Objects) => {
            Some(DeformableHead { labels: labels(config)?, scores: ScoresSpec::Each { top: 100 }, begin })
        }
        // Proposals are made by the heads, which this class has not.
        HeadKind::States if proposed => {
            let supported = vec!["DeformableDetrForObjectDetection"];
            return Err(unsupported("with two_stage, the class", "DeformableDetrModel".into(), supported));
        }
        HeadKind::States => None,
        _ => return Err(no_such_head(kind)),
    };
    let queries = if proposed { "two_stage_num_proposals" } else { "num_queries" };
    Ok(Spec::Deformable(Box::new(DeformableSpec {
        backbone,
        stages,
        levels,
        hidden,
        places: places(config, -0.5)?,
        encoder: finder("encoder")?,
        decoder: finder("decoder")?,
        norm: NormSpec::layer(1e-5),
        queries: config.optional_size(queries)?.unwrap_or(300),
        head,
    })))
}

/// Maps of several sizes: more would be smaller than a pixel.
const LEVELS_MAX: usize = 32;
