//! A reference case as its files say it, and the model that it describes.
//!
//! A case stores what a library answered, and not its weights: those are a function of their names, a seed and a scale,
//! computed in whole numbers and in f32 operations that do not round, so that they are the same bits everywhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use accel_backends::tensor::{Engine, Tensor};
use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors, View};
use serde::Deserialize;

/// A case: a directory with `config.json`, `case.json` and `io.safetensors`.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Its name.
    #[serde(rename = "case")]
    pub name: String,
    /// The `model_type` of its configuration.
    pub model_type: String,
    /// The class that answered.
    pub class: String,
    /// The library that answered.
    pub library: String,
    /// How it was asked, where that was no plain forward call.
    pub entry: Option<String>,
    /// What it was asked.
    pub inputs: Vec<Input>,
    /// What it was asked beside tensors.
    pub scalar_inputs: BTreeMap<String, serde_json::Value>,
    /// What it answered.
    pub outputs: Vec<Expected>,
    /// What it generated, where it can.
    pub generate: Option<Generated>,
    weight_seed: u64,
    tensors: Vec<(String, Vec<usize>, Kind, f32, f32)>,
    #[serde(skip)]
    directory: PathBuf,
    #[serde(skip)]
    stored: BTreeMap<String, Stored>,
}

/// Where the values of a tensor come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Kind {
    #[serde(rename = "u")]
    Uniform,
    #[serde(rename = "v")]
    Verbatim,
}

/// A tensor that the library was given.
#[derive(Debug, Deserialize)]
pub struct Input {
    /// Its name.
    pub name: String,
    kind: Kind,
    dtype: String,
    #[serde(default)]
    shape: Vec<usize>,
    #[serde(default)]
    center: f32,
    #[serde(default)]
    scale: f32,
}

/// An output, and how near an answer must come: `|got - want| <= atol + rtol * |want|`.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it must be answered.
    pub primary: bool,
    /// The absolute part of the bound.
    #[serde(default)]
    pub atol: f64,
    /// The relative part of the bound.
    #[serde(default)]
    pub rtol: f64,
    /// Every how many elements are stored; none for all.
    pub sample_step: Option<usize>,
    /// The mean magnitude of all elements, where not all are stored.
    pub absmean: Option<f64>,
}

/// Greedy generation with an attention mask of ones.
#[derive(Debug, Deserialize)]
pub struct Generated {
    /// How many tokens.
    pub max_new_tokens: usize,
    /// Which inputs it begins with.
    pub inputs: Vec<String>,
    /// How far the likeliest token's logit was above the next: `[batch][step]`.
    pub margins: Option<Vec<Vec<f64>>>,
    /// `[batch, step, vocabulary]`
    #[serde(default)]
    pub logits_shape: Vec<usize>,
    /// Every how many logits are stored.
    pub logits_step: Option<usize>,
    /// The absolute part of the bound of logits.
    #[serde(default)]
    pub atol: f64,
}

/// A tensor with its bytes.
#[derive(Clone, Debug)]
pub struct Stored {
    dtype: Dtype,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

impl Case {
    /// Reads a case.
    ///
    /// # Errors
    ///
    /// When a file is missing or is not in the format.
    pub fn read(directory: &Path) -> Result<Self> {
        let (text, io) = (directory.join("case.json"), directory.join("io.safetensors"));
        let mut case: Self = std::fs::read(&text)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(serde_json::from_slice(&text)?))
            .with_context(|| text.display().to_string())?;
        let bytes = std::fs::read(&io).with_context(|| io.display().to_string())?;
        let tensors = SafeTensors::deserialize(&bytes).with_context(|| io.display().to_string())?;
        let stored = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
            (name.to_owned(), Stored { dtype: view.dtype(), dims: view.shape().to_vec(), bytes: view.data().to_vec() })
        };
        case.stored = tensors.iter().map(stored).collect();
        case.directory = directory.to_owned();
        Ok(case)
    }

    /// Its configuration.
    ///
    /// # Errors
    ///
    /// When it is no JSON.
    pub fn config(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.directory.join("config.json"))?)?)
    }

    /// A tensor of the case: `in.<name>`, `out.<name>`, `w.<name>`, `gen.sequences` or `gen.logits`.
    ///
    /// # Errors
    ///
    /// When the case has it not.
    pub fn stored(&self, name: &str) -> Result<&Stored> {
        self.stored.get(name).with_context(|| format!("{}: io.safetensors has no {name}", self.name))
    }

    /// What the library was given.
    ///
    /// # Errors
    ///
    /// When the case lacks it, or its elements are of a type that no tensor has.
    pub fn input(&self, engine: &Engine, input: &Input) -> Result<Tensor> {
        let stored;
        let (dims, floats) = match input.kind {
            Kind::Uniform => {
                let (name, count) = (format!("input:{}", input.name), input.shape.iter().product());
                let values = uniform(&name, count, input.center, input.scale, self.weight_seed);
                (input.shape.as_slice(), Some(values))
            }
            Kind::Verbatim => {
                stored = self.stored(&format!("in.{}", input.name))?;
                (stored.dims(), stored.to_floats().ok())
            }
        };
        let whole = !matches!(input.dtype.as_str(), "F32" | "float32");
        Ok(match floats {
            Some(values) if whole => {
                Tensor::whole(engine, values.into_iter().map(|value| value as i64).collect(), dims)?
            }
            Some(values) => Tensor::new(engine, values, dims)?,
            None => Tensor::whole(engine, self.stored(&format!("in.{}", input.name))?.to_integers()?, dims)?,
        })
    }

    /// Writes the model as its library's `save_pretrained` does: `config.json` and a file of weights.
    ///
    /// # Errors
    ///
    /// When the case lacks a tensor, or a file cannot be written.
    pub fn write_model(&self, into: &Path) -> Result<()> {
        let config = self.directory.join("config.json");
        std::fs::copy(&config, into.join("config.json")).with_context(|| config.display().to_string())?;
        let tensors = self.tensors.iter().map(|(name, dims, kind, center, scale)| {
            let stored = match kind {
                Kind::Verbatim => self.stored(&format!("w.{name}"))?.clone(),
                Kind::Uniform => {
                    let values = uniform(name, dims.iter().product(), *center, *scale, self.weight_seed);
                    Stored::floats(dims, &values)
                }
            };
            Ok((name.as_str(), stored))
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let name = match self.library.as_str() {
            "diffusers" => "diffusion_pytorch_model.safetensors",
            _ => "model.safetensors",
        };
        Ok(safetensors::serialize_to_file(tensors, Some(metadata), &into.join(name))?)
    }
}

impl Stored {
    /// A tensor of f32.
    pub fn floats(dims: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, dims: dims.to_vec(), bytes }
    }

    /// A tensor of i64.
    pub fn integers(dims: &[usize], values: &[i64]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::I64, dims: dims.to_vec(), bytes }
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Its values.
    ///
    /// # Errors
    ///
    /// When they are not f32.
    pub fn to_floats(&self) -> Result<Vec<f32>> {
        ensure!(self.dtype == Dtype::F32, "expected a tensor of F32, found {:?}", self.dtype);
        Ok(self.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Its values.
    ///
    /// # Errors
    ///
    /// When they are not whole numbers of 32 or 64 bits.
    pub fn to_integers(&self) -> Result<Vec<i64>> {
        match self.dtype {
            Dtype::I64 => Ok(self.bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()),
            Dtype::BOOL | Dtype::U8 => Ok(self.bytes.iter().map(|&byte| byte.into()).collect()),
            Dtype::I32 => Ok(self.bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect()),
            found => bail!("expected a tensor of I64 or I32, found {found:?}"),
        }
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.dims
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (&self.bytes).into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// FNV-1a of 64 bits (<https://datatracker.ietf.org/doc/html/rfc9923>).
pub fn fnv1a64(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Element `place` of the numbers that belong to a name: SplitMix64 from the name's hash on.
pub fn raw(name: &str, place: u64, seed: u64) -> u64 {
    let seeded = fnv1a64(name).wrapping_add(seed.wrapping_mul(0xd134_2543_de82_ef95));
    let mixed = seeded.wrapping_add(place).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The values of a tensor, uniform within `scale` of `center`; `scale` is a power of two or 0.
pub fn uniform(name: &str, length: usize, center: f32, scale: f32, seed: u64) -> Vec<f32> {
    let value = |place| {
        let signed = (raw(name, place, seed) >> 40) as i64 - (1 << 23);
        let value = signed as f32 / (1 << 23) as f32 * scale;
        if center == 0.0 { value } else { center + value }
    };
    (0..length as u64).map(value).collect()
}
