//! Qwen2-VL (`transformers/models/qwen2_vl`; <https://arxiv.org/abs/2409.12191>).

use crate::ModelError;
use crate::arch::decoder::llama::{self, LAYOUT, Layout};
use crate::arch::decoder::{activation, layers, qwen2, sequential};
use crate::arch::vision::patch_stack;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, rope, unsupported};
use crate::config::Config;
use crate::rules::{Rule, Rules};
use crate::spec::multimodal::{ConnectorSpec, GridSpec, ImagesSpec, MultimodalSpec};
use crate::spec::{
    Activation, AttentionSpec, DecoderSpec, MlpSpec, NormSpec, PartSpec, QkvLayout, RopeAxes, RopeScaling, RopeSpec,
    RopeStyle, Spec, StackSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Multimodal,
    hugging_face: HuggingFace { model_type: "qwen2_vl", classes: CLASSES, spec, stack: STACK, heads: &[] },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Qwen2VLForConditionalGeneration", head: HeadKind::NextToken, base: "" },
    Class { name: "Qwen2VLModel", head: HeadKind::States, base: "" },
];

/// Checkpoints have had two layouts.
const STACK: &[Rule] = &[
    Rule::new("connector.norm", "visual.merger.ln_q"),
    Rule::new("connector.up", "visual.merger.mlp.0"),
    Rule::new("connector.down", "visual.merger.mlp.2"),
    Rule::new("connector.norm", "model.visual.merger.ln_q"),
    Rule::new("connector.up", "model.visual.merger.mlp.0"),
    Rule::new("connector.down", "model.visual.merger.mlp.2"),
];

const VISUAL: &[Rule] = &[
    Rule::new("patches", "patch_embed.proj"),
    Rule::new("layers.{}.attn_norm", "blocks.{}.norm1"),
    Rule::new("layers.{}.attn.qkv", "blocks.{}.attn.qkv"),
    Rule::new("layers.{}.attn.out", "blocks.{}.attn.proj"),
    Rule::new("layers.{}.mlp_norm", "blocks.{}.norm2"),
    Rule::new("layers.{}.mlp.up", "blocks.{}.mlp.fc1"),
    Rule::new("layers.{}.mlp.down", "blocks.{}.mlp.fc2"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    // Older configurations have the text's keys beside the images' section.
    let text = config.section("text_config")?;
    let decoder = self::text(text.as_ref().unwrap_or(config), kind)?;
    let image = config.section("vision_config")?.unwrap_or_default();
    let grid = self::image(&image)?;
    if image.optional_size("hidden_size")?.is_some_and(|size| size != decoder.stack.hidden) {
        return Err(image.wrong("hidden_size", format!("the {} elements of the text's", decoder.stack.hidden)).into());
    }
    let (width, merged) = (grid.stack.hidden, grid.merged * grid.merged);
    let connector = ConnectorSpec {
        width,
        norm: Some(NormSpec::layer(1e-6)),
        merged,
        inner: merged * width,
        activation: Activation::Gelu,
        bias: true,
    };
    let rules = |bases: &[&'static str], stack, heads| {
        bases.iter().map(|base| Rules { prefix: "", base, stack, heads }).collect::<Vec<_>>()
    };
    let token = |key, default| Ok::<_, ModelError>(config.optional_integer(key)?.unwrap_or(default));
    Ok(Spec::Multimodal(Box::new(MultimodalSpec {
        decoder: PartSpec {
            spec: decoder,
            rules: rules(&["model.language_model.", "language_model.", "model."], llama::STACK, llama::HEADS),
        },
        images: ImagesSpec::Grid(PartSpec { spec: grid, rules: rules(&["model.visual.", "visual."], VISUAL, &[]) }),
        connector,
        image: token("image_token_id", 151_655)?,
        video: Some(token("video_token_id", 151_656)?),
        start: Some(token("vision_start_token_id", 151_652)?),
    })))
}

fn text(config: &Config, kind: HeadKind) -> Result<DecoderSpec, ModelError> {
    let windows = qwen2::windows(config, 80)?;
    let change = |number: usize, attention: &mut AttentionSpec, _: &mut MlpSpec| {
        (attention.qkv_bias, attention.window) = (true, windows.get(number).copied().flatten());
        Ok(())
    };
    let layout = Layout { context: 32_768, ..LAYOUT };
    let Spec::Decoder(mut decoder) = llama::like_llama(config, kind, layout, change)? else {
        return Err(unsupported(&config.path("model_type"), "another".into(), vec!["decoders of text"]));
    };
    for rope in &mut decoder.stack.ropes {
        if matches!(rope.scaling, RopeScaling::Dynamic { .. } | RopeScaling::Long { .. }) {
            let found = "one that depends on a length".into();
            return Err(unsupported(&config.path("rope_scaling"), found, vec!["default, linear, yarn, llama3"]));
        }
        rope.axes = rope::axes(config, rope.rotated)?;
    }
    Ok(*decoder)
}

fn image(config: &Config) -> Result<GridSpec, ModelError> {
    let size = |key, default| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    let hidden = size("embed_dim", 1280)?;
    let heads = size("num_heads", 16)?;
    if !hidden.is_multiple_of(4 * heads) {
        return Err(config.wrong("num_heads", format!("a divisor of {hidden} / 4")).into());
    }
    let ratio = config.optional_number("mlp_ratio")?.unwrap_or(4.0);
    let inner = (hidden as f64 * ratio) as usize;
    if !(1..=1 << 31).contains(&inner) {
        return Err(config.wrong("mlp_ratio", "a number that makes a positive size").into());
    }
    let head = hidden / heads;
    let attention = AttentionSpec {
        layout: QkvLayout::Joined,
        rope: Some(0),
        ..AttentionSpec::plain(heads, heads, head).with_biases()
    };
    let mlp = MlpSpec::plain(inner, activation(config, "hidden_act", "quick_gelu")?);
    let depth = if config.has("depth") { layers(config, "depth")? } else { 32 };
    let rope = RopeSpec {
        base: 10_000.0,
        rotated: head,
        style: RopeStyle::Halves,
        scaling: RopeScaling::None,
        axes: RopeAxes::Each(2),
    };
    let stack = patch_stack(hidden, depth, sequential(NormSpec::layer(1e-6), attention, mlp), None);
    let side = size("patch_size", 14)?;
    Ok(GridSpec {
        patch: [size("in_channels", 3)?, size("temporal_patch_size", 2)?, side, side],
        merged: size("spatial_merge_size", 2)?,
        stack: StackSpec { ropes: vec![rope], ..stack },
    })
}
