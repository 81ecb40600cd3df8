//! Tokenizers of models without `tokenizer.json`, against what transformers makes of the same files
//! (tests/scripts/older_tokenizers.py).

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::{Path, PathBuf};

use accel_backends::files::LocalFiles;
use accel_pipelines::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers").join(name)
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder("")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 20);
    names
}

fn load(folder: &Path) -> Result<Tokenizer, String> {
    Tokenizer::load(&LocalFiles::open(folder).unwrap(), None).map_err(|error| error.to_string())
}

#[test]
fn vocabularies_give_the_tokens_of_transformers() {
    let mut wrong = Vec::new();
    for name in names() {
        let tokenizer = load(&folder(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let told: Value = serde_json::from_slice(&std::fs::read(folder(&name).join("expected.json")).unwrap()).unwrap();
        for row in told["texts"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let ids = tokenizer.encode_text(text).unwrap();
            let bare = tokenizer.encode_prompt(text).unwrap();
            let decoded = tokenizer.decode(&ids).unwrap();
            let found = [("ids", json!(ids)), ("bare", json!(bare)), ("decoded", json!(decoded))];
            let different = found.iter().filter(|(what, found)| row[*what] != *found);
            wrong.extend(different.map(|(what, found)| {
                format!("{name}: {text:?}: {what}:\n  expected {}\n  found    {found}", row[*what])
            }));
        }
        for pair in told["pairs"].as_array().unwrap() {
            let encoded = tokenizer.encode(pair["texts"][0].as_str().unwrap(), pair["texts"][1].as_str()).unwrap();
            let found = json!([encoded[0].get_ids(), encoded[0].get_type_ids()]);
            let expected = json!([pair["ids"], pair["types"]]);
            if found != expected {
                wrong.push(format!("{name}: pair:\n  expected {expected}\n  found    {found}"));
            }
        }
        let special = &told["special"];
        for (what, id) in [
            ("mask", tokenizer.mask().map(|(id, _)| id)),
            ("pad", tokenizer.padding()),
            ("unk", tokenizer.unknown()),
            ("cls", tokenizer.class()),
        ] {
            if json!(id) != special[what] {
                wrong.push(format!("{name}: {what}: expected {}, found {id:?}", special[what]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_is_missing_or_not_known_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
    let refused = || load(directory.path()).err().unwrap();
    assert!(refused().contains("tokenizer.json: expected the file"), "{}", refused());
    write("config.json", r#"{"model_type": "t5"}"#);
    assert!(refused().contains("tokenizer.model: expected the file"), "{}", refused());
    write("spiece.model", "no protocol buffer");
    assert!(refused().contains("spiece.model"), "{}", refused());
    write("tokenizer_config.json", r#"{"tokenizer_class": "BertTokenizerFast"}"#);
    assert!(refused().contains("vocab.txt: expected the file, or tokenizer.json"), "{}", refused());
    write("vocab.txt", "[UNK]\n[SEP]\nword\n");
    assert!(load(directory.path()).is_ok(), "{}", refused());
    write("added_tokens.json", r#"{"far": 99}"#);
    assert!(refused().contains("found 99"), "{}", refused());
    std::fs::remove_file(directory.path().join("added_tokens.json")).unwrap();
    write("tokenizer_config.json", r#"{"tokenizer_class": "FunnelTokenizer"}"#);
    assert!(refused().contains("FunnelTokenizer") && refused().contains("BertTokenizer"), "{}", refused());
    write("tokenizer_config.json", r#"{"tokenizer_class": "RobertaTokenizer"}"#);
    write("vocab.json", r#"{"a": 0, "b": 1, "<s>": 2}"#);
    write("merges.txt", "#version: 0.2\na b\n");
    assert!(refused().contains("tokenizer.json"), "{}", refused());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_change_of_a_vocabulary_breaks_the_reader(
        case in prop_oneof![
            Just(("llama", "tokenizer.model")), Just(("camembert", "sentencepiece.bpe.model")), Just(("bert", "vocab.txt")),
            Just(("gpt2", "vocab.json")), Just(("gpt2", "merges.txt")), Just(("t5-first", "spiece.model")),
        ],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (name, file) = case;
        let directory = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
        }
        let mut bytes = std::fs::read(folder(name).join(file)).unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(directory.path().join(file), &bytes).unwrap();
        if let Ok(tokenizer) = load(directory.path()) {
            let _refused = tokenizer.encode_text("Hello, wörld! 42");
        }
    }
}
