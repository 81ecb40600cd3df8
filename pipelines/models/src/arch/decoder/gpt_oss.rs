//! GPT-OSS (`transformers/models/gpt_oss`; <https://arxiv.org/abs/2508.10925>): experts with a bounded gate, and attention
//! with a sink for each head that sees near tokens only in every other layer.

use super::llama::{self, LAYOUT, Layout};
use super::{layers, sliding, with_experts};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::rules::Rule;
use crate::rules::stacked::{Form, Part};
use crate::spec::{Activation, MlpSpec, MoeSpec, RouterScores, RouterSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace { model_type: "gpt_oss", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "GptOssForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "GptOssModel", head: HeadKind::States, base: "" },
    Class { name: "GptOssForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "GptOssForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
];

/// Experts lie in floats, or in 4 bits as they were published.
const STACK: &[Rule] = &[
    Rule::new("embed", "embed_tokens"),
    Rule::new("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.o_proj"),
    Rule::new("layers.{}.attn.sinks", "layers.{}.self_attn.sinks"),
    Rule::new("layers.{}.mlp_norm", "layers.{}.post_attention_layernorm"),
    Rule::new("layers.{}.moe.router", "layers.{}.mlp.router"),
    Rule::stacked(GATE, GATE_UP, Form::Transposed, Part::Even),
    Rule::stacked(UP, GATE_UP, Form::Transposed, Part::Odd),
    Rule::stacked(DOWN, "layers.{}.mlp.experts.down_proj", Form::Transposed, Part::Whole),
    Rule::stacked(GATE, GATE_UP_BLOCKS, Form::Mxfp4, Part::Even),
    Rule::stacked(UP, GATE_UP_BLOCKS, Form::Mxfp4, Part::Odd),
    Rule::stacked(DOWN, "layers.{}.mlp.experts.down_proj_blocks", Form::Mxfp4, Part::Whole),
    Rule::stacked("layers.{}.moe.experts.{}.gate.bias", GATE_UP_BIAS, Form::AsIs, Part::Even),
    Rule::stacked("layers.{}.moe.experts.{}.up.bias", GATE_UP_BIAS, Form::AsIs, Part::Odd),
    Rule::stacked(
        "layers.{}.moe.experts.{}.down.bias",
        "layers.{}.mlp.experts.down_proj_bias",
        Form::AsIs,
        Part::Whole,
    ),
    Rule::new("final_norm", "norm"),
];

const GATE: &str = "layers.{}.moe.experts.{}.gate.weight";
const UP: &str = "layers.{}.moe.experts.{}.up.weight";
const DOWN: &str = "layers.{}.moe.experts.{}.down.weight";
const GATE_UP: &str = "layers.{}.mlp.experts.gate_up_proj";
const GATE_UP_BLOCKS: &str = "layers.{}.mlp.experts.gate_up_proj_blocks";
const GATE_UP_BIAS: &str = "layers.{}.mlp.experts.gate_up_proj_bias";

/// What `GptOssExperts` bounds gates with.
const LIMIT: f32 = 7.0;

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    if config.optional_number("swiglu_limit")?.is_some_and(|limit| limit != f64::from(LIMIT)) {
        let found = config.number("swiglu_limit")?.to_string();
        return Err(unsupported(&config.path("swiglu_limit"), found, vec!["7.0"]));
    }
    // Where it is left out, and not null, frequencies are stretched all the same.
    if !config.keys().any(|key| key == "rope_scaling") {
        return Err(config.wrong("rope_scaling", "an object, or null").into());
    }
    let near = sliding(config, layers(config, "num_hidden_layers")?, |number| number % 2 == 0)?;
    let window = if near.contains(&true) { Some(config.size("sliding_window")?) } else { None };
    let bias = config.truth_or("attention_bias", true)?;
    let layout =
        Layout { context: 131_072, head: Some(64), norm_eps: ("rms_norm_eps", 1e-5), rope_base: 150_000.0, ..LAYOUT };
    let spec = llama::like_llama(config, kind, layout, |number, attention, mlp| {
        attention.window = window.filter(|_| near[number]);
        attention.sinks = true;
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        *mlp = MlpSpec { bias: true, limit: Some(LIMIT), ..MlpSpec::gated(mlp.inner, Activation::GeluQuick) };
        Ok(())
    })?;
    let experts = config.optional_size("num_local_experts")?.unwrap_or(128);
    let chosen = config.optional_size("num_experts_per_tok")?.unwrap_or(4);
    if chosen > experts {
        return Err(config.wrong("num_experts_per_tok", format!("at most the {experts} experts")).into());
    }
    Ok(with_experts(spec, |expert| MoeSpec {
        experts,
        expert,
        router: RouterSpec { bias: true, ..RouterSpec::plain(chosen, RouterScores::SoftmaxOfChosen) },
        shared: None,
    }))
}
