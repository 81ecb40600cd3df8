//! GPT-2 (`transformers/models/gpt2`; Radford et al., 2019).

use super::{Parts, activation, layers, sequential, share};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, unsupported};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{
    AttentionSpec, BiasSpec, EmbedSpec, LogitsSpec, MlpSpec, NormSpec, PositionSpec, QkvLayout, Spec, SummaryOf,
    SummarySpec, TypeSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "gpt2", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "GPT2LMHeadModel", head: HeadKind::NextToken, base: "transformer." },
    Class { name: "GPT2Model", head: HeadKind::States, base: "" },
    Class { name: "GPT2DoubleHeadsModel", head: HeadKind::NextTokenAndChoice, base: "transformer." },
    Class { name: "GPT2ForSequenceClassification", head: HeadKind::SequenceLabels, base: "transformer." },
    Class { name: "GPT2ForTokenClassification", head: HeadKind::TokenLabels, base: "transformer." },
    Class { name: "GPT2ForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "wte"),
    Rule::new("positions", "wpe"),
    Rule::new("layers.{}.attn_norm", "h.{}.ln_1"),
    Rule::transposed("layers.{}.attn.qkv", "h.{}.attn.c_attn"),
    Rule::transposed("layers.{}.attn.out", "h.{}.attn.c_proj"),
    Rule::new("layers.{}.mlp_norm", "h.{}.ln_2"),
    Rule::transposed("layers.{}.mlp.up", "h.{}.mlp.c_fc"),
    Rule::transposed("layers.{}.mlp.down", "h.{}.mlp.c_proj"),
    Rule::new("final_norm", "ln_f"),
];

const HEADS: &[Rule] = &[
    Rule::new("head.next_token", "lm_head"),
    Rule::new("head.token_labels", "classifier"),
    Rule::new("head.labels", "score"),
    Rule::new("head.span", "qa_outputs"),
    Rule::new("head.summary", "multiple_choice_head.summary"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
    let head = share(config, "n_head", heads, hidden)?;
    let norm = NormSpec::layer(config.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5));
    let scaled = config.truth_or("scale_attn_weights", true)?;
    let by_layer = config.truth_or("scale_attn_by_inverse_layer_idx", false)?;
    let inner = config.optional_size("n_inner")?.unwrap_or(4 * hidden);
    let mlp = MlpSpec::plain(inner, activation(config, "activation_function", "gelu_new")?);
    let layer = |number: usize| {
        let plain = AttentionSpec::plain(heads, heads, head).with_biases();
        let scale = if scaled { plain.scale } else { 1.0 } / if by_layer { (number + 1) as f32 } else { 1.0 };
        sequential(norm, AttentionSpec { layout: QkvLayout::Joined, scale, ..plain }, mlp.clone())
    };
    let context = config.optional_size("n_positions")?.unwrap_or(1024);
    let positions = PositionSpec::Learned { rows: context, first: 0, padding: None };
    let vocabulary = config.size("vocab_size")?;
    let parts = Parts {
        hidden,
        embed: EmbedSpec { positions, types: TypeSpec::Tokens, ..EmbedSpec::plain(vocabulary, hidden) },
        layers: (0..layers(config, "n_layer")?).map(layer).collect(),
        context,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?);
    let summary = (kind == HeadKind::NextTokenAndChoice).then(|| summary(config, hidden)).transpose()?;
    Ok(parts.summarising(decoder_head(config, kind, logits)?, summary))
}

/// One logit of each sequence, whatever labels the configuration names.
fn summary(config: &Config, hidden: usize) -> Result<SummarySpec, ModelError> {
    let kind = config.optional_text("summary_type")?.unwrap_or_else(|| "cls_index".into());
    let of = match kind.as_str() {
        "first" => SummaryOf::First,
        "last" => SummaryOf::Last,
        "mean" => SummaryOf::Mean,
        "cls_index" => SummaryOf::Place,
        _ => return Err(unsupported(&config.path("summary_type"), kind, vec!["first, last, mean, cls_index"])),
    };
    let to_labels = config.truth_or("summary_proj_to_labels", true)?;
    let layer = config.truth_or("summary_use_proj", true)?;
    Ok(SummarySpec {
        of,
        outputs: layer.then_some(if to_labels { 1 } else { hidden }),
        activation: activation(config, "summary_activation", "linear")?,
    })
}
