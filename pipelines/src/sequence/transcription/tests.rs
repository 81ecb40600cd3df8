use super::*;

/// Times are 100 and above.
fn sound(frames: usize) -> Sound {
    let input = AudioInput { values: vec![0.5; 2 * frames], shape: vec![2, frames], mask: None, sound: 0 };
    Sound::new(input, 40, Some(100))
}

fn said(tokens: &[u32]) -> Vec<Said> {
    tokens.iter().map(|&token| (token, None)).collect()
}

#[test]
fn windows_end_where_the_model_was_last_sure() {
    for (tokens, certain, kept, frames) in [
        (&[1, 2, 3][..], 3, 3, None),
        (&[], 0, 0, None),
        // Times that do not follow one another end nothing.
        (&[100, 1, 2, 107], 4, 4, None),
        (&[100, 1, 107, 107, 2, 3], 4, 4, Some(14)),
        (&[100, 1, 105, 105, 2, 109, 110, 3], 7, 7, Some(18)),
        // One time at the end: silence follows.
        (&[100, 1, 105, 105, 2, 109], 4, 6, None),
        (&[100, 1, 105, 105], 4, 4, Some(10)),
    ] {
        let sound = sound(100);
        let said = said(tokens);
        assert_eq!((sound.certain(&said), sound.end(&said)), (certain, End { kept, frames }), "{tokens:?}");
    }
}

#[test]
fn a_sound_is_heard_to_its_end_and_no_window_twice() {
    let mut sound = sound(100);
    assert!(sound.turn(&said(&[100, 1, 107, 107, 2])).unwrap());
    assert_eq!(sound.seek, 14);
    assert!(sound.turn(&said(&[1])).unwrap());
    assert_eq!(sound.seek, 54);
    assert!(sound.turn(&said(&[100, 100])).is_err());
    assert!(sound.turn(&said(&[])).unwrap());
    // The last window has six frames of sound.
    assert_eq!(sound.seek, 94);
    assert!(!sound.turn(&said(&[5])).unwrap());
    assert_eq!(sound.seek, 100);
}

fn prompt(settings: &Value, language: Option<&str>, timed: bool) -> Result<Prompt, String> {
    let settings = settings.as_object().unwrap();
    let read = Transcription::read(settings, &Map::new()).map_err(|error| error.to_string())?;
    read.prompt(50, language, timed).map_err(|error| error.to_string())
}

#[test]
fn a_sequence_begins_as_the_files_and_the_person_say() {
    let multilingual = serde_json::json!({
        "is_multilingual": true, "no_timestamps_token_id": 63, "forced_decoder_ids": [[1, null], [2, 61]],
        "lang_to_id": { "<|en|>": 51, "<|de|>": 52, "<|zh|>": 53 }, "task_to_id": { "transcribe": 61, "translate": 60 },
    });
    let tokens = |language, timed| prompt(&multilingual, language, timed).map(|prompt| prompt.tokens);
    for german in ["de", "German", "<|de|>", "DE"] {
        assert_eq!(tokens(Some(german), false).unwrap(), [50, 52, 61, 63], "{german}");
    }
    assert_eq!(tokens(Some("mandarin"), true).unwrap(), [50, 53, 61]);
    assert!(tokens(Some("french"), false).unwrap_err().contains("expected one of de, en, zh"));
    let mut found = prompt(&multilingual, None, false).unwrap();
    let mut logits = vec![0.0; 64];
    (logits[52], logits[53], logits[9]) = (3.0, 3.0, 9.0);
    found.settle(&logits).unwrap();
    assert_eq!(found, Prompt { tokens: vec![50, 52, 61, 63], read: 1, is_text: false, languages: Vec::new() });
    logits[51] = f32::NAN;
    assert!(prompt(&multilingual, None, false).unwrap().settle(&logits).is_err());

    let english = serde_json::json!({
        "is_multilingual": false, "no_timestamps_token_id": 63, "forced_decoder_ids": [[1, 63]],
    });
    assert_eq!(prompt(&english, None, false).unwrap().tokens, [50, 63]);
    assert_eq!(prompt(&english, None, true).unwrap().tokens, [50]);
    assert!(prompt(&english, Some("en"), false).unwrap_err().contains("one language only"));

    let translator = serde_json::json!({
        "task": "translate", "language": "german", "lang_to_id": { "<|de|>": 52 }, "task_to_id": { "translate": 60 },
    });
    assert_eq!(prompt(&translator, None, false).unwrap().tokens, [50, 52, 60]);
    for (settings, words) in [
        (serde_json::json!({ "logprob_threshold": -1.0 }), "logprob_threshold"),
        (serde_json::json!({ "condition_on_prev_tokens": true }), "condition_on_prev_tokens"),
        (serde_json::json!({ "forced_decoder_ids": [[2, 61]] }), "forced_decoder_ids"),
        (serde_json::json!({ "lang_to_id": { "<|de|>": -1 } }), "lang_to_id"),
        (serde_json::json!({ "task": "sing" }), "task_to_id"),
    ] {
        assert!(prompt(&settings, None, false).unwrap_err().contains(words), "{settings}");
    }
}
