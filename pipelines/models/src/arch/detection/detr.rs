//! DETR (`transformers/models/detr`; <https://arxiv.org/abs/2005.12872>).

use super::{BACKBONE, attention, backbone, places};
use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::vision::layers;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead, labels, no_such_head};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::detection::{DetectionHead, DetectionSpec, FinderSpec, LooksSpec, ScoresSpec};
use crate::spec::{MlpSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace { model_type: "detr", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "DetrForObjectDetection", head: HeadKind::Image(ImageHead::Objects), base: "model." },
    Class { name: "DetrModel", head: HeadKind::States, base: "" },
    Class { name: "DetrForSegmentation", head: HeadKind::Image(ImageHead::Masks), base: "detr.model." },
];

/// The names of Hugging Face's checkpoints.
pub(super) const STACK: &[Rule] = &joined::<{ FINDER.len() + BACKBONE.len() }>(FINDER, BACKBONE);

const FINDER: &[Rule] = &[
    Rule::new("places.rows", "backbone.position_embedding.row_embeddings"),
    Rule::new("places.columns", "backbone.position_embedding.column_embeddings"),
    Rule::new("projection", "input_projection"),
    Rule::new("queries", "query_position_embeddings"),
    Rule::new("encoder.{}.attn.q", "encoder.layers.{}.self_attn.q_proj"),
    Rule::new("encoder.{}.attn.k", "encoder.layers.{}.self_attn.k_proj"),
    Rule::new("encoder.{}.attn.v", "encoder.layers.{}.self_attn.v_proj"),
    Rule::new("encoder.{}.attn.out", "encoder.layers.{}.self_attn.out_proj"),
    Rule::new("encoder.{}.attn_norm", "encoder.layers.{}.self_attn_layer_norm"),
    Rule::new("encoder.{}.mlp.up", "encoder.layers.{}.fc1"),
    Rule::new("encoder.{}.mlp.down", "encoder.layers.{}.fc2"),
    Rule::new("encoder.{}.mlp_norm", "encoder.layers.{}.final_layer_norm"),
    Rule::new("decoder.{}.attn.q", "decoder.layers.{}.self_attn.q_proj"),
    Rule::new("decoder.{}.attn.k", "decoder.layers.{}.self_attn.k_proj"),
    Rule::new("decoder.{}.attn.v", "decoder.layers.{}.self_attn.v_proj"),
    Rule::new("decoder.{}.attn.out", "decoder.layers.{}.self_attn.out_proj"),
    Rule::new("decoder.{}.attn_norm", "decoder.layers.{}.self_attn_layer_norm"),
    Rule::new("decoder.{}.cross.q", "decoder.layers.{}.encoder_attn.q_proj"),
    Rule::new("decoder.{}.cross.k", "decoder.layers.{}.encoder_attn.k_proj"),
    Rule::new("decoder.{}.cross.v", "decoder.layers.{}.encoder_attn.v_proj"),
    Rule::new("decoder.{}.cross.out", "decoder.layers.{}.encoder_attn.out_proj"),
    Rule::new("decoder.{}.cross_norm", "decoder.layers.{}.encoder_attn_layer_norm"),
    Rule::new("decoder.{}.mlp.up", "decoder.layers.{}.fc1"),
    Rule::new("decoder.{}.mlp.down", "decoder.layers.{}.fc2"),
    Rule::new("decoder.{}.mlp_norm", "decoder.layers.{}.final_layer_norm"),
    Rule::new("final_norm", "decoder.layernorm"),
];

const HEADS: &[Rule] = &[
    Rule::new("objects.labels", "class_labels_classifier"),
    Rule::new("objects.boxes.{}", "bbox_predictor.layers.{}"),
    Rule::new("masked_objects.labels", "detr.class_labels_classifier"),
    Rule::new("masked_objects.boxes.{}", "detr.bbox_predictor.layers.{}"),
    Rule::new("masks.q", "bbox_attention.q_linear"),
    Rule::new("masks.k", "bbox_attention.k_linear"),
    Rule::new("masks.draws.0", "mask_head.lay1"),
    Rule::new("masks.norms.0", "mask_head.gn1"),
    Rule::new("masks.draws.1", "mask_head.lay2"),
    Rule::new("masks.norms.1", "mask_head.gn2"),
    Rule::new("masks.draws.2", "mask_head.lay3"),
    Rule::new("masks.norms.2", "mask_head.gn3"),
    Rule::new("masks.draws.3", "mask_head.lay4"),
    Rule::new("masks.norms.3", "mask_head.gn4"),
    Rule::new("masks.draws.4", "mask_head.lay5"),
    Rule::new("masks.norms.4", "mask_head.gn5"),
    Rule::new("masks.adapters.0", "mask_head.adapter1"),
    Rule::new("masks.adapters.1", "mask_head.adapter2"),
    Rule::new("masks.adapters.2", "mask_head.adapter3"),
    Rule::new("masks.out", "mask_head.out_lay"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let (backbone, stages) = backbone(config, &[1, 2, 3, 4])?;
    let hidden = config.optional_size("d_model")?.unwrap_or(256);
    let act = activation(config, "activation_function", "relu")?;
    let finder = |part: &str| -> Result<FinderSpec, ModelError> {
        let key = |rest: &str| format!("{part}_{rest}");
        let inner = config.optional_size(&key("ffn_dim"))?.unwrap_or(2048);
        Ok(FinderSpec {
            layers: layers(config, &key("layers"), 6)?,
            attention: attention(config, &key("attention_heads"), hidden)?,
            looks: LooksSpec::Everywhere,
            mlp: MlpSpec::plain(inner, act),
        })
    };
    // One label more than there are stands for no object.
    let head = match kind {
        HeadKind::States => DetectionHead::States,
        HeadKind::Image(ImageHead::Objects) => {
            DetectionHead::Objects { labels: labels(config)? + 1, scores: ScoresSpec::OneOrNone }
        }
        HeadKind::Image(ImageHead::Masks) => DetectionHead::Masks { labels: labels(config)? + 1 },
        _ => return Err(no_such_head(kind)),
    };
    Ok(Spec::Detection(Box::new(DetectionSpec {
        backbone,
        stages,
        hidden,
        places: places(config, 0.0)?,
        encoder: finder("encoder")?,
        decoder: finder("decoder")?,
        queries: config.optional_size("num_queries")?.unwrap_or(100),
        norm: NormSpec::layer(1e-5),
        // What each layer would be trained by is what the next one sees in the reference.
        normed_between: config.truth_or("auxiliary_loss", false)?,
        head,
    })))
}
