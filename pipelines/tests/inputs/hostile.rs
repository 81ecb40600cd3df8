use accel_backends::files::LocalFiles;
use accel_pipelines::PipelineError;
use accel_pipelines::audio_input::{self, Audio, AudioPreprocessor};
use accel_pipelines::image_input::{self, ImagePreprocessor, ImageSize, RgbImage};
use accel_protocol::ErrorCode;
use serde_json::{Value, json};

use super::{file, noise};

const PICTURES: [&str; 6] =
    ["turned6.png", "rgb16.png", "photo.jpg", "photo-progressive.jpg", "photo.webp", "lossless.webp"];
const SOUNDS: [&str; 6] = ["mono.wav", "stereo24.wav", "float.wav", "stereo.flac", "soft.ogg", "soft.mp3"];

fn flat(height: usize, width: usize) -> RgbImage {
    RgbImage::new(ImageSize { height, width }, vec![7; height * width * 3]).unwrap()
}

fn image_steps(config: Value) -> ImagePreprocessor {
    ImagePreprocessor::parse(config.to_string().as_bytes()).unwrap()
}

fn with<const LENGTH: usize>(name: &str, place: usize, bytes: [u8; LENGTH]) -> Vec<u8> {
    let mut file = file(name);
    file[place..place + LENGTH].copy_from_slice(&bytes);
    file
}

fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[test]
fn a_cut_picture_is_an_error() {
    for name in PICTURES {
        let whole = file(name);
        for length in (0..whole.len() * 9 / 10).step_by(13) {
            let error = image_input::decode(&whole[..length]).unwrap_err();
            assert!(matches!(error.code(), ErrorCode::InvalidRequest | ErrorCode::Unsupported), "{name}: {error}");
        }
    }
    // The decoder itself would not miss the end of a JPEG file.
    let whole = file("photo.jpg");
    assert!(image_input::decode(&whole[..whole.len() - 2]).is_err());
}

#[test]
fn a_cut_sound_is_an_error() {
    for name in ["mono.wav", "stereo24.wav", "stereo.flac"] {
        let whole = file(name);
        for length in (0..whole.len() - 1).step_by(41) {
            assert!(audio_input::decode(&whole[..length]).is_err(), "{name} of {length} bytes");
        }
    }
    // Ogg is read in pages, of which this file has one for its sound. MP3 is made to be cut.
    let ogg = file("soft.ogg");
    assert!(audio_input::decode(&ogg[..ogg.len() / 2]).is_err());
    let mp3 = file("soft.mp3");
    assert!(audio_input::decode(&mp3[..100]).is_err());
    assert_eq!(audio_input::decode(&mp3[..mp3.len() / 2]).unwrap().frames(), 1199);
}

/// Whatever is changed, a file is read or is an error; nothing panics and nothing is endless.
#[test]
fn damaged_files_are_read_or_errors() {
    for name in PICTURES.iter().chain(&SOUNDS) {
        let whole = file(name);
        for turn in 0..300 {
            let mut damaged = whole.clone();
            for change in 0..3 {
                let random = |which: usize| usize::from(noise(turn * 31 + change * 7 + which));
                // Headers are where it hurts most.
                let length = if turn % 2 == 0 { whole.len().min(200) } else { whole.len() };
                damaged[(random(0) << 8 | random(1)) % length] = random(2) as u8;
            }
            let error = if PICTURES.contains(name) {
                image_input::decode(&damaged).err()
            } else {
                audio_input::decode(&damaged).err()
            };
            if let Some(error) = error {
                assert!(matches!(error.code(), ErrorCode::InvalidRequest | ErrorCode::Unsupported), "{name}: {error}");
            }
        }
    }
}

#[test]
fn a_picture_larger_than_it_looks_is_not_decoded() {
    let mut header = *b"IHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0\0\0\0\0";
    let check = crc(&header[..17]);
    header[17..].copy_from_slice(&check.to_be_bytes());
    let png = with("turned6.png", 12, header);
    // 16383 pixels each way, in 14 bits each.
    let webp = with("photo.webp", 26, [0xff, 0x3f, 0xff, 0x3f]);
    let jpeg = file("photo.jpg");
    let frame = jpeg.windows(2).position(|mark| mark == [0xff, 0xc0]).unwrap();
    let jpeg = with("photo.jpg", frame + 5, [0xff; 4]);
    for (name, bomb) in [("PNG", png), ("WebP", webp), ("JPEG", jpeg)] {
        let error = image_input::decode(&bomb).unwrap_err();
        assert!(matches!(error, PipelineError::InputTooLarge { .. }), "{name}: {error}");
    }
    let error = image_input::decode(&vec![0; image_input::IMAGE_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(error, PipelineError::InputTooLarge { .. }), "{error}");
}

#[test]
fn what_is_no_picture_or_sound_is_unsupported() {
    for bytes in [b"".as_slice(), b"GIF89a\x01\0\x01\0", b"<svg/>", &[0; 4096]] {
        let error = image_input::decode(bytes).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unsupported, "{error}");
        let error = audio_input::decode(bytes).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unsupported, "{error}");
    }
}

#[test]
fn pictures_that_would_become_too_large_are_errors() {
    let clip = image_steps(json!({ "image_processor_type": "CLIPImageProcessor", "size": 2048 }));
    for (height, width) in [(1, 60_000), (60_000, 1)] {
        let error = clip.prepare(&[flat(height, width)]).unwrap_err();
        assert!(matches!(error, PipelineError::InputTooLarge { .. }), "{error}");
    }
    let sam = image_steps(json!({ "image_processor_type": "SamImageProcessor" }));
    let error = sam.prepare(&vec![flat(8, 8); 17]).unwrap_err();
    assert!(matches!(error, PipelineError::InputTooLarge { .. }), "{error}");
    let qwen = image_steps(json!({ "image_processor_type": "Qwen2VLImageProcessor" }));
    let error = qwen.prepare(&[flat(2, 402)]).unwrap_err();
    assert!(error.to_string().contains("at most 200 times as long as wide"), "{error}");
    let glpn = image_steps(json!({ "image_processor_type": "GLPNImageProcessor" }));
    let error = glpn.prepare(&[flat(31, 64)]).unwrap_err();
    assert_eq!(error.to_string(), "the image: 31 x 64 pixels are too few: after resizing, 0 x 64 would be left");
    assert!(RgbImage::new(ImageSize { height: usize::MAX, width: 2 }, vec![0; 6]).is_err());
    assert!(RgbImage::new(ImageSize { height: 0, width: 2 }, Vec::new()).is_err());
}

#[test]
fn wrong_image_configurations_name_the_key() {
    let wrong = [
        (json!({ "size": { "shortest_edge": 0 } }), "preprocessor_config.json: size: shortest_edge: expected a whole"),
        (
            json!({ "size": { "shortest_edge": 1e12 } }),
            "preprocessor_config.json: size: shortest_edge: expected a whole",
        ),
        (json!({ "size": { "edge": 3 } }), "preprocessor_config.json: size: expected height and width, shortest_edge"),
        (json!({ "size": { "longest_edge": 3 } }), "preprocessor_config.json: size: expected shortest_edge, or height"),
        (json!({ "size": [1, 2, 3] }), "preprocessor_config.json: size: expected edges of 1 to 8192 pixels"),
        (json!({ "size": "large" }), "preprocessor_config.json: size: expected edges of 1 to 8192 pixels"),
        (json!({ "crop_size": -4 }), "preprocessor_config.json: crop_size: expected edges"),
        (json!({ "resample": 6 }), "preprocessor_config.json: resample: expected the number of a filter of Pillow"),
        (json!({ "image_mean": [1, 2] }), "preprocessor_config.json: image_mean: expected a number or three of them"),
        (json!({ "image_std": [1, 0, 1] }), "preprocessor_config.json: image_std: expected numbers other than zero"),
        (json!({ "rescale_factor": "1/255" }), "preprocessor_config.json: rescale_factor: expected a number"),
        (json!({ "do_resize": "yes" }), "preprocessor_config.json: do_resize: expected true or false"),
        (json!({ "do_thumbnail": true }), "\"do_thumbnail of CLIPImageProcessor\" is not supported"),
        (
            json!({ "image_processor_type": "FuyuImageProcessor" }),
            "\"FuyuImageProcessor\" is not supported; supported: Beit",
        ),
        (json!({ "image_processor_type": null }), "preprocessor_config.json: image_processor_type: expected the class"),
    ];
    for (changes, expected) in wrong {
        let mut config = json!({ "image_processor_type": "CLIPImageProcessor" });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let error = ImagePreprocessor::parse(config.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains(expected), "{config}: {error}");
        assert!(matches!(error.code(), ErrorCode::ModelInvalid | ErrorCode::Unsupported));
    }
    let empty = tempfile::tempdir().unwrap();
    let error = ImagePreprocessor::read(&LocalFiles::open(empty.path()).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "preprocessor_config.json: entity not found");
    for text in ["", "[]", "{", "null"] {
        let error = ImagePreprocessor::parse(text.as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("preprocessor_config.json: expected a JSON object"), "{error}");
    }
}

#[test]
fn wrong_audio_configurations_name_the_key() {
    let wrong = [
        ("Whisper", json!({ "n_fft": 0 }), "preprocessor_config.json: n_fft: expected a whole number"),
        ("Whisper", json!({ "n_fft": 401 }), "preprocessor_config.json: n_fft: expected an even number"),
        ("Whisper", json!({ "hop_length": 0 }), "preprocessor_config.json: hop_length: expected a whole number"),
        ("Whisper", json!({ "feature_size": 1_000_000 }), "preprocessor_config.json: feature_size: expected a whole"),
        ("Whisper", json!({ "chunk_length": 1e9 }), "preprocessor_config.json: chunk_length: expected a whole"),
        ("Whisper", json!({ "hop_length": 1, "chunk_length": 600 }), "preprocessor_config.json: hop_length: expected"),
        ("Whisper", json!({ "sampling_rate": 1, "chunk_length": 1 }), "preprocessor_config.json: n_fft: expected"),
        ("Whisper", json!({ "dither": 0.1 }), "preprocessor_config.json: dither: expected 0"),
        ("Wav2Vec2", json!({ "feature_size": 2 }), "preprocessor_config.json: feature_size: expected 1"),
        ("Wav2Vec2", json!({ "padding_side": "left" }), "padding_side \"left\" is not supported; supported: right"),
        ("Encodec", json!({ "feature_size": 9 }), "preprocessor_config.json: feature_size: expected a whole number"),
        ("Encodec", json!({ "chunk_length_s": 1e30, "overlap": 0 }), "preprocessor_config.json: chunk_length_s"),
        ("Encodec", json!({ "chunk_length_s": 1, "overlap": 1 }), "preprocessor_config.json: overlap"),
        ("Clap", json!({}), "\"ClapFeatureExtractor\" is not supported; supported: WhisperFeatureExtractor"),
    ];
    for (class, changes, expected) in wrong {
        let mut config = json!({ "feature_extractor_type": format!("{class}FeatureExtractor") });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let error = AudioPreprocessor::parse(config.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains(expected), "{config}: {error}");
    }
}

#[test]
fn sounds_without_samples_or_with_too_many_are_errors() {
    let mono = file("mono.wav");
    // A header, and no samples after it.
    let mut silent = mono[..44].to_vec();
    silent[4..8].copy_from_slice(&36_u32.to_le_bytes());
    silent[40..44].copy_from_slice(&0_u32.to_le_bytes());
    assert_eq!(audio_input::decode(&silent).unwrap_err().code(), ErrorCode::InvalidRequest);
    // A writer that did not know the length yet.
    let mut streamed = mono.clone();
    streamed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    streamed[40..44].copy_from_slice(&(u32::MAX - 36).to_le_bytes());
    assert_eq!(audio_input::decode(&streamed).unwrap().frames(), 900);
    // A length that is not there takes no memory.
    let mut claimed = mono;
    claimed[4..8].copy_from_slice(&0x0300_0024_u32.to_le_bytes());
    claimed[40..44].copy_from_slice(&0x0300_0000_u32.to_le_bytes());
    let error = audio_input::decode(&claimed).unwrap_err();
    assert!(error.to_string().contains("as its header says, found 900"), "{error}");

    assert!(Audio::new(16_000, Vec::new()).is_err());
    assert!(Audio::new(16_000, vec![Vec::new()]).is_err());
    assert!(Audio::new(16_000, vec![vec![0.0; 3], vec![0.0; 2]]).is_err());
    assert!(Audio::new(16_000, vec![vec![f32::NAN]]).is_err());
    assert!(Audio::new(0, vec![vec![0.0]]).is_err());
    let whisper = json!({ "feature_extractor_type": "WhisperFeatureExtractor" });
    let whisper = AudioPreprocessor::parse(whisper.to_string().as_bytes()).unwrap();
    let error = whisper.prepare(&[Audio::new(1, vec![vec![0.0; 9000]]).unwrap()]).unwrap_err();
    assert!(matches!(error, PipelineError::InputTooLarge { .. }), "{error}");
}
