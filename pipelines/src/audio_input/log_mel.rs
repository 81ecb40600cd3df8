//! The logarithm of a sound's energy by pitch and time, as Whisper reads it.
//!
//! Follows `_np_extract_fbank_features` of `feature_extraction_whisper.py`, and `spectrogram`, `mel_filter_bank` and
//! `window_function` of `audio_utils.py`, in `transformers`: the waves in f64, their spectrum rounded to f32, energies in f64.

use std::f64::consts::PI;
use std::ops::Range;
use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

/// The highest pitch that counts, in Hz, whatever the rate.
const FREQUENCY_MAX: f64 = 8000.0;
/// Energies below are taken for this much.
const ENERGY_MIN: f64 = 1e-10;

/// What turns samples into the logarithm of their energies.
pub(super) struct LogMel {
    window: Vec<f64>,
    hop: usize,
    filters: Vec<Filter>,
    transform: Arc<dyn RealToComplex<f64>>,
}

/// How much of each frequency counts for one pitch; frequencies outside do not count.
#[derive(Debug, PartialEq)]
struct Filter {
    frequencies: Range<usize>,
    weights: Vec<f64>,
}

impl LogMel {
    /// For frames of so many samples, one every `hop`, and so many pitches.
    pub(super) fn new(frame: usize, hop: usize, pitches: usize, rate: u32) -> Self {
        let window = (0..frame).map(|place| 0.5 - 0.5 * libm::cos(2.0 * PI * place as f64 / frame as f64)).collect();
        let transform = RealFftPlanner::new().plan_fft_forward(frame);
        Self { window, hop, filters: filters(frame / 2 + 1, pitches, rate), transform }
    }

    /// Energies by pitch and time. samples: more than half a frame; returns [pitches, samples / hop]
    pub(super) fn compute(&self, samples: &[f32]) -> Vec<f32> {
        let frame = self.window.len();
        let frames = samples.len() / self.hop;
        let mut wave = vec![0.0; frame];
        let mut spectrum = self.transform.make_output_vec();
        let mut scratch = self.transform.make_scratch_vec();
        let mut energies = vec![0.0; spectrum.len()];
        let mut values = vec![0.0_f32; self.filters.len() * frames];
        for time in 0..frames {
            let start = time * self.hop;
            for (place, (value, window)) in wave.iter_mut().zip(&self.window).enumerate() {
                *value = f64::from(samples[reflected(start + place, frame / 2, samples.len())]) * window;
            }
            // The lengths are those that the transform asked for, so there is no error to have.
            if self.transform.process_with_scratch(&mut wave, &mut spectrum, &mut scratch).is_err() {
                spectrum.fill(Default::default());
            }
            for (energy, wave) in energies.iter_mut().zip(&spectrum) {
                let (real, imaginary) = (f64::from(wave.re as f32), f64::from(wave.im as f32));
                *energy = real * real + imaginary * imaginary;
            }
            for (pitch, filter) in self.filters.iter().enumerate() {
                let weighted = filter.weights.iter().zip(&energies[filter.frequencies.clone()]);
                let energy: f64 = weighted.map(|(weight, energy)| weight * energy).sum();
                values[pitch * frames + time] = libm::log10(energy.max(ENERGY_MIN)) as f32;
            }
        }
        let floor = values.iter().copied().fold(f32::MIN, f32::max) - 8.0;
        values.iter_mut().for_each(|value| *value = (value.max(floor) + 4.0) / 4.0);
        values
    }
}

/// The sample at a place of the sound with half a frame of its own reflection at each end.
fn reflected(place: usize, half: usize, length: usize) -> usize {
    if place < half {
        half - place
    } else if place - half < length {
        place - half
    } else {
        2 * (length - 1) - (place - half)
    }
}

/// Triangles that are equally wide in the Slaney scale of pitch, each with the same area.
fn filters(frequencies: usize, pitches: usize, rate: u32) -> Vec<Filter> {
    let highest = hertz_to_mel(FREQUENCY_MAX);
    let step = highest / (pitches + 1) as f64;
    let corners: Vec<f64> = (0..pitches + 2)
        .map(|corner| mel_to_hertz(if corner == pitches + 1 { highest } else { step * corner as f64 }))
        .collect();
    let frequency_step = f64::from(rate / 2) / (frequencies - 1) as f64;
    let filter = |corners: &[f64]| {
        let (low, middle, high) = (corners[0], corners[1], corners[2]);
        let weight = |frequency: usize| {
            let frequency = frequency as f64 * frequency_step;
            let (up, down) = ((frequency - low) / (middle - low), (high - frequency) / (high - middle));
            up.min(down).max(0.0) * (2.0 / (high - low))
        };
        let inside: Vec<usize> = (0..frequencies).filter(|frequency| weight(*frequency) > 0.0).collect();
        let range = inside.first().map_or(0..0, |first| *first..first + inside.len());
        Filter { weights: range.clone().map(weight).collect(), frequencies: range }
    };
    corners.windows(3).map(filter).collect()
}

/// Below 1000 Hz pitch goes with frequency, above with its logarithm.
const LINEAR_HERTZ_MAX: f64 = 1000.0;
const LINEAR_MEL_MAX: f64 = 15.0;

fn log_step() -> f64 {
    libm::log(6.4) / 27.0
}

fn hertz_to_mel(frequency: f64) -> f64 {
    if frequency < LINEAR_HERTZ_MAX {
        3.0 * frequency / 200.0
    } else {
        LINEAR_MEL_MAX + libm::log(frequency / LINEAR_HERTZ_MAX) / log_step()
    }
}

fn mel_to_hertz(mel: f64) -> f64 {
    if mel < LINEAR_MEL_MAX {
        200.0 * mel / 3.0
    } else {
        LINEAR_HERTZ_MAX * libm::exp(log_step() * (mel - LINEAR_MEL_MAX))
    }
}
