//! The text model of Gemma 3 (`transformers/models/gemma3`; <https://arxiv.org/abs/2503.19786>).
//!
//! `attn_logit_softcapping` is left from Gemma 2: the model does not bend its scores, whatever it says.

use accel_backends::weights::TensorIndex;

use super::{Parts, activation, gemma2, gguf, heads, layers, llama, sliding};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, Gguf, HeadKind, HuggingFace, decoder_head, rope, unsupported};
use crate::config::Config;
use crate::rules::{Rule, Rules, joined};
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, EmbedSpec, HeadSpec, LogitsSpec, MlpSpec, NormSpec, QkNormSpec, RopeAxes,
    RopeScaling, RopeSpec, RopeStyle, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "gemma3_text", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: Some(Gguf {
        architecture: "gemma3",
        spec: gguf_spec,
        rules: Rules { prefix: "", base: "", stack: GGUF_STACK, heads: llama::GGUF_HEADS },
    }),
};

const CLASSES: &[Class] = &[
    Class { name: "Gemma3ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Gemma3TextModel", head: HeadKind::States, base: "" },
    Class { name: "Gemma3TextForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
];

const QK_NORMS: &[Rule] = &[
    Rule::add_one("layers.{}.attn.q_norm", "layers.{}.self_attn.q_norm"),
    Rule::add_one("layers.{}.attn.k_norm", "layers.{}.self_attn.k_norm"),
];

const STACK: &[Rule] = &joined::<{ QK_NORMS.len() + gemma2::STACK.len() }>(QK_NORMS, gemma2::STACK);

/// Here the weights of norms have had their one added.
const GGUF_NORMS: &[Rule] = &[
    Rule::new("layers.{}.attn.q_norm", "blk.{}.attn_q_norm"),
    Rule::new("layers.{}.attn.k_norm", "blk.{}.attn_k_norm"),
    Rule::new("layers.{}.attn_out_norm", "blk.{}.post_attention_norm"),
    Rule::new("layers.{}.mlp_out_norm", "blk.{}.post_ffw_norm"),
];

const GGUF_STACK: &[Rule] = &joined::<{ GGUF_NORMS.len() + llama::GGUF_STACK.len() }>(GGUF_NORMS, llama::GGUF_STACK);

/// Every so many layers, one sees all tokens.
const PERIOD: usize = 6;
/// The base of frequencies in the other layers.
const NEAR_BASE: f64 = 10_000.0;

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    if config.truth_or("use_bidirectional_attention", false)? {
        let what = config.path("use_bidirectional_attention");
        return Err(unsupported(&what, "true".into(), vec!["attention to earlier tokens"]));
    }
    let hidden = config.size("hidden_size")?;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    // Without a size of its own a head has 256 elements, whatever the hidden size.
    let (heads, kv_heads, head) = heads(config, keys, 256 * config.size("num_attention_heads")?)?;
    let bias = config.truth_or("attention_bias", false)?;
    let depth = layers(config, "num_hidden_layers")?;
    let period = config.optional_size("sliding_window_pattern")?.unwrap_or(PERIOD);
    let base = config.optional_number("rope_theta")?.unwrap_or(1_000_000.0);
    let layers = Layers {
        hidden,
        norm: NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-6)),
        attention: AttentionSpec {
            scale: config.optional_number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32,
            qkv_bias: bias,
            out_bias: bias,
            ..AttentionSpec::plain(heads, kv_heads, head)
        },
        mlp: MlpSpec::gated(
            config.size("intermediate_size")?,
            activation(config, "hidden_activation", "gelu_pytorch_tanh")?,
        ),
        window: Some(config.optional_size("sliding_window")?.unwrap_or(4096)),
        near: sliding(config, depth, |number| !(number + 1).is_multiple_of(period))?,
        far_rope: turning(base, head, rope::scaling(config, base, head)?),
        near_rope: turning(
            config.optional_number("rope_local_base_freq")?.unwrap_or(NEAR_BASE),
            head,
            RopeScaling::None,
        ),
    };
    let context = config.optional_size("max_position_embeddings")?.unwrap_or(131_072);
    let logits = LogitsSpec {
        softcap: config.optional_number("final_logit_softcapping")?.map(|cap| cap as f32),
        ..LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?)
    };
    Ok(layers.parts(config.size("vocab_size")?, context).decoder(decoder_head(config, kind, logits)?))
}

/// The file does not say which layers see near tokens, nor the base of their frequencies, nor that scores of the model
/// with 62 layers have another factor: llama.cpp knows (`src/llama-model.cpp`).
fn gguf_spec(config: &Config, index: &TensorIndex) -> Result<Spec, ModelError> {
    let sizes = gguf::sizes(config, index, "gemma3")?;
    let plain = AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head);
    let scale = if sizes.layers == 62 { ((sizes.hidden / sizes.heads) as f32).powf(-0.5) } else { plain.scale };
    let period = config.optional_size("gemma3.attention.sliding_window_pattern")?.unwrap_or(PERIOD);
    let window = config.optional_size("gemma3.attention.sliding_window")?;
    let base = config.optional_number("gemma3.rope.freq_base")?.unwrap_or(1_000_000.0);
    let near_base = config.optional_number("gemma3.rope.freq_base_swa")?.unwrap_or(NEAR_BASE);
    let layers = Layers {
        hidden: sizes.hidden,
        norm: NormSpec::rms(sizes.norm_eps),
        attention: AttentionSpec { scale, ..plain },
        mlp: MlpSpec::gated(sizes.inner, Activation::GeluTanh),
        window,
        near: (1..=sizes.layers).map(|number| window.is_some() && !number.is_multiple_of(period)).collect(),
        far_rope: turning(base, sizes.rotated, gguf::rope_scaling(config, index, "gemma3")?),
        near_rope: turning(near_base, sizes.rotated, RopeScaling::None),
    };
    let logits = LogitsSpec {
        softcap: config.optional_number("gemma3.final_logit_softcapping")?.map(|cap| cap as f32),
        ..LogitsSpec::plain(index.get("output.weight").is_none())
    };
    Ok(layers.parts(sizes.vocabulary, sizes.context).decoder(HeadSpec::NextToken(logits)))
}

/// What the layers are made of, in either format.
struct Layers {
    hidden: usize,
    norm: NormSpec,
    attention: AttentionSpec,
    mlp: MlpSpec,
    window: Option<usize>,
    near: Vec<bool>,
    far_rope: RopeSpec,
    near_rope: RopeSpec,
}

impl Layers {
    fn parts(self, vocabulary: usize, context: usize) -> Parts {
        let Self { hidden, norm, .. } = self;
        let layer = |&near: &bool| {
            let attention = AttentionSpec {
                window: self.window.filter(|_| near),
                rope: Some(near.into()),
                qk_norm: Some(QkNormSpec { norm, whole: false }),
                ..self.attention.clone()
            };
            gemma2::layer(norm, attention, self.mlp.clone())
        };
        Parts {
            hidden,
            embed: EmbedSpec { scale: (hidden as f64).sqrt() as f32, ..EmbedSpec::plain(vocabulary, hidden) },
            layers: self.near.iter().map(layer).collect(),
            context,
            ropes: vec![self.far_rope, self.near_rope],
            bias: BiasSpec::None,
            final_norm: Some(norm),
        }
    }
}

fn turning(base: f64, rotated: usize, scaling: RopeScaling) -> RopeSpec {
    RopeSpec { base, rotated, style: RopeStyle::Halves, scaling, axes: RopeAxes::One }
}
