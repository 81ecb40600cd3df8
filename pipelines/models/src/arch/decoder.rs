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
        // This scaling alone is told the context before it is stretched.
        let context = match self.rope.scaling {
            RopeScaling::Dynamic { factor, context } => (factor * context) as usize,
            _ => self.context,
        };
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
            head: HeadSpec::NextToken { tied: self.tied },
            context,
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
