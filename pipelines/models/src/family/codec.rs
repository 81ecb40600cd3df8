//! Codecs of sound (<https://arxiv.org/abs/2210.13438>): vectors of a sound are told by the nearest rows of tables, each
//! table telling what those before left over.

use accel_backends::tensor::{Activation, Kind, Tensor, TensorError};

use crate::ModelError;
use crate::layers::padded_convolution::PaddedConvolution;
use crate::layers::recurrent::Recurrent;
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::codec::{CodecLayerSpec, CodecSpec};

/// A codec with its weights.
#[derive(Debug)]
pub struct Codec {
    spec: CodecSpec,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    tables: Vec<Tensor>,
}

#[derive(Debug)]
enum Layer {
    Activation(Activation),
    Convolution(PaddedConvolution),
    Recurrent(Recurrent),
    Residual { activation: Activation, convolutions: Vec<PaddedConvolution>, shortcut: Option<PaddedConvolution> },
}

/// A piece of a sound, coded: whole `[batch, tables, places]`, and its loudness `[batch, 1]`.
struct Piece {
    codes: Tensor,
    scale: Option<Tensor>,
}

impl Codec {
    /// Reads a codec.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: CodecSpec) -> Result<Self, ModelError> {
        let layers = |name: &str, specs: &[CodecLayerSpec]| {
            let layers = specs.iter().enumerate();
            layers
                .map(|(number, spec)| Layer::load(loader, &format!("{name}.{number}"), spec))
                .collect::<Result<Vec<_>, _>>()
        };
        let table = |number: usize| {
            let table = loader.tensor(&format!("tables.{number}"), &[spec.rows, spec.width])?;
            let dense = table.to_vec().and_then(|values| Tensor::new(loader.engine, values, table.dims()));
            dense.map_err(ModelError::at("tables"))
        };
        Ok(Self {
            encoder: layers("encoder", &spec.encoder)?,
            decoder: layers("decoder", &spec.decoder)?,
            tables: (0..spec.tables).map(table).collect::<Result<_, _>>()?,
            spec,
        })
    }

    /// Answers the codes of `input_values`, `[batch, channels, samples]`, or those that are given, and their sound.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let scales: Vec<String> = (0..)
            .map(|piece| format!("audio_scales.{piece}"))
            .take_while(|name| inputs.optional(name).is_some())
            .collect();
        let supported = ["input_values", "padding_mask", "bandwidth", "audio_codes", "last_frame_pad_length"];
        inputs.only(&supported.into_iter().chain(scales.iter().map(String::as_str)).collect::<Vec<_>>())?;
        let at = || ModelError::at("audio_codes");
        let (pieces, missing) = match inputs.optional("audio_codes") {
            Some(codes) => {
                let missing = inputs.number("last_frame_pad_length").map_or(0, |missing| missing as usize);
                let [count, _, tables, _] = codes.sizes().map_err(at())?;
                if codes.kind() != Kind::Whole
                    || tables > self.tables.len()
                    || !scales.is_empty() && scales.len() != count
                {
                    let expected =
                        format!("pieces of {} whole codes at most, each with a scale or none", self.tables.len());
                    return Err(ModelError::input("audio_codes", &expected, codes.dims()));
                }
                let piece = |number: usize| {
                    let scale = scales.get(number).and_then(|name| inputs.optional(name)).cloned();
                    Ok(Piece { codes: codes.at(0, number)?, scale })
                };
                ((0..count).map(piece).collect::<Result<Vec<_>, TensorError>>().map_err(at())?, missing)
            }
            None => self.encode(inputs)?,
        };
        let codes: Vec<Tensor> = pieces.iter().map(|piece| piece.codes.clone()).collect();
        let codes = Tensor::stack(&codes, 0).map_err(at())?;
        let mut sound = self.decode(&pieces, missing)?;
        let length = match inputs.optional("padding_mask").or(inputs.optional("input_values")) {
            Some(given) => given.dim(-1).map_err(at())?,
            None => usize::MAX,
        };
        if sound.dim(-1).is_ok_and(|samples| samples > length) {
            sound = sound.narrow(-1, 0, length).map_err(at())?;
        }
        Ok(vec![("audio_codes".into(), codes), ("audio_values".into(), sound)])
    }

    /// The pieces of a sound, and how many places the last of them lacks.
    fn encode(&self, inputs: &Inputs) -> Result<(Vec<Piece>, usize), ModelError> {
        let at = || ModelError::at("input_values");
        let mut sound = inputs.tensor("input_values")?.clone();
        let [batch, channels, samples] = sound.sizes().map_err(at())?;
        if batch * channels * samples == 0 {
            return Err(ModelError::input("input_values", "a sound", sound.dims()));
        }
        if let Some((seen, dims)) = inputs.optional_mask("padding_mask")? {
            // One row for all channels, or one for each.
            let rows = seen.len() / batch / samples;
            if dims.last() != Some(&samples) || dims.first() != Some(&batch) || ![1, channels].contains(&rows) {
                return Err(ModelError::input("padding_mask", &format!("{:?} as of input_values", sound.dims()), dims));
            }
            let seen = seen.iter().map(|&seen| if seen { 1.0 } else { 0.0 }).collect();
            let silent = || sound.mul(&Tensor::new(sound.engine(), seen, &[batch, rows, samples])?);
            sound = silent().map_err(at())?;
        }
        let tables = self.tables_of(inputs.number("bandwidth"))?;
        let (length, step) = self.spec.pieces.unwrap_or((samples, samples));
        let mut pieces = Vec::new();
        for first in (0..samples).step_by(step.max(1)) {
            let piece = sound.narrow(2, first, length.min(samples - first)).map_err(at())?;
            pieces.push(self.encode_piece(&piece, tables)?);
        }
        let places = |piece: Option<&Piece>| piece.map_or(Ok(0), |piece| piece.codes.dim(2));
        let first = places(pieces.first()).map_err(at())?;
        let missing = first.saturating_sub(places(pieces.last()).map_err(at())?);
        if let Some(last) = pieces.last_mut() {
            last.codes = last.codes.pad(2, 0, missing, 0.0).map_err(at())?;
        }
        Ok((pieces, missing))
    }

    /// How many tables tell a sound in so many thousands of bits a second.
    fn tables_of(&self, asked: Option<f64>) -> Result<usize, ModelError> {
        let allowed = &self.spec.bandwidths;
        let unsupported = |found: f64| ModelError::Unsupported {
            what: "the bandwidth".into(),
            found: found.to_string(),
            supported: allowed.iter().map(f64::to_string).collect::<Vec<_>>().join(", "),
        };
        let bandwidth = match asked {
            Some(asked) if allowed.contains(&asked) => asked,
            Some(asked) => return Err(unsupported(asked)),
            None => allowed.first().copied().unwrap_or_default(),
        };
        let tables = ((bandwidth * 1000.0 / self.spec.table_bits).floor() as usize).max(1);
        Ok(if bandwidth > 0.0 { tables.min(self.tables.len()) } else { self.tables.len() })
    }

    fn encode_piece(&self, sound: &Tensor, tables: usize) -> Result<Piece, ModelError> {
        let at = || ModelError::at("encoder");
        let (mut x, mut scale) = (sound.clone(), None);
        if self.spec.normalised {
            let loudness = || sound.mean(&[1])?.square()?.mean(&[2])?.sqrt()?.shift(1e-8);
            let loudness = loudness().map_err(at())?;
            x = x.div(&loudness).map_err(at())?;
            scale = Some(loudness.squeeze(2).map_err(at())?);
        }
        for layer in &self.encoder {
            x = layer.forward(x)?;
        }
        let codes = || -> Result<Tensor, TensorError> {
            let mut rest = x.transpose(1, 2)?;
            let mut codes = Vec::with_capacity(tables);
            for table in self.tables.iter().take(tables) {
                // The row nearest to a vector; the vector's own length is the same for all rows.
                let near = rest.matmul(&table.transpose(0, 1)?)?.scale(2.0)?;
                let found = near.sub(&table.square()?.sum(&[1])?.squeeze(1)?)?.argmax()?;
                rest = rest.sub(&table.gather(0, &found)?)?;
                codes.push(found);
            }
            Tensor::stack(&codes, 1)
        };
        Ok(Piece { codes: codes().map_err(at())?, scale })
    }

    /// The sound of its pieces: `[batch, channels, samples]`.
    fn decode(&self, pieces: &[Piece], missing: usize) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("decoder");
        let mut sounds = Vec::with_capacity(pieces.len());
        for (number, piece) in pieces.iter().enumerate() {
            let places = piece.codes.dim(2).map_err(at())?;
            let cut = if number + 1 == pieces.len() { missing } else { 0 };
            if places <= cut {
                let expected = format!("more places than the {cut} that the last piece lacks");
                return Err(ModelError::input("audio_codes", &expected, piece.codes.dims()));
            }
            let vectors = || -> Result<Tensor, TensorError> {
                let codes = piece.codes.narrow(2, 0, places - cut)?;
                let mut sum: Option<Tensor> = None;
                for (number, table) in self.tables.iter().enumerate().take(codes.dim(1)?) {
                    let found = table.gather(0, &codes.at(1, number)?)?;
                    sum = Some(match sum {
                        Some(sum) => sum.add(&found)?,
                        None => found,
                    });
                }
                sum.unwrap_or(codes).transpose(1, 2)
            };
            let mut x = vectors().map_err(at())?;
            for layer in &self.decoder {
                x = layer.forward(x)?;
            }
            if let Some(scale) = &piece.scale {
                x = scale.reshape(&[scale.count(), 1, 1]).and_then(|scale| x.mul(&scale)).map_err(at())?;
            }
            sounds.push(x);
        }
        match (&self.spec.pieces, sounds.len()) {
            (None, 1) => Ok(sounds.remove(0)),
            (Some((_, step)), 1..) => overlapped(&sounds, *step).map_err(at()),
            (_, found) => {
                Err(ModelError::State { place: "audio_codes", expected: "one piece".into(), found: found.to_string() })
            }
        }
    }
}

/// Sounds that begin `step` samples after each other, faded into each other.
fn overlapped(sounds: &[Tensor], step: usize) -> Result<Tensor, TensorError> {
    let length = |sound: &Tensor| sound.dim(2);
    let (first, last) = (sounds.first().map_or(Ok(0), length)?, sounds.last().map_or(Ok(0), length)?);
    let total = step * sounds.len().saturating_sub(1) + last;
    let weight = |place: usize| 0.5 - ((place + 1) as f32 / (first + 1) as f32 - 0.5).abs();
    let mut weights = vec![0.0; total];
    let mut sum: Option<Tensor> = None;
    for (number, sound) in sounds.iter().enumerate() {
        let length = length(sound)?.min(first).min(total - step * number);
        let own: Vec<f32> = (0..length).map(weight).collect();
        own.iter().zip(&mut weights[step * number..]).for_each(|(own, all)| *all += own);
        let own = Tensor::new(sound.engine(), own, &[length])?;
        let placed =
            sound.narrow(2, 0, length)?.mul(&own)?.pad(2, step * number, total - step * number - length, 0.0)?;
        sum = Some(match sum {
            Some(sum) => sum.add(&placed)?,
            None => placed,
        });
    }
    let none = || TensorError::Shape { operation: "overlap", expected: "a piece".into(), found: "none".into() };
    let sum = sum.ok_or_else(none)?;
    sum.div(&Tensor::new(sum.engine(), weights, &[total])?)
}

impl Layer {
    fn load(loader: &Loader<'_>, name: &str, spec: &CodecLayerSpec) -> Result<Self, ModelError> {
        Ok(match spec {
            CodecLayerSpec::Activation(activation) => Self::Activation(*activation),
            CodecLayerSpec::Convolution(spec) => {
                Self::Convolution(PaddedConvolution::load(loader, &format!("{name}.convolution"), spec, false)?)
            }
            CodecLayerSpec::Transposed(spec) => {
                Self::Convolution(PaddedConvolution::load(loader, &format!("{name}.convolution"), spec, true)?)
            }
            CodecLayerSpec::Recurrent { width, layers } => {
                Self::Recurrent(Recurrent::load(loader, &format!("{name}.recurrent"), *width, *layers)?)
            }
            CodecLayerSpec::Residual { activation, convolutions, shortcut } => {
                let convolution = |(number, spec)| {
                    // Each stands after its activation.
                    let name = format!("{name}.block.{}.convolution", 2 * number + 1);
                    PaddedConvolution::load(loader, &name, spec, false)
                };
                let shortcut = shortcut.as_ref();
                let shortcut = shortcut
                    .map(|spec| PaddedConvolution::load(loader, &format!("{name}.shortcut.convolution"), spec, false));
                Self::Residual {
                    activation: *activation,
                    convolutions: convolutions.iter().enumerate().map(convolution).collect::<Result<_, _>>()?,
                    shortcut: shortcut.transpose()?,
                }
            }
        })
    }

    /// x: `[batch, channels, samples]`
    fn forward(&self, x: Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("codec");
        match self {
            Self::Activation(activation) => x.activate(*activation).map_err(at()),
            Self::Convolution(convolution) => convolution.forward(&x),
            Self::Recurrent(recurrent) => {
                let out = recurrent.forward(&x.transpose(1, 2).map_err(at())?)?;
                out.transpose(1, 2).and_then(|out| out.add(&x)).map_err(at())
            }
            Self::Residual { activation, convolutions, shortcut } => {
                let mut new = x.clone();
                for convolution in convolutions {
                    new = convolution.forward(&new.activate(*activation).map_err(at())?)?;
                }
                let x = match shortcut {
                    Some(shortcut) => shortcut.forward(&x)?,
                    None => x,
                };
                x.add(&new).map_err(at())
            }
        }
    }
}
