//! Model types of the decoder family, one file each, and what their configurations share.

pub mod llama;
pub mod mistral;

use crate::ModelError;
use crate::config::{Config, ConfigError};
use crate::spec::{
    Activation, AttentionSpec, DecoderSpec, HeadSpec, LayerSpec, MlpSpec, NormSpec, RopeScaling, RopeSpec, StackSpec,
};

/// A decoder whose layers are all alike.
struct Uniform {
    vocabulary: usize,
    hidden: usize,
    layers: usize,
    context: usize,
    eps: f64,
    attention: AttentionSpec,
    mlp: MlpSpec,
    rope: RopeSpec,
    tied: bool,
}

impl Uniform {
    fn decoder(self) -> DecoderSpec {
        let norm = NormSpec { eps: self.eps as f32 };
        let layer = LayerSpec { attention_norm: norm, attention: self.attention, mlp_norm: norm, mlp: self.mlp };
        DecoderSpec {
            stack: StackSpec {
                vocabulary: self.vocabulary,
                hidden: self.hidden,
                ropes: vec![self.rope],
                layers: vec![layer; self.layers],
                final_norm: norm,
            },
            head: if self.tied { HeadSpec::Tied } else { HeadSpec::Own },
            context: self.context,
        }
    }
}

/// Layers of one model; the deepest in use have some 130.
const LAYERS_MAX: usize = 1024;

fn layers(config: &Config, key: &str) -> Result<usize, ConfigError> {
    let layers = config.size(key)?;
    if layers > LAYERS_MAX { Err(config.wrong(key, format!("at most {LAYERS_MAX}"))) } else { Ok(layers) }
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
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(config.wrong(heads_key, format!("a divisor of {hidden}"))),
    };
    if !head.is_multiple_of(2) {
        return Err(config.wrong(head_key, format!("an even number, not {head}")));
    }
    Ok((heads, kv_heads, head))
}

/// The `hidden_act` of a gated feed-forward part.
fn activation(config: &Config, key: &str, default: &str) -> Result<Activation, ModelError> {
    let found = config.optional_text(key)?.unwrap_or_else(|| default.to_owned());
    match found.as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        _ => Err(ModelError::Unsupported { what: config.path(key), found, supported: "silu, gelu".into() }),
    }
}

/// The `rope_scaling` of `config.json` (`modeling_rope_utils.py`).
fn rope_scaling(config: &Config) -> Result<RopeScaling, ModelError> {
    let Some(section) = config.section("rope_scaling")? else { return Ok(RopeScaling::None) };
    let key = if section.has("rope_type") { "rope_type" } else { "type" };
    let kind = section.text(key)?;
    Ok(match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: section.number("factor")? },
        "llama3" => {
            let original_context = match section.optional_number("original_max_position_embeddings")? {
                Some(context) => context,
                None => config.number("max_position_embeddings")?,
            };
            let scaling = RopeScaling::Llama3 {
                factor: section.number("factor")?,
                low_turns: section.number("low_freq_factor")?,
                high_turns: section.number("high_freq_factor")?,
                original_context,
            };
            if section.number("high_freq_factor")? <= section.number("low_freq_factor")? {
                return Err(section.wrong("high_freq_factor", "more than low_freq_factor").into());
            }
            scaling
        }
        _ => {
            let supported = "default, linear, llama3".into();
            return Err(ModelError::Unsupported { what: section.path(key), found: kind, supported });
        }
    })
}
