//! The feature extractors that are known, and what a configuration makes of them.
//!
//! Follows `feature_extraction_whisper.py`, `feature_extraction_wav2vec2.py` and `feature_extraction_encodec.py`, and `pad` of
//! `feature_extraction_sequence_utils.py`, in `transformers`.

use crate::error::PipelineError;
use crate::preprocessor::Settings;

use super::log_mel::LogMel;
use super::{AudioInput, SAMPLES_MAX};

const TYPE_KEY: &str = "feature_extractor_type";
const SUPPORTED: [&str; 3] = ["WhisperFeatureExtractor", "Wav2Vec2FeatureExtractor", "EncodecFeatureExtractor"];
/// The highest rate that a configuration may ask for, in Hz.
const MODEL_RATE_MAX: usize = 192_000;
const FRAME_MAX: usize = 1 << 14;
const PITCHES_MAX: usize = 1024;
const WINDOW_SECONDS_MAX: usize = 600;
/// Wav2Vec2 keeps silence from being divided by zero with this.
const VARIANCE_MIN: f64 = 1e-7;

/// How a model's features are made.
pub(super) struct Extractor {
    rate: u32,
    /// What is where there is no sound.
    padding: f32,
    features: Features,
}

enum Features {
    /// Energies by pitch and time of at least so many samples. Whisper.
    LogMel { log_mel: LogMel, pitches: usize, hop: usize, window: usize },
    /// The samples, with a mean of zero and a variance of one where it is asked for. Wav2Vec2 and its kin.
    Waveform { normalize: bool, mask: bool },
    /// The samples of one channel or of two, up to the end of a chunk. EnCodec.
    Codec { channels: usize, chunk: Option<Chunk> },
}

/// How a codec walks over a sound, in samples.
#[derive(Clone, Copy)]
struct Chunk {
    length: usize,
    stride: usize,
}

impl std::fmt::Debug for Extractor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let features = match self.features {
            Features::LogMel { .. } => SUPPORTED[0],
            Features::Waveform { .. } => SUPPORTED[1],
            Features::Codec { .. } => SUPPORTED[2],
        };
        f.debug_struct("Extractor").field("features", &features).field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl Extractor {
    /// Reads the features from a configuration.
    ///
    /// # Errors
    ///
    /// When the extractor or a step is not known, or a key has a value that the extractor cannot use.
    pub(super) fn read(settings: &Settings) -> Result<Self, PipelineError> {
        let class = settings.text(TYPE_KEY)?;
        let class = class.ok_or_else(|| settings.wrong(TYPE_KEY, "the class of a feature extractor"))?;
        let (usual_rate, read): (usize, fn(&Settings, u32) -> _) = match class {
            "WhisperFeatureExtractor" => (16_000, log_mel),
            "Wav2Vec2FeatureExtractor" => (16_000, waveform),
            "EncodecFeatureExtractor" => (24_000, codec),
            other => {
                return Err(PipelineError::Unsupported {
                    what: "the feature extractor",
                    found: other.chars().take(80).collect(),
                    supported: SUPPORTED.join(", "),
                });
            }
        };
        let rate = settings.size("sampling_rate", MODEL_RATE_MAX)?.unwrap_or(usual_rate) as u32;
        if let Some(side) = settings.text("padding_side")?
            && side != "right"
        {
            return Err(PipelineError::Unsupported {
                what: "the feature extractor's padding_side",
                found: side.chars().take(80).collect(),
                supported: "right".into(),
            });
        }
        let padding = settings.number("padding_value")?.unwrap_or(0.0) as f32;
        Ok(Self { rate, padding, features: read(settings, rate)? })
    }

    /// The rate of what the model hears, in Hz.
    pub(super) fn rate(&self) -> u32 {
        self.rate
    }

    /// How many channels the model hears.
    pub(super) fn channels(&self) -> usize {
        match self.features {
            Features::Codec { channels, .. } => channels,
            Features::LogMel { .. } | Features::Waveform { .. } => 1,
        }
    }

    /// Makes the features. sounds: [channels, samples] each, at the model's rate; longest: the most samples of one.
    pub(super) fn extract(&self, sounds: Vec<Vec<Vec<f32>>>, longest: usize) -> Result<Vec<AudioInput>, PipelineError> {
        let mut inputs = Vec::new();
        for (sound, channels) in sounds.into_iter().enumerate() {
            match &self.features {
                Features::LogMel { log_mel, pitches, hop, window } => {
                    let samples = channels.into_iter().next().unwrap_or_default();
                    let (heard, length) = (samples.len(), samples.len().max(*window));
                    let frames = length / hop;
                    if frames.saturating_mul(*pitches) > SAMPLES_MAX {
                        return Err(PipelineError::too_large(
                            "the features of a sound",
                            frames,
                            SAMPLES_MAX / pitches,
                            "frames",
                        ));
                    }
                    let values = log_mel.compute(&padded(samples, length, self.padding));
                    let mask = (0..frames).map(|frame| u8::from(frame * hop < heard)).collect();
                    inputs.push(AudioInput { values, shape: vec![*pitches, frames], mask: Some(mask), sound });
                }
                Features::Waveform { normalize, mask } => {
                    let samples = channels.into_iter().next().unwrap_or_default();
                    inputs.push(self.waveform(samples, longest, *normalize, *mask, sound));
                }
                Features::Codec { chunk, .. } => {
                    let length = chunk.map_or(longest, |chunk| chunk.end(longest));
                    if length.saturating_mul(channels.len()) > SAMPLES_MAX {
                        return Err(PipelineError::too_large("a padded sound", length, SAMPLES_MAX, "samples"));
                    }
                    let mask = mask(channels[0].len(), length);
                    let shape = vec![channels.len(), length];
                    let channels = channels.into_iter().map(|samples| padded(samples, length, self.padding));
                    let values = channels.collect::<Vec<_>>().concat();
                    inputs.push(AudioInput { values, shape, mask: Some(mask), sound });
                }
            }
        }
        Ok(inputs)
    }

    fn waveform(&self, samples: Vec<f32>, longest: usize, normalize: bool, masked: bool, sound: usize) -> AudioInput {
        let count = samples.len();
        let mut values = padded(samples, longest, self.padding);
        if normalize {
            // Without a mask the padding is normalised with the sound: models that read no mask were trained on that.
            let heard = if masked { count } else { longest };
            to_zero_mean_and_unit_variance(&mut values[..heard]);
        }
        AudioInput { values, shape: vec![longest], mask: masked.then(|| mask(count, longest)), sound }
    }
}

impl Chunk {
    /// Where the last chunk ends that begins inside so many samples.
    fn end(self, samples: usize) -> usize {
        (samples.div_ceil(self.stride) - 1) * self.stride + self.length
    }
}

fn log_mel(settings: &Settings, rate: u32) -> Result<Features, PipelineError> {
    if settings.number("dither")?.is_some_and(|dither| dither != 0.0) {
        return Err(settings.wrong("dither", "0: noise that differs each time is not supported"));
    }
    let pitches = settings.size("feature_size", PITCHES_MAX)?.unwrap_or(80);
    let frame = settings.size("n_fft", FRAME_MAX)?.unwrap_or(400);
    let hop = settings.size("hop_length", FRAME_MAX)?.unwrap_or(160);
    let seconds = settings.size("chunk_length", WINDOW_SECONDS_MAX)?.unwrap_or(30);
    let window = seconds * rate as usize;
    if frame % 2 != 0 || frame > window {
        return Err(settings.wrong("n_fft", format!("an even number up to the {window} samples of a window")));
    }
    if hop > window || (window / hop).saturating_mul(pitches) > SAMPLES_MAX {
        return Err(settings.wrong("hop_length", format!("at most {window}, and at most {SAMPLES_MAX} values")));
    }
    Ok(Features::LogMel { log_mel: LogMel::new(frame, hop, pitches, rate), pitches, hop, window })
}

fn waveform(settings: &Settings, _rate: u32) -> Result<Features, PipelineError> {
    if settings.size("feature_size", PITCHES_MAX)?.is_some_and(|size| size != 1) {
        return Err(settings.wrong("feature_size", "1"));
    }
    let normalize = settings.truth("do_normalize", true)?;
    Ok(Features::Waveform { normalize, mask: settings.truth("return_attention_mask", false)? })
}

fn codec(settings: &Settings, rate: u32) -> Result<Features, PipelineError> {
    let channels = settings.size("feature_size", 2)?.unwrap_or(1);
    let seconds = settings.number("chunk_length_s")?;
    let overlap = settings.number("overlap")?;
    let chunk = match seconds.zip(overlap) {
        Some((seconds, overlap)) => {
            let length = seconds * f64::from(rate);
            if !(1.0..=SAMPLES_MAX as f64).contains(&length) {
                return Err(settings.wrong("chunk_length_s", format!("1 to {SAMPLES_MAX} samples")));
            }
            if !(0.0..1.0).contains(&overlap) {
                return Err(settings.wrong("overlap", "a part from 0 to less than 1"));
            }
            let length = length as usize;
            Some(Chunk { length, stride: (((1.0 - overlap) * length as f64) as usize).max(1) })
        }
        None => None,
    };
    Ok(Features::Codec { channels, chunk })
}

fn padded(mut samples: Vec<f32>, length: usize, value: f32) -> Vec<f32> {
    samples.resize(length, value);
    samples
}

fn mask(samples: usize, length: usize) -> Vec<u8> {
    (0..length).map(|place| u8::from(place < samples)).collect()
}

/// Sums in f64, so that the order of the samples does not matter.
fn to_zero_mean_and_unit_variance(samples: &mut [f32]) {
    let count = samples.len() as f64;
    let mean = samples.iter().map(|sample| f64::from(*sample)).sum::<f64>() / count;
    let variance = samples.iter().map(|sample| (f64::from(*sample) - mean).powi(2)).sum::<f64>() / count;
    let (mean, deviation) = (mean as f32, (variance + VARIANCE_MIN).sqrt() as f32);
    samples.iter_mut().for_each(|sample| *sample = (*sample - mean) / deviation);
}
