//! Pictures and sounds against what Hugging Face's processors make of them, and files that nobody should send.
//!
//! The expected values are in `data/inputs`, with the script that wrote them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "inputs/hostile.rs"]
mod hostile;
#[path = "inputs/images.rs"]
mod images;
#[path = "inputs/sounds.rs"]
mod sounds;

use std::path::PathBuf;

use serde_json::Value;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/inputs").join(name)
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

fn expected(name: &str) -> Value {
    serde_json::from_slice(&file(name)).unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    file(name).chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// `noise` of the script.
fn noise(place: usize) -> u8 {
    let mut mixed = (place as u32).wrapping_mul(2_654_435_761);
    mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519);
    (mixed >> 24) as u8
}

/// `digest` of the script.
fn digest(values: impl IntoIterator<Item = f32>) -> String {
    let weighed = |(place, value): (usize, f32)| {
        (u64::from(value.to_bits()) ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(2 * place as u64 + 1)
    };
    let sum = values.into_iter().enumerate().map(weighed).fold(0, u64::wrapping_add);
    format!("{sum:016x}")
}

/// The largest difference of two lists of equal length.
fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max)
}
