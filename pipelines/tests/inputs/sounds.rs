use accel_pipelines::audio_input::{Audio, AudioInput, AudioPreprocessor, decode};
use serde_json::{Value, json};

use super::{digest, expected, file, floats, largest_difference, noise};

/// `sound` of the script.
fn sound(count: usize, seed: i64) -> Vec<f32> {
    let sample = |place: usize| {
        let at = place as i64;
        let tone = ((at * at / 700 + at * seed) * 97) % 16384 - 8192;
        (tone + i64::from(noise(place)) * 16 - 2048) as f32 / 32768.0
    };
    (0..count).map(sample).collect()
}

fn mono(rate: u32, samples: Vec<f32>) -> Audio {
    Audio::new(rate, vec![samples]).unwrap()
}

fn prepare(config: Value, sounds: &[Audio]) -> Vec<AudioInput> {
    AudioPreprocessor::parse(config.to_string().as_bytes()).unwrap().prepare(sounds).unwrap()
}

fn ones(input: &AudioInput) -> u64 {
    input.mask.as_ref().unwrap().iter().map(|value| u64::from(*value)).sum()
}

fn check(values: &[f32], case: &str, allowed: f32) {
    let expected = &expected("sounds.json")[case];
    let every = expected["every"].as_u64().unwrap() as usize;
    let found: Vec<f32> = values.iter().copied().step_by(every).collect();
    let difference = largest_difference(&found, &floats(&format!("{case}.f32")));
    println!("{case}: largest difference {difference:e}");
    assert!(difference <= allowed, "{case}: largest difference {difference:e}");
}

#[test]
fn whisper_hears_the_same_energies() {
    for (pitches, seconds) in [(80, 3), (128, 31)] {
        let config = json!({ "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": pitches });
        let [heard] = &prepare(config, &[mono(16_000, sound(16_000 * seconds, 5))])[..] else { panic!("one input") };
        let case = format!("whisper{pitches}");
        // A window at least, and all of what is longer.
        assert_eq!((&heard.shape[..], heard.sound), (&[pitches, 100 * seconds.max(30)][..], 0));
        assert_eq!(ones(heard), expected("sounds.json")[&case]["mask"].as_u64().unwrap());
        check(&heard.values, &case, 1e-6);
    }
}

#[test]
fn wav2vec2_hears_the_same_waves() {
    let second: Vec<f32> = sound(333, 7).iter().map(|sample| sample + 0.25).collect();
    for masked in [false, true] {
        let config = json!({
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "return_attention_mask": masked,
            "do_normalize": true,
        });
        let inputs = prepare(config, &[mono(16_000, sound(400, 3)), mono(16_000, second.clone())]);
        assert_eq!(inputs[1].mask.is_some(), masked);
        assert!(!masked || ones(&inputs[1]) == 333);
        let values: Vec<f32> = inputs.into_iter().flat_map(|input| input.values).collect();
        check(&values, &format!("wav2vec2-{masked}"), 5e-7);
    }
}

#[test]
fn encodec_hears_the_same_waves() {
    let config =
        json!({ "feature_extractor_type": "EncodecFeatureExtractor", "chunk_length_s": 0.01, "overlap": 0.05 });
    let inputs = prepare(config, &[mono(24_000, sound(1000, 3))]);
    assert_eq!(inputs[0].shape, [1, 1152]);
    assert_eq!(ones(&inputs[0]), 1000);
    check(&inputs[0].values, "encodec-mono", 0.0);

    let config =
        json!({ "feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 2, "sampling_rate": 48000 });
    let stereo = |count, left, right| Audio::new(48_000, vec![sound(count, left), sound(count, right)]).unwrap();
    let inputs = prepare(config, &[stereo(300, 3, 9), stereo(200, 4, 8)]);
    let values: Vec<f32> = inputs.into_iter().flat_map(|input| input.values).collect();
    check(&values, "encodec-stereo", 0.0);
}

/// A model without normalisation hears the sound itself, so that rates and channels can be seen through it.
fn heard(rate: u32, sound: Audio) -> Vec<f32> {
    let config = json!({
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": false,
        "sampling_rate": rate,
    });
    prepare(config, &[sound]).remove(0).values
}

#[test]
fn another_rate_sounds_as_by_torchaudio() {
    for case in expected("rates.json").as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap();
        let (from, to) = (number("from") as u32, number("to") as u32);
        let found = heard(to, mono(from, sound(number("count") as usize, 5)));
        let name = case["name"].as_str().unwrap();
        let difference = largest_difference(&found, &floats(&format!("{name}.f32")));
        println!("{name}: largest difference {difference:e}");
        assert!(difference <= 1e-7, "{name}: largest difference {difference:e}");
    }
}

#[test]
fn several_channels_are_heard_as_their_mean() {
    let both = Audio::new(16_000, vec![vec![0.5, -1.0, 0.25], vec![0.25, 1.0, 0.25]]).unwrap();
    assert_eq!(heard(16_000, both), [0.375, 0.0, 0.25]);
}

#[test]
fn files_give_the_samples_that_libsndfile_reads() {
    for (name, expected) in expected("sounds.json").as_object().unwrap() {
        let Some(rate) = expected["rate"].as_u64() else { continue };
        let audio = decode(&file(name)).unwrap();
        assert_eq!(u64::from(audio.rate()), rate, "{name}");
        let shape = vec![audio.channels().len(), audio.frames()];
        assert_eq!(Value::from(shape), expected["shape"], "{name}");
        let samples = audio.channels().concat();
        if name.starts_with("soft") {
            check(&samples, name, 2e-6);
        } else {
            assert_eq!(Value::from(digest(samples)), expected["digest"], "{name}");
        }
    }
}

/// What players write before and after the sound is not heard.
#[test]
fn tags_are_no_sound() {
    let whole = decode(&file("soft.mp3")).unwrap();
    let mut tagged = b"ID3\x04\0\0\0\0\x02\0".to_vec();
    tagged.extend([0; 256]);
    tagged.extend(file("soft.mp3"));
    tagged.extend(b"TAG");
    tagged.extend([0; 125]);
    assert_eq!(decode(&tagged).unwrap(), whole);
}

/// A recording of a broadcast begins anywhere.
#[test]
fn an_mp3_file_may_begin_inside_of_a_frame() {
    assert!(decode(&file("soft.mp3")[900..]).is_ok());
}
