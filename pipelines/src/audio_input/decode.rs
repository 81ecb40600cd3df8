//! From a file to samples: WAV, FLAC, MP3 and Ogg Vorbis.
//!
//! Whole numbers become parts of one, as libsndfile and FFmpeg scale them. What encoders add before and after the sound is
//! left out where the file tells its length. WAV and FLAC files that are cut off are errors; MP3 and Ogg are made to be
//! cut, and are read as far as they go.

use std::io::{Cursor, ErrorKind};

use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;

use crate::error::PipelineError;

use super::{Audio, CHANNELS_MAX, SAMPLES_MAX, damaged};

/// The longest file of a sound that is read.
pub const AUDIO_BYTES_MAX: usize = 256 << 20;
const SUPPORTED: &str = "WAV, FLAC, MP3, Ogg Vorbis";

/// Reads a WAV, FLAC, MP3 or Ogg Vorbis file: its first track.
///
/// # Errors
///
/// When the file is of another format, damaged, empty, longer than [`AUDIO_BYTES_MAX`], or has more than [`SAMPLES_MAX`]
/// samples in all channels or [`CHANNELS_MAX`] channels.
pub fn decode(bytes: &[u8]) -> Result<Audio, PipelineError> {
    if bytes.len() > AUDIO_BYTES_MAX {
        return Err(PipelineError::too_large("an audio file", bytes.len(), AUDIO_BYTES_MAX, "bytes"));
    }
    let source = MediaSourceStream::new(Box::new(Cursor::new(bytes)), Default::default());
    let mut reader = symphonia::default::get_probe()
        .probe(&Hint::new(), source, Default::default(), Default::default())
        .map_err(|error| match error {
            // What no format claims is read to its end in search of one.
            Error::IoError(source) if source.kind() == ErrorKind::UnexpectedEof => {
                unknown_format("unknown, or cut off at its head")
            }
            Error::Unsupported(reason) => unknown_format(reason),
            other => damaged(other),
        })?;
    let track =
        reader.default_track(TrackType::Audio).ok_or_else(|| damaged("expected a track of sound, found none"))?;
    let id = track.id;
    // Who writes a file without knowing its end yet says that it is longer than any that is read here.
    let frames = track.num_frames.filter(|frames| (1..=SAMPLES_MAX as u64).contains(frames));
    let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio());
    let parameters = parameters.ok_or_else(|| unknown_format("an unknown codec"))?;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &AudioDecoderOptions::default())
        .map_err(|error| unknown_format(&error.to_string()))?;
    let audio = samples(reader.as_mut(), decoder.as_mut(), id)?;
    let told_exactly = matches!(reader.format_info().short_name, "wave" | "flac");
    match frames {
        Some(frames) if told_exactly && (audio.frames() as u64) < frames => {
            Err(damaged(format!("expected {frames} frames as its header says, found {}", audio.frames())))
        }
        _ => Ok(audio),
    }
}

fn samples(reader: &mut dyn FormatReader, decoder: &mut dyn AudioDecoder, track: u32) -> Result<Audio, PipelineError> {
    let mut rate = 0;
    let mut channels: Vec<Vec<f32>> = Vec::new();
    let mut packet_channels: Vec<Vec<f32>> = Vec::new();
    loop {
        let packet = match reader.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            // The end inside of a packet; whether frames are missing is seen from their number.
            Err(Error::IoError(source)) if source.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(damaged(error)),
        };
        if packet.track_id != track {
            continue;
        }
        let decoded = decoder.decode(&packet).map_err(damaged)?;
        let (found_rate, found_channels) = (decoded.spec().rate(), decoded.spec().channels().count());
        if rate == 0 {
            if found_channels == 0 || found_channels > CHANNELS_MAX {
                return Err(damaged(format!("expected 1 to {CHANNELS_MAX} channels, found {found_channels}")));
            }
            rate = found_rate;
            channels.resize(found_channels, Vec::new());
        }
        if (found_rate, found_channels) != (rate, channels.len()) {
            let expected = format!("{} channels at {rate} Hz throughout", channels.len());
            return Err(damaged(format!("expected {expected}, found {found_channels} at {found_rate} Hz")));
        }
        let samples = (channels[0].len() + decoded.frames()).saturating_mul(channels.len());
        if samples > SAMPLES_MAX {
            return Err(PipelineError::too_large("a sound", samples, SAMPLES_MAX, "samples"));
        }
        decoded.copy_to_vecs_planar(&mut packet_channels);
        for (channel, packet) in channels.iter_mut().zip(&packet_channels) {
            channel.extend_from_slice(packet);
        }
    }
    Audio::new(rate, channels)
}

fn unknown_format(found: &str) -> PipelineError {
    PipelineError::Unsupported { what: "the sound's format", found: found.to_owned(), supported: SUPPORTED.into() }
}
