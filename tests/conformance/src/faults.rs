//! References that are wrong themselves, as data: which cases, in what, and why.

use serde_json::{Value, json};

use crate::case::Case;

/// A fault of the library that answered.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    model_types: &'static [&'static str],
    when: Option<Setting>,
    part: Part,
    /// What is wrong.
    pub reason: &'static str,
}

/// A key of the configuration, and the value with which a fault shows.
type Setting = (&'static str, fn() -> Value);

/// What of a reference is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    All,
    Generation,
}

/// Types that have the layers of `BertSelfAttention`, and among them those that have the positions of
/// `RobertaEmbeddings`.
const BERT: &[&str] = &["bert", "camembert", "data2vec-text", "ernie", "roberta", "xlm-roberta"];
const ROBERTA: &[&str] = &["camembert", "data2vec-text", "roberta", "xlm-roberta"];

const FAULTS: &[Fault] = &[
    Fault {
        model_types: &["falcon"],
        when: Some(("alibi", || json!(true))),
        part: Part::All,
        reason: "transformers adds ALiBi twice with eager attention; checkpoints were trained with it once",
    },
    Fault {
        model_types: BERT,
        when: Some(("position_embedding_type", || json!("relative_key"))),
        part: Part::Generation,
        reason: "transformers measures distances of a whole prompt from its last token as soon as there is a cache",
    },
    Fault {
        model_types: BERT,
        when: Some(("position_embedding_type", || json!("relative_key_query"))),
        part: Part::Generation,
        reason: "transformers measures distances of a whole prompt from its last token as soon as there is a cache",
    },
    Fault {
        model_types: ROBERTA,
        when: Some(("position_embedding_type", || json!("absolute"))),
        part: Part::Generation,
        reason: "transformers counts positions from 0 where it generates, and from after the padding's id elsewhere",
    },
    Fault {
        model_types: &["rwkv"],
        when: None,
        part: Part::Generation,
        reason: "transformers mixes the states of sequences in a batch of several",
    },
];

/// The known fault of a case's reference.
pub fn known(case: &Case) -> Option<&'static Fault> {
    FAULTS.iter().find(|fault| {
        fault.model_types.contains(&case.model_type.as_str())
            && fault.when.is_none_or(|(key, value)| case.config().is_ok_and(|config| config[key] == value()))
    })
}

impl Fault {
    /// Whether it explains all of these faults of answers, each of which begins with the name of an output.
    pub fn covers(&self, faults: &[String]) -> bool {
        self.part == Part::All || faults.iter().all(|fault| fault.starts_with("gen."))
    }
}
