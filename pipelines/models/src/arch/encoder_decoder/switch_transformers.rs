//! Switch Transformers (`transformers/models/switch_transformers`; <https://arxiv.org/abs/2101.03961>): T5 with experts.

use super::t5;
use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{FfnSpec, MlpSpec, MoeSpec, RouterScores, RouterSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace {
        model_type: "switch_transformers",
        classes: CLASSES,
        spec,
        stack: STACK,
        heads: t5::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "SwitchTransformersForConditionalGeneration", head: HeadKind::NextToken, base: "" },
    Class { name: "SwitchTransformersModel", head: HeadKind::States, base: "" },
    Class { name: "SwitchTransformersEncoderModel", head: HeadKind::EncoderStates, base: "" },
];

const STACK: &[Rule] = &joined::<{ EXPERTS.len() + t5::STACK.len() }>(EXPERTS, t5::STACK);

const EXPERTS: &[Rule] = &[
    Rule::new("encoder.layers.{}.mlp.up", "encoder.block.{}.layer.1.mlp.wi"),
    Rule::new("encoder.layers.{}.mlp.down", "encoder.block.{}.layer.1.mlp.wo"),
    Rule::new("encoder.layers.{}.moe.router", "encoder.block.{}.layer.1.mlp.router.classifier"),
    Rule::new("encoder.layers.{}.moe.experts.{}.up", "encoder.block.{}.layer.1.mlp.experts.expert_{}.wi"),
    Rule::new("encoder.layers.{}.moe.experts.{}.down", "encoder.block.{}.layer.1.mlp.experts.expert_{}.wo"),
    Rule::new("decoder.layers.{}.mlp.up", "decoder.block.{}.layer.2.mlp.wi"),
    Rule::new("decoder.layers.{}.mlp.down", "decoder.block.{}.layer.2.mlp.wo"),
    Rule::new("decoder.layers.{}.moe.router", "decoder.block.{}.layer.2.mlp.router.classifier"),
    Rule::new("decoder.layers.{}.moe.experts.{}.up", "decoder.block.{}.layer.2.mlp.experts.expert_{}.wi"),
    Rule::new("decoder.layers.{}.moe.experts.{}.down", "decoder.block.{}.layer.2.mlp.experts.expert_{}.wo"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mlp =
        MlpSpec { bias: false, ..MlpSpec::plain(config.size("d_ff")?, activation(config, "dense_act_fn", "relu")?) };
    let kind_of_scores = config.optional_text("router_dtype")?.unwrap_or_else(|| "float32".into());
    if kind_of_scores != "float32" {
        return Err(unsupported(&config.path("router_dtype"), kind_of_scores, vec!["float32"]));
    }
    let moe = MoeSpec {
        experts: config.optional_size("num_experts")?.unwrap_or(8),
        expert: mlp.clone(),
        router: RouterSpec {
            capacity: Some(config.optional_size("expert_capacity")?.unwrap_or(64)),
            bias: config.truth_or("router_bias", false)?,
            ..RouterSpec::plain(1, RouterScores::Softmax)
        },
        shared: None,
    };
    // One of every so many layers has experts, so that as many have as are asked for; where none are asked for, the second
    // of all has, as in the reference.
    let step = |step: &str, count: &str, sparse: &str| -> Result<usize, ModelError> {
        // What follows from the numbers is written beside them too, and counts there.
        if let Some(step) = config.optional_integer(step)? {
            return Ok(usize::try_from(step).unwrap_or(0));
        }
        let count = config.optional_size(count)?.or(config.optional_size("num_layers")?).unwrap_or(12);
        let wanted = usize::try_from(config.optional_integer(sparse)?.unwrap_or(3)).unwrap_or(0);
        Ok(count.checked_div(wanted).unwrap_or(count))
    };
    let steps = [
        step("encoder_sparse_step", "num_layers", "num_sparse_encoder_layers")?,
        step("decoder_sparse_step", "num_decoder_layers", "num_sparse_decoder_layers")?,
    ];
    t5::like_t5(config, kind, |decoder, number| {
        let step = steps[usize::from(decoder)];
        let sparse = step == 1 || (step > 1 && number % step == 1);
        Ok(if sparse { FfnSpec::Experts(Box::new(moe.clone())) } else { FfnSpec::Dense(mlp.clone()) })
    })
}
