//! Models with weights from a seed, as large as real ones that are split: mixtures of experts whose routing is spread.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Tokens in the vocabulary.
const VOCABULARY: usize = 512;
const HIDDEN: usize = 1024;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD: usize = 128;

/// How large a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Layers; of an encoder and its decoder together.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Of those, how many a token goes through, where the type does not say.
    pub chosen: usize,
    /// Elements between the matrices of an expert.
    pub inner: usize,
}

impl Size {
    /// 20 to 40 ms a token on one thread of today's processors. Two thirds and more of the weights that a token goes through
    /// are experts, as in Qwen3-30B-A3B (0.67) and Mixtral 8x7B (0.9).
    pub const LARGE: Self = Self { layers: 24, experts: 16, chosen: 4, inner: 640 };
    /// A hundred megabytes, to be loaded again and again.
    pub const MEDIUM: Self = Self { layers: 8, experts: 8, chosen: 2, inner: 256 };
    /// For tests: some megabytes, with experts that have blocks of their own.
    pub const SMALL: Self = Self { layers: 4, experts: 4, chosen: 2, inner: 128 };
}

/// What kind of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Mixtral.
    Mixtral,
    /// Qwen3-MoE.
    Qwen3Moe,
    /// DeepSeek-V3: compressed keys, shared experts, groups.
    DeepseekV3,
    /// Switch Transformers: an encoder and a decoder with one expert a token.
    Switch,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mixtral, Self::Qwen3Moe, Self::DeepseekV3, Self::Switch];

    /// Experts that a token goes through in each layer that has any.
    pub fn chosen(self, size: Size) -> usize {
        if self == Self::Switch { 1 } else { size.chosen }
    }

    /// Layers with experts that a token goes through that is written.
    pub fn mixtures(self, size: Size) -> usize {
        match self {
            Self::Mixtral | Self::Qwen3Moe => size.layers,
            // The first is dense.
            Self::DeepseekV3 => size.layers - 1,
            Self::Switch => size.layers / 2,
        }
    }

    /// Writes a model of that kind: a configuration, a tokenizer of words, and weights in bf16 that follow from their
    /// names and the seed.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(self, into: &Path, size: Size, seed: u64) -> Result<()> {
        std::fs::create_dir_all(into)?;
        std::fs::write(into.join("config.json"), serde_json::to_vec_pretty(&self.config(size))?)?;
        std::fs::write(into.join("tokenizer.json"), serde_json::to_vec(&tokenizer())?)?;
        write_weights(&into.join("model.safetensors"), &self.tensors(size), seed)
    }

    fn config(self, size: Size) -> Value {
        let Size { layers, experts, chosen, inner } = size;
        let common = json!({
            "hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "num_experts_per_tok": chosen, "hidden_act": "silu",
            "tie_word_embeddings": false, "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 1,
        });
        let own = match self {
            Self::Mixtral => json!({
                "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "intermediate_size": inner,
                "num_local_experts": experts, "sliding_window": null,
            }),
            Self::Qwen3Moe => json!({
                "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "intermediate_size": 4 * inner,
                "moe_intermediate_size": inner, "num_experts": experts, "norm_topk_prob": true,
                "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": false, "use_sliding_window": false,
            }),
            Self::DeepseekV3 => json!({
                "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
                "intermediate_size": 4 * inner, "moe_intermediate_size": inner, "n_routed_experts": experts,
                "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
                "norm_topk_prob": true, "routed_scaling_factor": 2.5, "q_lora_rank": 384, "kv_lora_rank": 256,
                "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "num_key_value_heads": HEADS,
                "attention_bias": false, "rope_scaling": null, "rope_interleave": true, "head_dim": 32,
            }),
            Self::Switch => json!({
                "model_type": "switch_transformers", "architectures": ["SwitchTransformersForConditionalGeneration"],
                "d_model": HIDDEN, "d_ff": inner, "d_kv": HEAD, "num_heads": HEADS, "num_layers": layers / 2,
                "num_decoder_layers": layers / 2, "num_experts": experts, "num_sparse_encoder_layers": layers / 2,
                "num_sparse_decoder_layers": layers / 2, "encoder_sparse_step": 1, "decoder_sparse_step": 1,
                "expert_capacity": 64, "vocab_size": VOCABULARY, "relative_attention_num_buckets": 32,
                "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "dense_act_fn": "relu",
                "is_encoder_decoder": true, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
                "tie_word_embeddings": true,
            }),
        };
        if self == Self::Switch {
            return own;
        }
        let mut config = common;
        if let (Value::Object(config), Value::Object(own)) = (&mut config, own) {
            config.extend(own);
        }
        config
    }

    /// The tensors of its checkpoint.
    fn tensors(self, size: Size) -> Vec<Spec> {
        let Size { layers, experts, inner, .. } = size;
        let mut all = Vec::new();
        if self == Self::Switch {
            all.push(Spec::table("shared.weight".into(), VOCABULARY, HIDDEN));
            switch_stack(&mut all, "encoder", size);
            switch_stack(&mut all, "decoder", size);
            return all;
        }
        all.push(Spec::table("model.embed_tokens.weight".into(), VOCABULARY, HIDDEN));
        for layer in 0..layers {
            let mut at = |name: &str, outputs: usize, inputs: usize| {
                all.push(Spec::matrix(format!("model.layers.{layer}.{name}.weight"), outputs, inputs));
            };
            if self == Self::DeepseekV3 {
                at("self_attn.q_a_proj", 384, HIDDEN);
                at("self_attn.q_b_proj", HEADS * 96, 384);
                at("self_attn.kv_a_proj_with_mqa", 256 + 32, HIDDEN);
                at("self_attn.kv_b_proj", HEADS * 128, 256);
                at("self_attn.o_proj", HIDDEN, HEADS * 64);
            } else {
                at("self_attn.q_proj", HEADS * HEAD, HIDDEN);
                at("self_attn.k_proj", KV_HEADS * HEAD, HIDDEN);
                at("self_attn.v_proj", KV_HEADS * HEAD, HIDDEN);
                at("self_attn.o_proj", HIDDEN, HEADS * HEAD);
            }
            let dense = self == Self::DeepseekV3 && layer == 0;
            let (mlp, parts) = match self {
                Self::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
                _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
            };
            let mut gated = |name: &str, inner: usize| {
                at(&format!("{mlp}{name}.{}", parts[0]), inner, HIDDEN);
                at(&format!("{mlp}{name}.{}", parts[1]), inner, HIDDEN);
                at(&format!("{mlp}{name}.{}", parts[2]), HIDDEN, inner);
            };
            if dense {
                gated("", 4 * inner);
            } else {
                (0..experts).for_each(|expert| gated(&format!(".experts.{expert}"), inner));
                if self == Self::DeepseekV3 {
                    gated(".shared_experts", inner);
                }
                all.push(Spec::router(format!("model.layers.{layer}.{mlp}.gate.weight"), experts, HIDDEN));
                if self == Self::DeepseekV3 {
                    all.push(Spec::vector(
                        format!("model.layers.{layer}.mlp.gate.e_score_correction_bias"),
                        experts,
                        0.0,
                    ));
                }
            }
            let mut norm = |name: &str, width| {
                all.push(Spec::vector(format!("model.layers.{layer}.{name}.weight"), width, 1.0));
            };
            norm("input_layernorm", HIDDEN);
            norm("post_attention_layernorm", HIDDEN);
            match self {
                Self::Qwen3Moe => ["self_attn.q_norm", "self_attn.k_norm"].iter().for_each(|name| norm(name, HEAD)),
                Self::DeepseekV3 => {
                    norm("self_attn.q_a_layernorm", 384);
                    norm("self_attn.kv_a_layernorm", 256);
                }
                Self::Mixtral | Self::Switch => {}
            }
        }
        all.push(Spec::vector("model.norm.weight".into(), HIDDEN, 1.0));
        all.push(Spec::matrix("lm_head.weight".into(), VOCABULARY, HIDDEN));
        all
    }
}

fn switch_stack(all: &mut Vec<Spec>, stack: &str, size: Size) {
    let decoder = stack == "decoder";
    for block in 0..size.layers / 2 {
        let mut parts = vec![(0, "SelfAttention")];
        if decoder {
            parts.push((1, "EncDecAttention"));
        }
        for &(layer, attention) in &parts {
            let at = format!("{stack}.block.{block}.layer.{layer}");
            for name in ["q", "k", "v", "o"] {
                all.push(Spec::matrix(format!("{at}.{attention}.{name}.weight"), HEADS * HEAD, HIDDEN));
            }
            all.push(Spec::vector(format!("{at}.layer_norm.weight"), HIDDEN, 1.0));
        }
        let at = format!("{stack}.block.{block}.layer.{}", parts.len());
        for expert in 0..size.experts {
            let at = format!("{at}.mlp.experts.expert_{expert}");
            all.push(Spec::matrix(format!("{at}.wi.weight"), size.inner, HIDDEN));
            all.push(Spec::matrix(format!("{at}.wo.weight"), HIDDEN, size.inner));
        }
        all.push(Spec::router(format!("{at}.mlp.router.classifier.weight"), size.experts, HIDDEN));
        all.push(Spec::vector(format!("{at}.layer_norm.weight"), HIDDEN, 1.0));
    }
    let bias = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    all.push(Spec::matrix(bias, 32, HEADS));
    all.push(Spec::vector(format!("{stack}.final_layer_norm.weight"), HIDDEN, 1.0));
}

/// A tensor of a checkpoint: numbers around `center`, up to `scale` away from it.
struct Spec {
    name: String,
    dims: Vec<usize>,
    center: f32,
    scale: f32,
}

impl Spec {
    /// A matrix that keeps the size of what goes through it.
    fn matrix(name: String, outputs: usize, inputs: usize) -> Self {
        Self { name, dims: vec![outputs, inputs], center: 0.0, scale: (3.0 / inputs as f32).sqrt() }
    }

    /// A router whose scores are far enough apart that tokens go different ways.
    fn router(name: String, outputs: usize, inputs: usize) -> Self {
        Self { scale: 2.0 * (3.0 / inputs as f32).sqrt(), ..Self::matrix(name, outputs, inputs) }
    }

    fn table(name: String, rows: usize, width: usize) -> Self {
        Self { name, dims: vec![rows, width], center: 0.0, scale: 1.0 }
    }

    fn vector(name: String, length: usize, center: f32) -> Self {
        Self { name, dims: vec![length], center, scale: 0.25 }
    }

    fn bytes(&self) -> usize {
        2 * self.dims.iter().product::<usize>()
    }
}

fn write_weights(path: &Path, tensors: &[Spec], seed: u64) -> Result<()> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let info = json!({ "dtype": "BF16", "shape": tensor.dims, "data_offsets": [offset, end] });
        header.insert(tensor.name.clone(), info);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors {
        let name = accel_conformance::case::fnv1a64(&tensor.name);
        let count = tensor.bytes() as u64 / 2;
        let number = |place: u64| {
            let drawn = mixed(name ^ mixed(seed.wrapping_add(place))) >> 40;
            let unit = drawn as f32 / (1_u64 << 23) as f32 - 1.0;
            // The upper half of an f32: rounding does not matter where numbers are drawn.
            ((tensor.center + tensor.scale * unit).to_bits() >> 16) as u16
        };
        for place in 0..count {
            file.write_all(&number(place).to_le_bytes())?;
        }
    }
    file.flush()?;
    Ok(())
}

/// Bits that look drawn (SplitMix64, Steele and others, 2014).
fn mixed(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A tokenizer whose tokens are the words `w0`, `w1` and so on.
fn tokenizer() -> Value {
    let words: serde_json::Map<String, Value> =
        (0..VOCABULARY).map(|number| (format!("w{number}"), number.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "w0" },
    })
}

/// A prompt of so many tokens.
pub fn prompt(tokens: usize, seed: u64) -> String {
    let word = |place: usize| {
        format!("w{}", 2 + mixed(seed.wrapping_mul(977).wrapping_add(place as u64)) % (VOCABULARY as u64 - 2))
    };
    (0..tokens).map(word).collect::<Vec<_>>().join(" ")
}
