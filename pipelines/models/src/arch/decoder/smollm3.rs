//! `SmolLM3` (`transformers/models/smollm3`): Llama without positions in every fourth layer.

use super::llama::{self, LAYOUT, Layout};
use super::{layers, sliding};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace {
        model_type: "smollm3",
        classes: CLASSES,
        spec,
        stack: llama::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "SmolLM3ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "SmolLM3Model", head: HeadKind::States, base: "" },
    Class { name: "SmolLM3ForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "SmolLM3ForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "SmolLM3ForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let depth = layers(config, "num_hidden_layers")?;
    let interval = config.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let turns = match config.optional_integers("no_rope_layers")? {
        None => (1..=depth).map(|number| !number.is_multiple_of(interval)).collect::<Vec<_>>(),
        // Against its name, the list has a 1 for each layer that turns.
        Some(turns) if turns.len() == depth => turns.iter().map(|&turns| turns != 0).collect(),
        Some(_) => return Err(config.wrong("no_rope_layers", format!("{depth} numbers")).into()),
    };
    let windowed = config.truth_or("use_sliding_window", false)?;
    let window = config.optional_size("sliding_window")?.filter(|_| windowed);
    let slides = sliding(config, depth, |number| turns.get(number) == Some(&false))?;
    let bias = config.truth_or("attention_bias", false)?;
    let mlp_bias = config.truth_or("mlp_bias", false)?;
    let layout = Layout { context: 32_768, rope_base: 2_000_000.0, tied: true, ..LAYOUT };
    llama::like_llama(config, kind, layout, |number, attention, mlp| {
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        attention.rope = attention.rope.filter(|_| turns.get(number) == Some(&true));
        attention.window = window.filter(|_| slides.get(number) == Some(&true));
        mlp.bias = mlp_bias;
        Ok(())
    })
}
