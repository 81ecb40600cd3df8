//! Changes the rate of a sound as torchaudio does.
//!
//! This is what speech recognition in `transformers` does with a sound of another rate
//! (`pipelines/automatic_speech_recognition.py` calls `torchaudio.functional.resample`): a sine over its argument, cut by a
//! Hann window after six zeros on each side and rolled off at 0.99 of the lower rate. Windowed-sine crates have other windows.
//! Follows `torchaudio/functional/functional.py`, `_get_sinc_resample_kernel`; the weights are computed in f64.

use std::f64::consts::PI;

/// Zeros of the sine on each side: `lowpass_filter_width`.
const ZEROS: f64 = 6.0;
const ROLLOFF: f64 = 0.99;

/// Samples at another rate: as many as last as long, rounded up. The rates are in Hz and not zero.
pub(super) fn resample(samples: &[f32], from: u32, to: u32) -> Vec<f32> {
    if from == to || samples.is_empty() {
        return samples.to_vec();
    }
    let divisor = greatest_common_divisor(from, to);
    let (from, to) = ((from / divisor) as usize, (to / divisor) as usize);
    // A weight for every place between two samples that a new sample can have, and for every sample within reach.
    let base = from.min(to) as f64 * ROLLOFF;
    let reach = (ZEROS * from as f64 / base).ceil() as usize;
    let taps = 2 * reach + 2;
    let weight = |phase: usize, tap: usize| {
        let sample = (phase * from / to + tap) as f64 - reach as f64;
        let time = ((sample / from as f64 - phase as f64 / to as f64) * base).clamp(-ZEROS, ZEROS);
        let window = libm::cos(time * PI / ZEROS / 2.0).powi(2);
        let angle = time * PI;
        let sinc = if angle == 0.0 { 1.0 } else { libm::sin(angle) / angle };
        (sinc * window * base / from as f64) as f32
    };
    let weights: Vec<f32> = (0..to * taps).map(|place| weight(place / taps, place % taps)).collect();
    let length = (samples.len() as u64 * to as u64).div_ceil(from as u64) as usize;
    let sample = |place: usize| {
        let (turn, phase) = (place / to, place % to);
        let start = turn * from + phase * from / to;
        let phase_weights = &weights[phase * taps..(phase + 1) * taps];
        // Before the first sample and after the last it is silent.
        let first_tap = reach.saturating_sub(start);
        let first = (start + first_tap) - reach;
        let under = samples.get(first..).unwrap_or_default();
        let sum: f64 =
            phase_weights[first_tap..].iter().zip(under).map(|(weight, sample)| f64::from(weight * sample)).sum();
        sum as f32
    };
    (0..length).map(sample).collect()
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
