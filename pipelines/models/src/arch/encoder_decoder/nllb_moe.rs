//! NLLB-MoE (`transformers/models/nllb_moe`; <https://arxiv.org/abs/2207.04672>): BART with its norms first, positions as
//! waves that leave padding out, and two experts of many for each token of some layers.

use super::bart;
use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::encoder_decoder::EncoderDecoderHead;
use crate::spec::{FfnSpec, MlpSpec, MoeSpec, PositionSpec, RouterScores, RouterSpec, SinusoidLayout, Spec, StackSpec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace { model_type: "nllb-moe", classes: CLASSES, spec, stack: STACK, heads: bart::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "NllbMoeForConditionalGeneration", head: HeadKind::NextToken, base: "model." },
    Class { name: "NllbMoeModel", head: HeadKind::States, base: "" },
];

const STACK: &[Rule] = &[
    Rule::new("encoder.embed", "shared"),
    Rule::new("encoder.embed", "encoder.embed_tokens"),
    Rule::new("encoder.layers.{}.attn_norm", "encoder.layers.{}.self_attn_layer_norm"),
    Rule::new("encoder.layers.{}.attn.q", "encoder.layers.{}.self_attn.q_proj"),
    Rule::new("encoder.layers.{}.attn.k", "encoder.layers.{}.self_attn.k_proj"),
    Rule::new("encoder.layers.{}.attn.v", "encoder.layers.{}.self_attn.v_proj"),
    Rule::new("encoder.layers.{}.attn.out", "encoder.layers.{}.self_attn.out_proj"),
    Rule::new("encoder.layers.{}.mlp_norm", "encoder.layers.{}.ff_layer_norm"),
    Rule::new("encoder.layers.{}.mlp.up", "encoder.layers.{}.ffn.fc1"),
    Rule::new("encoder.layers.{}.mlp.down", "encoder.layers.{}.ffn.fc2"),
    Rule::new("encoder.layers.{}.moe.router", "encoder.layers.{}.ffn.router.classifier"),
    Rule::new("encoder.layers.{}.moe.experts.{}.up", "encoder.layers.{}.ffn.experts.expert_{}.fc1"),
    Rule::new("encoder.layers.{}.moe.experts.{}.down", "encoder.layers.{}.ffn.experts.expert_{}.fc2"),
    Rule::new("encoder.final_norm", "encoder.layer_norm"),
    Rule::new("decoder.layers.{}.attn_norm", "decoder.layers.{}.self_attn_layer_norm"),
    Rule::new("decoder.layers.{}.attn.q", "decoder.layers.{}.self_attn.q_proj"),
    Rule::new("decoder.layers.{}.attn.k", "decoder.layers.{}.self_attn.k_proj"),
    Rule::new("decoder.layers.{}.attn.v", "decoder.layers.{}.self_attn.v_proj"),
    Rule::new("decoder.layers.{}.attn.out", "decoder.layers.{}.self_attn.out_proj"),
    Rule::new("decoder.layers.{}.cross_norm", "decoder.layers.{}.cross_attention_layer_norm"),
    Rule::new("decoder.layers.{}.cross.q", "decoder.layers.{}.cross_attention.q_proj"),
    Rule::new("decoder.layers.{}.cross.k", "decoder.layers.{}.cross_attention.k_proj"),
    Rule::new("decoder.layers.{}.cross.v", "decoder.layers.{}.cross_attention.v_proj"),
    Rule::new("decoder.layers.{}.cross.out", "decoder.layers.{}.cross_attention.out_proj"),
    Rule::new("decoder.layers.{}.mlp_norm", "decoder.layers.{}.ff_layer_norm"),
    Rule::new("decoder.layers.{}.mlp.up", "decoder.layers.{}.ffn.fc1"),
    Rule::new("decoder.layers.{}.mlp.down", "decoder.layers.{}.ffn.fc2"),
    Rule::new("decoder.layers.{}.moe.router", "decoder.layers.{}.ffn.router.classifier"),
    Rule::new("decoder.layers.{}.moe.experts.{}.up", "decoder.layers.{}.ffn.experts.expert_{}.fc1"),
    Rule::new("decoder.layers.{}.moe.experts.{}.down", "decoder.layers.{}.ffn.experts.expert_{}.fc2"),
    Rule::new("decoder.final_norm", "decoder.layer_norm"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let layout = bart::Layout {
        norms_first: true,
        embed_norm: false,
        context: 1024,
        // Which positions count follows below.
        positions: |_| PositionSpec::None,
    };
    if config.size("d_model")? < 4 {
        return Err(config.wrong("d_model", "4 or more, for waves of positions").into());
    }
    let router = router(config)?;
    let mut spec = bart::like_bart(config, kind, &layout)?;
    if let Spec::EncoderDecoder(spec) = &mut spec {
        with_experts(config, &mut spec.encoder, ["encoder_ffn_dim", "encoder_sparse_step"], &router)?;
        if let Some(decoder) = &mut spec.decoder {
            with_experts(config, decoder, ["decoder_ffn_dim", "decoder_sparse_step"], &router)?;
        }
        if let EncoderDecoderHead::NextToken { row, .. } = &mut spec.head {
            *row = false;
        }
        spec.start = spec.start.or(Some(2));
        spec.padding = Some(padding(config)?);
    }
    Ok(spec)
}

/// The id of padding, which settles where positions begin.
fn padding(config: &Config) -> Result<i64, ModelError> {
    let padding = config.optional_integer("pad_token_id")?.unwrap_or(1);
    if (0..1 << 31).contains(&padding) {
        Ok(padding)
    } else {
        Err(config.wrong("pad_token_id", "the id of a token").into())
    }
}

/// A stack of BART's with this type's positions, and with experts in one of so many layers.
fn with_experts(
    config: &Config,
    stack: &mut StackSpec,
    [inner, step]: [&'static str; 2],
    router: &RouterSpec,
) -> Result<(), ModelError> {
    let mlp = MlpSpec::plain(config.size(inner)?, activation(config, "activation_function", "relu")?);
    let moe = MoeSpec { experts: experts(config)?, expert: mlp.clone(), router: router.clone(), shared: None };
    // Where it is nought or less no layer has experts.
    let step = usize::try_from(config.optional_integer(step)?.unwrap_or(4)).unwrap_or(0);
    for (number, layer) in stack.layers.iter_mut().enumerate() {
        let sparse = step > 0 && (number + 1).is_multiple_of(step);
        layer.ffn = if sparse { FfnSpec::Experts(Box::new(moe.clone())) } else { FfnSpec::Dense(mlp.clone()) };
    }
    let padding = padding(config)?;
    stack.embed.positions =
        PositionSpec::Sinusoids { first: padding as usize + 1, padding: Some(padding), layout: SinusoidLayout::Halves };
    if config.truth_or("scale_embedding", true)? {
        stack.embed.scale = (stack.hidden as f64).sqrt() as f32;
    }
    Ok(())
}

fn experts(config: &Config) -> Result<usize, ModelError> {
    let experts = config.optional_size("num_experts")?.unwrap_or(128);
    if experts < 2 { Err(config.wrong("num_experts", "2 or more").into()) } else { Ok(experts) }
}

/// How the two experts of a token are chosen. Which tokens come first to an expert that is full, and whether weights are
/// made to sum to 1 before or after, shows only where one can be full.
fn router(config: &Config) -> Result<RouterSpec, ModelError> {
    let text = |key, default: &str| Ok::<_, ModelError>(config.optional_text(key)?.unwrap_or_else(|| default.into()));
    let dtype = text("router_dtype", "float32")?;
    if dtype != "float32" {
        return Err(unsupported(&config.path("router_dtype"), dtype, vec!["float32"]));
    }
    // Others choose at random.
    let policy = text("second_expert_policy", "all")?;
    if policy != "all" {
        return Err(unsupported(&config.path("second_expert_policy"), policy, vec!["all"]));
    }
    // An expert takes so many of all tokens that are read together, of other sequences too: below 1 what becomes of a
    // sequence would depend on those beside it.
    let capacity = config.optional_number("moe_eval_capacity_token_fraction")?.unwrap_or(1.0);
    if capacity < 1.0 {
        let what = config.path("moe_eval_capacity_token_fraction");
        return Err(unsupported(&what, capacity.to_string(), vec!["1.0 or more"]));
    }
    let dropped = config.optional_number("moe_token_dropout")?.unwrap_or(0.2);
    if !(0.0..=1.0).contains(&dropped) {
        return Err(config.wrong("moe_token_dropout", "a number from 0 to 1").into());
    }
    Ok(RouterSpec {
        scale: (1.0 - dropped) as f32,
        bias: config.truth_or("router_bias", false)?,
        skips_padding: !config.truth_or("router_ignore_padding_tokens", false)?,
        ..RouterSpec::plain(2, RouterScores::SoftmaxOfChosen)
    })
}
