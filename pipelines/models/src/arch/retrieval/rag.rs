//! Retrieval-augmented generation (`transformers/models/rag`; <https://arxiv.org/abs/2005.11401>): an encoder of questions
//! and a generator of other types.
//!
//! The class of whole sequences generates by a search over the answers that each document gives, which is no generation
//! token by token.

use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported, within};
use crate::config::Config;
use crate::rules::Rules;
use crate::spec::encoder::EncoderHead;
use crate::spec::retrieval::RetrievalSpec;
use crate::spec::{PartSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Rag,
    hugging_face: HuggingFace { model_type: "rag", classes: CLASSES, spec, stack: &[], heads: &[] },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "RagModel", head: HeadKind::States, base: "" },
    Class { name: "RagSequenceForGeneration", head: HeadKind::States, base: "" },
    Class { name: "RagTokenForGeneration", head: HeadKind::NextToken, base: "" },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let part = |key, kind, prefixes: [&'static str; 2]| {
        let section = config.section(key)?.unwrap_or_default();
        let (spec, arch) = within(&section, "", kind)?;
        let base = arch.classes.iter().find(|class| class.head == kind).map_or("", |class| class.base);
        let rules = prefixes.map(|prefix| Rules { prefix, base, stack: arch.stack, heads: arch.heads });
        Ok::<_, ModelError>((spec, rules.to_vec()))
    };
    let other = |what: &str, supported| Err(unsupported(what, "another".into(), vec![supported]));
    let question = part("question_encoder", HeadKind::States, ["rag.question_encoder.", "question_encoder."])?;
    let (Spec::Encoder(question), question_rules) = question else {
        return other("the question_encoder's model", "encoders of text");
    };
    if !matches!(question.head, EncoderHead::First(_)) {
        return other("the question_encoder's model", "encoders whose answer is one vector");
    }
    let generator = part("generator", HeadKind::NextToken, ["rag.generator.", "generator."])?;
    let (Spec::EncoderDecoder(generator), generator_rules) = generator else {
        return other("the generator's model", "encoders with a decoder of text");
    };
    let marginal = match kind {
        HeadKind::NextToken => Some(config.truth_or("do_marginalize", false)?),
        _ => None,
    };
    Ok(Spec::Retrieval(Box::new(RetrievalSpec {
        question: PartSpec { spec: *question, rules: question_rules },
        start: config.optional_integer("decoder_start_token_id")?.or(generator.start),
        generator: PartSpec { spec: *generator, rules: generator_rules },
        documents: config.optional_size("n_docs")?.unwrap_or(5),
        marginal,
    })))
}
