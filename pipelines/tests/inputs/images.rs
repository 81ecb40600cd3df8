use accel_backends::files::LocalFiles;
use accel_pipelines::image_input::{ImageInput, ImagePreprocessor, ImageSize, RgbImage, decode};
use serde_json::Value;

use super::{digest, expected, file, noise};

/// `picture` of the script.
fn picture(size: &Value) -> RgbImage {
    let edge = |place: usize| size[place].as_u64().unwrap() as usize;
    let (height, width) = (edge(0), edge(1));
    let value = |place: usize| {
        let (row, column, channel) = (place / 3 / width, place / 3 % width, place % 3);
        let slope = (row * 5 + column * 3 + channel * 40) / 4 % 256;
        ((slope + usize::from(noise(place))) / 2) as u8
    };
    RgbImage::new(ImageSize { height, width }, (0..height * width * 3).map(value).collect()).unwrap()
}

fn check(input: &ImageInput, expected: &Value, case: &str) {
    assert_eq!(Value::from(input.shape.clone()), expected["shape"], "{case}");
    for sample in expected["some"].as_array().unwrap() {
        let (place, value) = (sample[0].as_u64().unwrap() as usize, sample[1].as_f64().unwrap());
        assert!((f64::from(input.values[place]) - value).abs() < 1e-4, "{case}: value {place}");
    }
    assert_eq!(Value::from(digest(input.values.iter().copied())), expected["digest"], "{case}");
    let mask = input.pixel_mask.as_ref().map(|mask| digest(mask.iter().map(|value| f32::from(*value))));
    assert_eq!(Value::from(mask), expected["mask"], "{case}");
    assert_eq!(Value::from(input.grid.map(Vec::from)), expected["grid"], "{case}");
    if let Some(resized) = expected["resized"].as_array() {
        assert_eq!(
            Value::from(vec![input.resized.height, input.resized.width]),
            Value::from(resized.clone()),
            "{case}"
        );
    }
}

/// Each processor, with its own defaults and as its configuration is saved, gives the bits that Hugging Face's gives.
#[test]
fn processors_give_the_same_bits() {
    for case in expected("images.json").as_array().unwrap() {
        for config in [&case["config"], &case["saved"]] {
            let preprocessor = ImagePreprocessor::parse(config.to_string().as_bytes()).unwrap();
            for run in case["runs"].as_array().unwrap() {
                let pictures: Vec<_> = run["pictures"].as_array().unwrap().iter().map(picture).collect();
                let inputs = preprocessor.prepare(&pictures).unwrap();
                let case = format!("{config} of {}", run["pictures"]);
                assert_eq!(inputs.len(), pictures.len(), "{case}");
                for (place, (input, picture)) in inputs.iter().zip(&pictures).enumerate() {
                    assert_eq!(input.original, picture.size(), "{case}");
                    check(input, &run["expected"][place], &case);
                }
            }
        }
    }
}

/// How far a decoder's pixels may be from those of Pillow's: the most anywhere, and in the mean of all.
fn allowed(name: &str) -> (u8, f64) {
    match name {
        // Without colours, or with colours that are not read from halves.
        "grey.jpg" | "cmyk.jpg" => (1, 0.01),
        "photo-444.jpg" => (2, 0.02),
        _ => (4, 0.41),
    }
}

#[test]
fn files_give_the_pixels_that_pillow_reads() {
    for (name, expected) in expected("files.json").as_object().unwrap() {
        let image = decode(&file(name)).unwrap();
        assert_eq!(Value::from(vec![image.size().height, image.size().width, 3]), expected["shape"], "{name}");
        if let Some(expected) = expected["digest"].as_str() {
            assert_eq!(digest(image.pixels().iter().map(|value| f32::from(*value))), expected, "{name}");
            continue;
        }
        let pillow = decode(&file(&format!("{name}.expected.png"))).unwrap();
        let differences: Vec<_> =
            image.pixels().iter().zip(pillow.pixels()).map(|(found, expected)| found.abs_diff(*expected)).collect();
        let largest = differences.iter().copied().max().unwrap();
        let mean = differences.iter().map(|difference| f64::from(*difference)).sum::<f64>() / differences.len() as f64;
        println!("{name}: largest {largest}, mean {mean:.4}");
        let (largest_allowed, mean_allowed) = allowed(name);
        assert!(largest <= largest_allowed && mean <= mean_allowed, "{name}: largest {largest}, mean {mean:.4}");
    }
}

/// Older files name feature extractors, and newer ones the processors that need torch.
#[test]
fn a_model_names_its_processor() {
    let directory = tempfile::tempdir().unwrap();
    for (key, class) in [
        ("feature_extractor_type", "CLIPFeatureExtractor"),
        ("image_processor_type", "CLIPFeatureExtractor"),
        ("image_processor_type", "CLIPImageProcessorFast"),
    ] {
        let config = serde_json::json!({ key: class, "size": 32, "crop_size": 24 });
        std::fs::write(directory.path().join("preprocessor_config.json"), config.to_string()).unwrap();
        let preprocessor = ImagePreprocessor::read(&LocalFiles::open(directory.path()).unwrap()).unwrap();
        let inputs = preprocessor.prepare(&[picture(&serde_json::json!([50, 40]))]).unwrap();
        assert_eq!(inputs[0].shape, [3, 24, 24]);
    }
}
