//! LLaVA (`transformers/models/llava`; <https://arxiv.org/abs/2310.03744>): a decoder and a model of images of other
//! types.

use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported, within};
use crate::config::{Config, ConfigError};
use crate::rules::{Rule, Rules};
use crate::spec::multimodal::{ConnectorSpec, ImagesSpec, MultimodalSpec};
use crate::spec::vision::BackboneSpec;
use crate::spec::{HeadSpec, LogitsSpec, PartSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Multimodal,
    hugging_face: HuggingFace { model_type: "llava", classes: CLASSES, spec, stack: STACK, heads: &[] },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "LlavaForConditionalGeneration", head: HeadKind::NextToken, base: "" },
    Class { name: "LlavaModel", head: HeadKind::States, base: "" },
];

/// Checkpoints have had two layouts, and their parts two names.
const STACK: &[Rule] = &[
    Rule::new("connector.up", "multi_modal_projector.linear_1"),
    Rule::new("connector.down", "multi_modal_projector.linear_2"),
    Rule::new("connector.up", "model.multi_modal_projector.linear_1"),
    Rule::new("connector.down", "model.multi_modal_projector.linear_2"),
];

const HEADS: &[Rule] =
    &[Rule::new("head.next_token", "lm_head"), Rule::new("head.next_token", "language_model.lm_head")];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let text = config.section("text_config")?.unwrap_or_default();
    let image = config.section("vision_config")?.unwrap_or_default();
    let (Spec::Decoder(mut decoder), of_text) = within(&text, "llama", kind)? else {
        return Err(unsupported(&text.path("model_type"), "another".into(), vec!["decoders of text"]));
    };
    if let HeadSpec::NextToken(logits) = decoder.head {
        // The head is this type's own.
        decoder.head = HeadSpec::NextToken(LogitsSpec::plain(logits.tied));
    }
    let (tower, of_image) = within(&image, "clip_vision_model", HeadKind::States)?;
    let (tower, part) = backbone(tower, &image)?;
    let BackboneSpec::Patches(patches) = &tower else {
        return Err(unsupported(&image.path("model_type"), "another".into(), vec!["models of patches"]));
    };
    let layers = layers(config, patches.stack.layers.len())?;
    let strategy = config.optional_text("vision_feature_select_strategy")?.unwrap_or_else(|| "default".into());
    let skipped = match strategy.as_str() {
        "default" => 1,
        "full" => 0,
        _ => {
            return Err(unsupported(&config.path("vision_feature_select_strategy"), strategy, vec!["default", "full"]));
        }
    };
    let connector = ConnectorSpec {
        width: layers.len() * tower.width(),
        norm: None,
        merged: 1,
        inner: decoder.stack.hidden,
        activation: activation(config, "projector_hidden_act", "gelu")?,
        bias: config.truth_or("multimodal_projector_bias", true)?,
    };
    let rules = |bases: &[&'static str], stack, heads| {
        bases.iter().map(|base| Rules { prefix: "", base, stack, heads }).collect::<Vec<_>>()
    };
    Ok(Spec::Multimodal(Box::new(MultimodalSpec {
        decoder: PartSpec {
            spec: *decoder,
            rules: rules(&["model.language_model.", "language_model.model.", "language_model."], of_text.stack, HEADS),
        },
        images: ImagesSpec::Tower {
            tower: PartSpec {
                spec: tower,
                rules: rules(&["model.vision_tower.", "vision_tower."], of_image.stack, &[]),
            },
            part,
            layers,
            skipped,
        },
        connector,
        image: config.optional_integer("image_token_index")?.unwrap_or(32_000),
        video: None,
        start: None,
    })))
}

/// The backbone of a model of images, and the part of its names that it is.
fn backbone(spec: Spec, config: &Config) -> Result<(BackboneSpec, Option<&'static str>), ModelError> {
    let image = match spec {
        Spec::Vision(spec) => return Ok((spec.backbone, spec.part)),
        Spec::DualEncoder(spec) => spec.image.map(|image| (image.backbone, Some("image"))),
        _ => None,
    };
    image.ok_or_else(|| unsupported(&config.path("model_type"), "another".into(), vec!["models of images"]))
}

/// The layers whose states are joined, of `depth`: counted from the end where negative.
fn layers(config: &Config, depth: usize) -> Result<Vec<usize>, ConfigError> {
    const KEY: &str = "vision_feature_layer";
    let wanted = if config.is_list(KEY) {
        config.optional_integers(KEY)?.unwrap_or_default()
    } else {
        vec![config.optional_integer(KEY)?.unwrap_or(-2)]
    };
    let layer = |&layer: &i64| {
        let from_end = layer.saturating_add(depth as i64 + 1);
        usize::try_from(if layer < 0 { from_end } else { layer }).ok().filter(|&layer| layer <= depth)
    };
    let found = wanted.iter().map(layer).collect::<Option<Vec<_>>>().filter(|layers| !layers.is_empty());
    found.ok_or_else(|| config.wrong(KEY, format!("one or more of the {depth} layers")))
}
