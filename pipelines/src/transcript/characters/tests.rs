//! Texts that `Wav2Vec2CTCTokenizer` of transformers 4.57 made with the same files.

use accel_backends::files::LocalFiles;
use serde_json::json;

use super::*;

const HEARD: [u32; 20] = [1, 2, 2, 0, 2, 1, 1, 3, 1, 4, 5, 5, 0, 9, 8, 7, 1, 6, 0, 99];

fn read(files: &[(&str, Value)]) -> Result<Characters, PipelineError> {
    let directory = tempfile::tempdir().unwrap();
    for (name, value) in files {
        std::fs::write(directory.path().join(name), value.to_string()).unwrap();
    }
    Characters::read(&LocalFiles::open(directory.path()).unwrap())
}

fn vocabulary() -> Value {
    json!({ "[PAD]": 0, "|": 1, "A": 2, "B": 3, "'": 4, "S": 5, ".": 6, "[UNK]": 7 })
}

#[test]
fn files_of_every_age_give_the_same_characters() {
    let config = json!({
        "pad_token": "[PAD]", "unk_token": "[UNK]", "do_lower_case": true, "clean_up_tokenization_spaces": true,
    });
    let special = json!({ "eos_token": "</s>", "unk_token": { "content": "[UNK]", "lstrip": false } });
    let mut files = vec![
        (VOCABULARY_FILE, vocabulary()),
        (CONFIG_FILE, config),
        (SPECIAL_FILE, special),
        (ADDED_FILE, json!({ "<s>": 8, "</s>": 9 })),
    ];
    assert_eq!(read(&files).unwrap().text(&HEARD), "aa b's</s><s>[unk].[unk]");
    // What no file numbers comes after the characters.
    files.pop();
    assert_eq!(read(&files).unwrap().text(&HEARD), "aa b's</s><s>[unk].[unk]");
    assert_eq!(read(&files).unwrap().text(&[]), "");
}

#[test]
fn words_end_as_the_files_say() {
    let tokens = |more: Value| {
        let mut config = json!({ "pad_token": "[PAD]", "unk_token": "[UNK]" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let nested = json!({ "deu": vocabulary(), "eng": { "X": 1 } });
    let config = tokens(json!({ "target_lang": "deu", "replace_word_delimiter_char": "_" }));
    let german = read(&[(VOCABULARY_FILE, nested.clone()), (CONFIG_FILE, config)]).unwrap();
    assert_eq!(german.text(&HEARD), "_AA_B_'S</s><s>[UNK]_.[UNK]");
    let config = tokens(json!({ "word_delimiter_token": null }));
    let none = read(&[(VOCABULARY_FILE, vocabulary()), (CONFIG_FILE, config)]).unwrap();
    assert_eq!(none.text(&HEARD), "|AA|B|'S</s><s>[UNK]|.[UNK]");

    for (files, words) in [
        (vec![], "vocab.json: expected the file"),
        (vec![(VOCABULARY_FILE, nested)], "expected the number of a character"),
        (vec![(VOCABULARY_FILE, json!({ "A": -1 }))], "\"A\""),
        (vec![(VOCABULARY_FILE, json!([]))], "vocab.json"),
        (vec![(VOCABULARY_FILE, vocabulary()), (CONFIG_FILE, json!({ "do_lower_case": 3 }))], "do_lower_case"),
        (vec![(VOCABULARY_FILE, vocabulary()), (CONFIG_FILE, json!({ "pad_token": 3 }))], "pad_token"),
    ] {
        let error = read(&files).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
