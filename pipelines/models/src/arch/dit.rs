//! Transformers of diffusion, one file each, and the names that they share.

pub mod flux;
pub mod sd3;

use crate::rules::Rule;

/// The names of layers (`transformer_flux.py`, `transformer_sd3.py`).
const LAYERS: &[Rule] = &[
    Rule::new("moment.up", "time_text_embed.timestep_embedder.linear_1"),
    Rule::new("moment.down", "time_text_embed.timestep_embedder.linear_2"),
    Rule::new("guidance.up", "time_text_embed.guidance_embedder.linear_1"),
    Rule::new("guidance.down", "time_text_embed.guidance_embedder.linear_2"),
    Rule::new("summary.up", "time_text_embed.text_embedder.linear_1"),
    Rule::new("summary.down", "time_text_embed.text_embedder.linear_2"),
    Rule::new("text", "context_embedder"),
    Rule::new("joint.{}.modulation", "transformer_blocks.{}.norm1.linear"),
    Rule::new("joint.{}.text_modulation", "transformer_blocks.{}.norm1_context.linear"),
    Rule::new("joint.{}.attn.q", "transformer_blocks.{}.attn.to_q"),
    Rule::new("joint.{}.attn.k", "transformer_blocks.{}.attn.to_k"),
    Rule::new("joint.{}.attn.v", "transformer_blocks.{}.attn.to_v"),
    Rule::new("joint.{}.attn.q_norm", "transformer_blocks.{}.attn.norm_q"),
    Rule::new("joint.{}.attn.k_norm", "transformer_blocks.{}.attn.norm_k"),
    Rule::new("joint.{}.attn.out", "transformer_blocks.{}.attn.to_out.0"),
    Rule::new("joint.{}.text_attn.q", "transformer_blocks.{}.attn.add_q_proj"),
    Rule::new("joint.{}.text_attn.k", "transformer_blocks.{}.attn.add_k_proj"),
    Rule::new("joint.{}.text_attn.v", "transformer_blocks.{}.attn.add_v_proj"),
    Rule::new("joint.{}.text_attn.q_norm", "transformer_blocks.{}.attn.norm_added_q"),
    Rule::new("joint.{}.text_attn.k_norm", "transformer_blocks.{}.attn.norm_added_k"),
    Rule::new("joint.{}.text_attn.out", "transformer_blocks.{}.attn.to_add_out"),
    Rule::new("joint.{}.again.q", "transformer_blocks.{}.attn2.to_q"),
    Rule::new("joint.{}.again.k", "transformer_blocks.{}.attn2.to_k"),
    Rule::new("joint.{}.again.v", "transformer_blocks.{}.attn2.to_v"),
    Rule::new("joint.{}.again.q_norm", "transformer_blocks.{}.attn2.norm_q"),
    Rule::new("joint.{}.again.k_norm", "transformer_blocks.{}.attn2.norm_k"),
    Rule::new("joint.{}.again.out", "transformer_blocks.{}.attn2.to_out.0"),
    Rule::new("joint.{}.mlp.up", "transformer_blocks.{}.ff.net.0.proj"),
    Rule::new("joint.{}.mlp.down", "transformer_blocks.{}.ff.net.2"),
    Rule::new("joint.{}.text_mlp.up", "transformer_blocks.{}.ff_context.net.0.proj"),
    Rule::new("joint.{}.text_mlp.down", "transformer_blocks.{}.ff_context.net.2"),
    Rule::new("single.{}.modulation", "single_transformer_blocks.{}.norm.linear"),
    Rule::new("single.{}.attn.q", "single_transformer_blocks.{}.attn.to_q"),
    Rule::new("single.{}.attn.k", "single_transformer_blocks.{}.attn.to_k"),
    Rule::new("single.{}.attn.v", "single_transformer_blocks.{}.attn.to_v"),
    Rule::new("single.{}.attn.q_norm", "single_transformer_blocks.{}.attn.norm_q"),
    Rule::new("single.{}.attn.k_norm", "single_transformer_blocks.{}.attn.norm_k"),
    Rule::new("single.{}.up", "single_transformer_blocks.{}.proj_mlp"),
    Rule::new("single.{}.out", "single_transformer_blocks.{}.proj_out"),
    Rule::new("last_modulation", "norm_out.linear"),
    Rule::new("last", "proj_out"),
];
