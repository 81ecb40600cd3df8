//! Networks in the shape of a U, one file each, and what the blocks of Diffusers share.

use crate::rules::Rule;
use crate::spec::unet::{BlockLayerSpec, ImageMixerSpec, ResnetSpec};

/// Blocks of a network, and layers of a block.
pub(super) const IMAGE_BLOCKS_MAX: usize = 64;

/// The ends of names in blocks (`resnet.py`, `attention_processor.py`, `attention.py`), some of which older checkpoints
/// call otherwise.
pub(super) const BLOCKS: &[Rule] = &[
    Rule::new("*.first_norm", "*.norm1"),
    Rule::new("*.first", "*.conv1"),
    Rule::new("*.time", "*.time_emb_proj"),
    Rule::new("*.second_norm", "*.norm2"),
    Rule::new("*.second", "*.conv2"),
    Rule::new("*.shortcut", "*.conv_shortcut"),
    Rule::new("*.convolution", "*.conv"),
    Rule::new("*.norm", "*.group_norm"),
    Rule::new("*.q", "*.to_q"),
    Rule::new("*.q", "*.query"),
    Rule::new("*.k", "*.to_k"),
    Rule::new("*.k", "*.key"),
    Rule::new("*.v", "*.to_v"),
    Rule::new("*.v", "*.value"),
    Rule::new("*.out", "*.to_out.0"),
    Rule::new("*.out", "*.proj_attn"),
    Rule::new("*.source_k", "*.add_k_proj"),
    Rule::new("*.source_v", "*.add_v_proj"),
    Rule::new("*.source_norm", "*.norm_cross"),
    Rule::new("*.in", "*.proj_in"),
    Rule::new("*.out", "*.proj_out"),
    Rule::new("*.layers.{}.attn_norm", "*.transformer_blocks.{}.norm1"),
    Rule::new("*.layers.{}.attn.q", "*.transformer_blocks.{}.attn1.to_q"),
    Rule::new("*.layers.{}.attn.k", "*.transformer_blocks.{}.attn1.to_k"),
    Rule::new("*.layers.{}.attn.v", "*.transformer_blocks.{}.attn1.to_v"),
    Rule::new("*.layers.{}.attn.out", "*.transformer_blocks.{}.attn1.to_out.0"),
    Rule::new("*.layers.{}.cross_norm", "*.transformer_blocks.{}.norm2"),
    Rule::new("*.layers.{}.cross.q", "*.transformer_blocks.{}.attn2.to_q"),
    Rule::new("*.layers.{}.cross.k", "*.transformer_blocks.{}.attn2.to_k"),
    Rule::new("*.layers.{}.cross.v", "*.transformer_blocks.{}.attn2.to_v"),
    Rule::new("*.layers.{}.cross.out", "*.transformer_blocks.{}.attn2.to_out.0"),
    Rule::new("*.layers.{}.mlp_norm", "*.transformer_blocks.{}.norm3"),
    Rule::first_half("*.layers.{}.mlp.up", "*.transformer_blocks.{}.ff.net.0.proj"),
    Rule::second_half("*.layers.{}.mlp.gate", "*.transformer_blocks.{}.ff.net.0.proj"),
    Rule::new("*.layers.{}.mlp.down", "*.transformer_blocks.{}.ff.net.2"),
];

/// So many layers of a block, the first of which changes the channels.
pub(super) fn resnet_layers(
    resnet: ResnetSpec,
    inputs: usize,
    outputs: usize,
    layers: usize,
    mixer: Option<&ImageMixerSpec>,
) -> Vec<BlockLayerSpec> {
    let layer = |number: usize| BlockLayerSpec {
        resnet: ResnetSpec { inputs: if number == 0 { inputs } else { outputs }, outputs, ..resnet },
        mixer: mixer.cloned(),
    };
    (0..layers).map(layer).collect()
}
