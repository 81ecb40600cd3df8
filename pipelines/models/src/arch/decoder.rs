//! Model types of the decoder family, one file each, and what their configurations share.

pub mod arcee;
pub mod bloom;
pub mod deepseek_v2;
pub mod deepseek_v3;
pub mod falcon;
pub mod gemma;
pub mod gemma2;
pub mod gemma3_text;
mod gguf;
pub mod gpt2;
pub mod gpt_neox;
pub mod gpt_oss;
pub mod granite;
pub mod granitemoe;
pub mod granitemoehybrid;
pub mod granitemoeshared;
pub mod helium;
pub mod jamba;
pub mod llama;
pub mod mamba;
pub mod mamba2;
pub mod ministral;
pub mod mistral;
pub mod mixtral;
pub mod olmo2;
pub mod olmoe;
pub mod phi;
pub mod phi3;
pub mod phimoe;
pub mod qwen2;
pub mod qwen2_moe;
pub mod qwen3;
pub mod qwen3_moe;
pub mod rwkv;
pub mod seed_oss;
pub mod smollm3;
pub mod starcoder2;

use super::unsupported;
use crate::ModelError;
use crate::config::{Config, ConfigError};
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, DecoderSpec, EmbedSpec, FfnSpec, HeadSpec, LayerSpec, MixerSpec, MlpSpec,
    MoeSpec, NormSpec, NormsSpec, ResidualSpec, RopeScaling, RopeSpec, Spec, StackSpec, SummarySpec,
};

/// The parts of a decoder.
struct Parts {
    hidden: usize,
    embed: EmbedSpec,
    layers: Vec<LayerSpec>,
    context: usize,
    ropes: Vec<RopeSpec>,
    bias: BiasSpec,
    final_norm: Option<NormSpec>,
}

impl Parts {
    fn decoder(self, head: HeadSpec) -> Spec {
        self.summarising(head, None)
    }

    /// A decoder that answers something else of each sequence too.
    fn summarising(self, head: HeadSpec, summary: Option<SummarySpec>) -> Spec {
        // This scaling alone is told the context before it is stretched.
        let context = match self.ropes.first().map(|rope| rope.scaling.of_frequencies()) {
            Some(RopeScaling::Dynamic { factor, context }) => (factor * context) as usize,
            _ => self.context,
        };
        let stack = StackSpec {
            hidden: self.hidden,
            embed: self.embed,
            causal: true,
            ropes: self.ropes,
            bias: self.bias,
            layers: self.layers,
            final_norm: self.final_norm,
        };
        Spec::Decoder(Box::new(DecoderSpec { stack, head, summary, context }))
    }
}

/// A layer of two parts, each added to what came before, with a norm before each.
pub(super) fn sequential(norm: NormSpec, attention: AttentionSpec, mlp: MlpSpec) -> LayerSpec {
    LayerSpec {
        mixer: MixerSpec::Attention(attention),
        cross: None,
        ffn: FfnSpec::Dense(mlp),
        norms: NormsSpec::before(norm),
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    }
}

/// The same decoder with experts in place of each feed-forward part, which tells what one of them is.
fn with_experts(mut spec: Spec, moe: impl Fn(MlpSpec) -> MoeSpec) -> Spec {
    let layers = match &mut spec {
        Spec::Decoder(decoder) => decoder.stack.layers.as_mut_slice(),
        _ => &mut [],
    };
    for layer in layers {
        if let FfnSpec::Dense(mlp) = &layer.ffn {
            layer.ffn = FfnSpec::Experts(Box::new(moe(mlp.clone())));
        }
    }
    spec
}

/// Layers of one model; the deepest in use have some 130.
const LAYERS_MAX: usize = 1024;

pub(super) fn layers(config: &Config, key: &str) -> Result<usize, ConfigError> {
    let layers = config.size(key)?;
    if layers > LAYERS_MAX { Err(config.wrong(key, format!("at most {LAYERS_MAX}"))) } else { Ok(layers) }
}

/// Which layers see near tokens only; where the configuration names none, those of which `default` is told the number.
fn sliding(config: &Config, depth: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>, ModelError> {
    let kinds = config.texts("layer_types")?;
    if kinds.is_empty() {
        return Ok((0..depth).map(default).collect());
    }
    let kind = |kind: String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        _ => Err(unsupported(&config.path("layer_types"), kind, vec!["sliding_attention, full_attention"])),
    };
    if kinds.len() != depth {
        return Err(config.wrong("layer_types", format!("{depth} kinds of layers")).into());
    }
    kinds.into_iter().map(kind).collect()
}

/// Heads, heads of keys and values, and elements of a head, which may be left out.
fn heads(config: &Config, keys: [&str; 3], hidden: usize) -> Result<(usize, usize, usize), ConfigError> {
    let [heads_key, kv_key, head_key] = keys;
    let heads = config.size(heads_key)?;
    let kv_heads = config.optional_size(kv_key)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.wrong(kv_key, format!("a divisor of the {heads} heads")));
    }
    let head = match config.optional_size(head_key)? {
        Some(head) => head,
        None => share(config, heads_key, heads, hidden)?,
    };
    Ok((heads, kv_heads, turning(config, head_key, head)?))
}

/// The elements of a head that positions turn, as long as they can.
fn turning(config: &Config, key: &str, head: usize) -> Result<usize, ConfigError> {
    if !head.is_multiple_of(2) || head > HEAD_MAX {
        return Err(config.wrong(key, format!("an even number of at most {HEAD_MAX}, not {head}")));
    }
    Ok(head)
}

/// How many elements each of so many heads has, that share those of a state.
fn share(config: &Config, heads_key: &str, heads: usize, hidden: usize) -> Result<usize, ConfigError> {
    if hidden.is_multiple_of(heads) {
        Ok(hidden / heads)
    } else {
        Err(config.wrong(heads_key, format!("a divisor of {hidden}")))
    }
}

/// Elements of a head; the widest in use have some 600. Frequencies are worked out before weights are looked at.
const HEAD_MAX: usize = 1 << 16;

/// The elements of a head that turn: the part of it that a key gives.
fn turned(config: &Config, key: &str, default: f64, head: usize) -> Result<usize, ConfigError> {
    let rotated = head as f64 * config.optional_number(key)?.unwrap_or(default);
    if !(2.0..=head as f64).contains(&rotated) {
        return Err(config.wrong(key, format!("a part of {head} elements, two at least")));
    }
    Ok(rotated as usize)
}

/// How many experts each token goes through, of so many.
fn chosen(config: &Config, default: Option<usize>, experts: usize) -> Result<usize, ConfigError> {
    let key = "num_experts_per_tok";
    let chosen = if config.has(key) { None } else { default }.map_or_else(|| config.size(key), Ok)?;
    if chosen > experts { Err(config.wrong(key, format!("at most the {experts} experts"))) } else { Ok(chosen) }
}

/// What an activation's name in a configuration means (`activations.py`).
pub(super) fn activation(config: &Config, key: &str, default: &str) -> Result<Activation, ModelError> {
    let found = config.optional_text(key)?.unwrap_or_else(|| default.to_owned());
    Ok(match found.as_str() {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_10" => Activation::GeluClipped,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => Activation::GeluTanh,
        "quick_gelu" => Activation::GeluQuick,
        "relu" => Activation::Relu,
        "relu2" => Activation::Relu2,
        "relu6" => Activation::Relu6,
        "tanh" => Activation::Tanh,
        "sigmoid" => Activation::Sigmoid,
        "hardswish" | "hard_swish" => Activation::HardSwish,
        "mish" => Activation::Mish,
        "elu" => Activation::Elu,
        "leaky_relu" => Activation::LeakyRelu { hundredths: 1 },
        "laplace" => Activation::Laplace,
        "linear" => Activation::Identity,
        _ => {
            let supported = "silu, gelu, gelu_10, gelu_new, quick_gelu, relu, relu2, relu6, leaky_relu, tanh, sigmoid, \
                             hardswish, mish, elu, laplace, linear";
            return Err(ModelError::Unsupported { what: config.path(key), found, supported: supported.into() });
        }
    })
}
