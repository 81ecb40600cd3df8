//! What the metadata of GGUF files say of decoders, under keys that begin with the name of the architecture
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

use accel_backends::weights::TensorIndex;

use super::{heads, layers};
use crate::ModelError;
use crate::config::Config;
use crate::spec::RopeScaling;

/// The sizes of a decoder.
pub(super) struct Sizes {
    /// Elements of a token's state.
    pub hidden: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head: usize,
    /// Elements of a head that turn.
    pub rotated: usize,
    /// Elements between the matrices of a feed-forward part.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// The most positions of a sequence.
    pub context: usize,
    /// Added to the mean square of what is normalised.
    pub norm_eps: f64,
}

/// The sizes of a decoder of that architecture.
pub(super) fn sizes(config: &Config, index: &TensorIndex, architecture: &str) -> Result<Sizes, ModelError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let hidden = config.size(&key("embedding_length"))?;
    let keys = [key("attention.head_count"), key("attention.head_count_kv"), key("attention.key_length")];
    let (heads, kv_heads, head) = heads(config, keys.each_ref().map(String::as_str), hidden)?;
    let value_key = key("attention.value_length");
    if config.optional_size(&value_key)?.is_some_and(|value| value != head) {
        return Err(config.wrong(&value_key, format!("the {head} of the keys")).into());
    }
    let rotated_key = key("rope.dimension_count");
    let rotated = config.optional_size(&rotated_key)?.unwrap_or(head);
    if rotated > head || !rotated.is_multiple_of(2) {
        return Err(config.wrong(&rotated_key, format!("an even number of at most {head}")).into());
    }
    let vocabulary_key = key("vocab_size");
    let vocabulary = match (config.optional_size(&vocabulary_key)?, index.get("token_embd.weight")) {
        (Some(vocabulary), _) => vocabulary,
        (None, Some(table)) => table.dims.first().copied().unwrap_or(0),
        (None, None) => return Err(config.wrong(&vocabulary_key, "a positive whole number").into()),
    };
    Ok(Sizes {
        hidden,
        heads,
        kv_heads,
        head,
        rotated,
        inner: config.size(&key("feed_forward_length"))?,
        layers: layers(config, &key("block_count"))?,
        vocabulary,
        context: config.size(&key("context_length"))?,
        norm_eps: config.number(&key("attention.layer_norm_rms_epsilon"))?,
    })
}

/// How frequencies are stretched.
pub(super) fn rope_scaling(
    config: &Config,
    index: &TensorIndex,
    architecture: &str,
) -> Result<RopeScaling, ModelError> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let kind = config.optional_text(&key("type"))?.unwrap_or_else(|| "none".to_owned());
    match kind.as_str() {
        _ if index.get("rope_freqs.weight").is_some() => Ok(RopeScaling::Factors),
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: config.number(&key("factor"))? }),
        _ => {
            let (what, supported) = (config.path(&key("type")), "none, linear".into());
            Err(ModelError::Unsupported { what, found: kind, supported })
        }
    }
}
