//! References that are wrong themselves, as data: which cases, in what, and why.

use serde_json::Value;

use crate::case::Case;

/// A fault of the library that answered.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    model_types: &'static [&'static str],
    when: &'static [Setting],
    part: Part,
    /// What is wrong.
    pub reason: &'static str,
}

/// A key of the configuration, and whether a fault shows with a value of it.
type Setting = (&'static str, fn(&Value) -> bool);

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

/// Positions that count from the query.
const RELATIVE: Setting =
    ("position_embedding_type", |value| *value == "relative_key" || *value == "relative_key_query");

/// Keys and values are kept, as they are where nothing is said.
const CACHED: Setting = ("use_cache", |value| *value != false);

/// Tokens see near ones only.
const WINDOW: Setting = ("sliding_window", |value| value.is_number());

const FAULTS: &[Fault] = &[
    Fault {
        model_types: &["falcon"],
        when: &[("alibi", |value| *value == true)],
        part: Part::All,
        reason: "transformers adds ALiBi twice with eager attention; checkpoints were trained with it once",
    },
    Fault {
        model_types: BERT,
        // A decoder has a cache in a forward call too.
        when: &[RELATIVE, CACHED, ("is_decoder", |value| *value == true)],
        part: Part::All,
        reason: "transformers measures distances of a whole prompt from its last token as soon as there is a cache",
    },
    Fault {
        model_types: BERT,
        when: &[RELATIVE, CACHED],
        part: Part::Generation,
        reason: "transformers measures distances of a whole prompt from its last token as soon as there is a cache",
    },
    Fault {
        model_types: &["bloom"],
        when: &[
            ("slow_but_exact", |value| *value == true),
            ("pretraining_tp", |value| value.as_u64().is_some_and(|parts| parts > 1)),
        ],
        part: Part::All,
        reason: "transformers leaves out biases where it sums up the products of parts",
    },
    Fault {
        model_types: &["deepseek_v2"],
        when: &[("rope_scaling", |scaling| {
            let number = |key: &str| scaling[key].as_f64();
            number("mscale_all_dim").is_some_and(|weight| weight != 0.0) && number("factor") > Some(1.0)
        })],
        part: Part::All,
        reason: "transformers leaves YaRN's part of the scores' factor out, as it did until its pull request 47435",
    },
    Fault {
        model_types: &["phimoe", "qwen2_moe"],
        when: &[WINDOW, CACHED],
        part: Part::Generation,
        reason: "transformers cuts keys that left the window off the cache, and as many off the other end of the mask",
    },
    Fault {
        model_types: &["gpt_oss"],
        when: &[("sliding_window", |value| *value == 1)],
        part: Part::Generation,
        reason: "transformers keeps all keys of a layer that sees one token, where it generates, instead of none",
    },
    Fault {
        model_types: &["nllb-moe"],
        when: &[("tie_word_embeddings", |value| *value == false)],
        part: Part::All,
        reason: "transformers draws the tables of both stacks at random when it loads what it saved with one for both",
    },
    Fault {
        model_types: ROBERTA,
        when: &[("position_embedding_type", |value| *value == "absolute")],
        part: Part::Generation,
        reason: "transformers counts positions from 0 where it generates, and from after the padding's id elsewhere",
    },
    Fault {
        model_types: &["rwkv"],
        when: &[],
        part: Part::Generation,
        reason: "transformers mixes the states of sequences in a batch of several",
    },
];

/// The known fault of a case's reference.
pub fn known(case: &Case) -> Option<&'static Fault> {
    FAULTS.iter().find(|fault| {
        fault.model_types.contains(&case.model_type.as_str())
            && fault.when.iter().all(|(key, shows)| case.config().is_ok_and(|config| shows(&config[*key])))
    })
}

impl Fault {
    /// Whether it explains all of these faults of answers, each of which begins with the name of an output.
    pub fn covers(&self, faults: &[String]) -> bool {
        self.part == Part::All || faults.iter().all(|fault| fault.starts_with("gen."))
    }
}
