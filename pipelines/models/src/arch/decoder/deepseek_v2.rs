//! DeepSeek-V2 (`transformers/models/deepseek_v2`; <https://arxiv.org/abs/2405.04434>): DeepSeek-V3 with the softmax of
//! scores, and without what V3 adds to them for choosing.

use super::deepseek_v3::{self, groups, like_deepseek};
use super::{activation, chosen, llama};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::spec::{FfnSpec, MlpSpec, MoeSpec, RopeStyle, RouterScores, RouterSpec, SharedExpertSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace {
        model_type: "deepseek_v2",
        classes: CLASSES,
        spec,
        stack: deepseek_v3::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "DeepseekV2ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "DeepseekV2Model", head: HeadKind::States, base: "" },
    Class { name: "DeepseekV2ForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("mlp_bias", false)?;
    let dense = MlpSpec {
        bias,
        ..MlpSpec::gated(config.size("intermediate_size")?, activation(config, "hidden_act", "silu")?)
    };
    // Nought is a size here.
    let first = config.optional_integer("first_k_dense_replace")?.unwrap_or(0);
    like_deepseek(config, kind, RopeStyle::Pairs, 2048, |number| {
        Ok(if (number as i64) < first { FfnSpec::Dense(dense.clone()) } else { experts(config, &dense)? })
    })
}

/// The experts of a layer, like a dense part but for their size.
fn experts(config: &Config, dense: &MlpSpec) -> Result<FfnSpec, ModelError> {
    let experts = config.size("n_routed_experts")?;
    let method = config.optional_text("topk_method")?.unwrap_or_else(|| "greedy".into());
    let groups = match method.as_str() {
        "greedy" => None,
        "group_limited_greedy" => Some(groups(config, experts, 1)?),
        _ => return Err(unsupported(&config.path("topk_method"), method, vec!["greedy, group_limited_greedy"])),
    };
    let inner = config.size("moe_intermediate_size")?;
    let of_size = |inner| MlpSpec { inner, ..dense.clone() };
    let shared = match config.optional_size("n_shared_experts")? {
        None if config.is_null("n_shared_experts") => None,
        count => Some(SharedExpertSpec { mlp: of_size(inner * count.unwrap_or(2)), gated: false }),
    };
    Ok(FfnSpec::Experts(Box::new(MoeSpec {
        experts,
        expert: of_size(inner),
        router: RouterSpec {
            scale: config.optional_number("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            groups,
            ..RouterSpec::plain(chosen(config, None, experts)?, RouterScores::Softmax)
        },
        shared,
    })))
}
