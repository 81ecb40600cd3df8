//! From people's sounds to the values that a speech or audio model reads.
//!
//! A sound is decoded ([`decode()`]), then goes through the steps of the model's `preprocessor_config.json`
//! ([`AudioPreprocessor`]): mixed to the model's channels, brought to its rate, and made into features. The features are
//! those of `transformers` 4.57 (`src/transformers/models/{whisper,wav2vec2,encodec}/feature_extraction_*.py`); sums are in
//! another order than NumPy's, so that values differ in their last bits.
//!
//! Long sounds stay whole, as in `transformers`' speech recognition: where a model reads windows, its caller cuts features.

mod decode;
mod extractor;
mod log_mel;
mod resample;

use accel_backends::files::ModelFiles;
use accel_protocol::{Input, Task};

use crate::error::PipelineError;
use crate::preprocessor::Settings;

pub use decode::{AUDIO_BYTES_MAX, decode};
use extractor::Extractor;

/// The most samples of a sound over all its channels: 46 minutes of mono at 48 kHz. They take 4 bytes each.
pub const SAMPLES_MAX: usize = 1 << 27;
/// The most channels of a sound.
pub const CHANNELS_MAX: usize = 32;
/// The highest rate of a sound, in Hz.
pub const RATE_MAX: u32 = 768_000;

/// A sound.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    rate: u32,
    channels: Vec<Vec<f32>>,
}

impl Audio {
    /// A sound from its samples, usually from -1 to 1. rate: Hz; channels: [channels, frames]
    ///
    /// # Errors
    ///
    /// When it has no samples or too many, channels of several lengths, samples that are no numbers, or a rate out of bounds.
    pub fn new(rate: u32, channels: Vec<Vec<f32>>) -> Result<Self, PipelineError> {
        let frames = channels.first().map_or(0, Vec::len);
        if frames == 0 {
            return Err(damaged("expected samples, found none"));
        }
        if rate == 0 || rate > RATE_MAX {
            return Err(damaged(format!("expected a rate of 1 to {RATE_MAX} Hz, found {rate}")));
        }
        if channels.len() > CHANNELS_MAX || channels.iter().any(|channel| channel.len() != frames) {
            let found = format!("{} with {frames} in the first", channels.len());
            return Err(damaged(format!("expected at most {CHANNELS_MAX} channels of one length, found {found}")));
        }
        let samples = frames.saturating_mul(channels.len());
        if samples > SAMPLES_MAX {
            return Err(PipelineError::too_large("a sound", samples, SAMPLES_MAX, "samples"));
        }
        if channels.iter().flatten().any(|sample| !sample.is_finite()) {
            return Err(damaged("expected finite samples, found others"));
        }
        Ok(Self { rate, channels })
    }

    /// Samples a second in each channel.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Its samples. [channels, frames]
    pub fn channels(&self) -> &[Vec<f32>] {
        &self.channels
    }

    /// How many samples each channel has.
    pub fn frames(&self) -> usize {
        self.channels.first().map_or(0, Vec::len)
    }

    /// The sound at another rate and with one channel, the mean of its own, or with two. One channel becomes two alike.
    fn converted(&self, rate: u32, channels: usize) -> Result<Vec<Vec<f32>>, PipelineError> {
        let longer = u64::from(rate).div_ceil(u64::from(self.rate));
        let samples = (self.frames() as u64).saturating_mul(longer).saturating_mul(channels as u64);
        if samples > SAMPLES_MAX as u64 {
            let samples = usize::try_from(samples).unwrap_or(usize::MAX);
            return Err(PipelineError::too_large("a sound at the model's rate", samples, SAMPLES_MAX, "samples"));
        }
        let resampled = |channel: &Vec<f32>| resample::resample(channel, self.rate, rate);
        match (self.channels.as_slice(), channels) {
            ([one], 1 | 2) => Ok(vec![resampled(one); channels]),
            (several, 1) => Ok(vec![resample::resample(&mean(several), self.rate, rate)]),
            (several, _) if several.len() == channels => Ok(several.iter().map(resampled).collect()),
            (several, _) => {
                Err(damaged(format!("expected a sound of 1 or {channels} channels, found {}", several.len())))
            }
        }
    }
}

/// What a model reads for one sound.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioInput {
    /// The values, row-major in `shape`: `input_features` or `input_values` of one sound.
    pub values: Vec<f32>,
    /// Pitches and frames for Whisper, samples for Wav2Vec2, channels and samples for EnCodec.
    pub shape: Vec<usize>,
    /// 1 where the sound is and 0 where it is padded: `attention_mask` or `padding_mask`, by the last dimension of `shape`.
    /// None where the configuration says that the model reads none.
    pub mask: Option<Vec<u8>>,
    /// Which of the sounds that were given.
    pub sound: usize,
}

/// The steps that a model's sounds go through.
#[derive(Debug)]
pub struct AudioPreprocessor {
    extractor: Extractor,
}

impl AudioPreprocessor {
    /// Reads a model's `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// When it is not there, is damaged, or names a feature extractor or steps that are not known here.
    pub fn read(files: &dyn ModelFiles) -> Result<Self, PipelineError> {
        Ok(Self { extractor: Extractor::read(&Settings::read(files)?)? })
    }

    /// Reads the text of a `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// As [`AudioPreprocessor::read`].
    pub fn parse(text: &[u8]) -> Result<Self, PipelineError> {
        Ok(Self { extractor: Extractor::read(&Settings::parse(text)?)? })
    }

    /// The rate of what the model hears, in Hz.
    pub fn rate(&self) -> u32 {
        self.extractor.rate()
    }

    /// Prepares sounds that the model reads together: where the model pads, all are padded to the longest of them, and
    /// where it reads windows, to one window at least. Each gives one input.
    ///
    /// # Errors
    ///
    /// When a sound has channels that the model does not, or all are more than [`SAMPLES_MAX`] samples.
    pub fn prepare(&self, sounds: &[Audio]) -> Result<Vec<AudioInput>, PipelineError> {
        let mut converted = Vec::with_capacity(sounds.len());
        let mut longest = 0;
        for sound in sounds {
            let channels = sound.converted(self.rate(), self.extractor.channels())?;
            longest = longest.max(channels[0].len());
            let samples = longest.saturating_mul(channels.len()).saturating_mul(sounds.len());
            if samples > SAMPLES_MAX {
                return Err(PipelineError::too_large(
                    "the sounds for one run of the model",
                    samples,
                    SAMPLES_MAX,
                    "samples",
                ));
            }
            converted.push(channels);
        }
        self.extractor.extract(converted, longest)
    }
}

/// What a model reads of a job's sound.
///
/// # Errors
///
/// When the input is no file of a sound, or of one that the model cannot take.
pub(crate) fn heard(preprocessor: &AudioPreprocessor, task: Task, input: &Input) -> Result<AudioInput, PipelineError> {
    let Input::File(file) = input else {
        return Err(PipelineError::input("the input", format!("expected a file of a sound for {task}")));
    };
    let sounds = preprocessor.prepare(&[decode(&file.0)?])?;
    sounds.into_iter().next().ok_or_else(|| damaged("expected samples, found none"))
}

fn mean(channels: &[Vec<f32>]) -> Vec<f32> {
    let count = channels.len() as f32;
    let frames = channels.first().map_or(0, Vec::len);
    (0..frames).map(|frame| channels.iter().map(|channel| channel[frame]).sum::<f32>() / count).collect()
}

fn damaged(reason: impl ToString) -> PipelineError {
    PipelineError::input("the sound", reason)
}
