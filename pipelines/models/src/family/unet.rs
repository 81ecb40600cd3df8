//! Networks in the shape of a U (<https://arxiv.org/abs/1505.04597>): blocks down to small images, one in the middle, and
//! blocks up again beside what was seen on the way down. They tell what to take off a noisy image.

use accel_backends::tensor::{Kind, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::attend::{attend, plain_heads};
use crate::layers::convolution::{Convolution, GroupNorm};
use crate::layers::image_block::{ImageBlock, Told};
use crate::layers::image_mixer::ImageSource;
use crate::layers::norm::Norm;
use crate::layers::time_embed::{TimeEmbed, waves};
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::NormSpec;
use crate::spec::unet::{AdditionSpec, BlockSpec, ClassSpec, MomentSpec, SourceSpec, UnetSpec};

/// A network with its weights.
#[derive(Debug)]
pub struct Unet {
    spec: UnetSpec,
    frequencies: Option<Tensor>,
    time: TimeEmbed,
    class: Class,
    addition: Addition,
    source: SourceLayers,
    first: Convolution,
    down: Vec<ImageBlock>,
    mid: Option<ImageBlock>,
    up: Vec<ImageBlock>,
    norm: GroupNorm,
    last: Convolution,
}

#[derive(Debug)]
enum Class {
    None,
    Table(Tensor),
    Layers(TimeEmbed),
    Linear(Linear),
}

#[derive(Debug)]
enum Addition {
    None,
    Text(Box<TextSummary>),
    TextImage { text: Linear, text_norm: Norm, image: Linear },
    TextTime(TimeEmbed),
    Image { image: Linear, norm: Norm },
}

/// A summary of a text's states: attention from their mean to all of them.
#[derive(Debug)]
struct TextSummary {
    heads: usize,
    before: Norm,
    position: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    after: Norm,
}

#[derive(Debug)]
enum SourceLayers {
    AsIs,
    Text(Linear),
    TextImage(Linear, Linear),
    Image(Linear, Norm, usize),
}

const SUPPORTED: &[&str] = &[
    "sample",
    "timestep",
    "encoder_hidden_states",
    "class_labels",
    "timestep_cond",
    "encoder_attention_mask",
    TEXT,
    IMAGE,
    SIZES,
    MIDDLE,
];
const TEXT: &str = "added_cond_kwargs.text_embeds";
const IMAGE: &str = "added_cond_kwargs.image_embeds";
const SIZES: &str = "added_cond_kwargs.time_ids";
const MIDDLE: &str = "mid_block_additional_residual";

/// The name of what a steering network adds to what was seen on the way down.
fn steering(number: usize) -> String {
    format!("down_block_additional_residuals.{number}")
}

impl Unet {
    /// Reads a network.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: UnetSpec) -> Result<Self, ModelError> {
        let blocks = |name: &str, specs: &[BlockSpec]| {
            let blocks = specs.iter().enumerate();
            let blocks = blocks.map(|(number, block)| ImageBlock::load(loader, &format!("{name}.{number}"), block));
            blocks.collect::<Result<Vec<_>, _>>()
        };
        let width = spec.time.width;
        let frequencies = match spec.moment {
            MomentSpec::Waves(_) => None,
            MomentSpec::Learned(waves) => Some(loader.vector("frequencies", waves.width / 2)?),
        };
        Ok(Self {
            frequencies,
            time: TimeEmbed::load(loader, "moment", &spec.time)?,
            class: match spec.class {
                ClassSpec::None | ClassSpec::Identity => Class::None,
                ClassSpec::Table(rows) => Class::Table(loader.weight("class", &[rows, width])?),
                ClassSpec::Moment(layers) | ClassSpec::Layers(layers) => {
                    Class::Layers(TimeEmbed::load(loader, "class", &layers)?)
                }
                ClassSpec::Linear(inputs) => Class::Linear(loader.linear("class", width, inputs, true)?),
            },
            addition: Addition::load(loader, &spec.addition, width)?,
            source: SourceLayers::load(loader, &spec.source)?,
            first: Convolution::image(loader, "first", spec.inputs, spec.channels, spec.first_taps)?,
            down: blocks("down", &spec.down)?,
            mid: spec.mid.as_ref().map(|block| ImageBlock::load(loader, "mid", block)).transpose()?,
            up: blocks("up", &spec.up)?,
            norm: GroupNorm::load(loader, "norm", spec.channels, spec.groups, spec.eps)?,
            last: Convolution::image(loader, "last", spec.channels, spec.outputs, spec.last_taps)?,
            spec,
        })
    }

    /// Answers what to take off `sample` at the moment `timestep`, of what `encoder_hidden_states` says.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let steered: Vec<String> = (0..).map(steering).take_while(|name| inputs.optional(name).is_some()).collect();
        inputs.only(&SUPPORTED.iter().copied().chain(steered.iter().map(String::as_str)).collect::<Vec<_>>())?;
        let sample = inputs.tensor("sample")?;
        let batch = sample.dim(0).map_err(ModelError::at("sample"))?;
        let moment = self.moment(inputs, sample, batch)?;
        let source = self.source.of(inputs)?;
        let told = Told { moment: Some(&moment), source: source.as_ref() };
        let mut x = sample.clone();
        if self.spec.centred {
            x = x.affine(2.0, -1.0).map_err(ModelError::at("sample"))?;
        }
        x = self.first.forward(&x)?;
        let mut seen = vec![x.clone()];
        for block in &self.down {
            x = block.down(x, told, &mut seen)?;
        }
        for (seen, name) in seen.iter_mut().zip(&steered) {
            *seen = seen.add(inputs.tensor(name)?).map_err(ModelError::at(name))?;
        }
        if let Some(block) = &self.mid {
            x = block.forward(x, told)?;
        }
        if let Some(added) = inputs.optional(MIDDLE) {
            x = x.add(added).map_err(ModelError::at(MIDDLE))?;
        }
        for block in &self.up {
            let beside = seen.split_off(seen.len().saturating_sub(block.len()));
            // The next block goes beside what is seen next, whose size need not be double.
            let size = seen.last().map(|seen| [seen.dims()[2], seen.dims()[3]]);
            x = block.up(x, told, &mut { beside }, size)?;
        }
        let x = self.norm.forward(&x)?.activate(self.spec.activation).map_err(ModelError::at("norm"))?;
        Ok(vec![("sample".into(), self.last.forward(&x)?)])
    }

    /// The embedding of the moment with all that is added to it: `[batch, width]`.
    fn moment(&self, inputs: &Inputs, sample: &Tensor, batch: usize) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("moment");
        let given = moments(inputs, "timestep", sample, batch)?;
        let waved = match &self.spec.moment {
            MomentSpec::Waves(spec) => waves(&given, spec),
            MomentSpec::Learned(spec) => self.learned_waves(&given, spec.cosines_first),
        };
        let mut moment = self.time.forward(&waved.map_err(at())?, inputs.optional("timestep_cond"))?;
        if let Some(class) = self.classed(inputs, sample, batch)? {
            let both = [moment, class];
            let sum = || if self.spec.class_beside { Tensor::concat(&both, 1) } else { both[0].add(&both[1]) };
            moment = sum().map_err(at())?;
        }
        if let Some(added) = self.addition.of(inputs, &self.spec.addition)? {
            moment = moment.add(&added).map_err(at())?;
        }
        moment.activate(self.spec.time_activation).map_err(at())
    }

    fn learned_waves(&self, moments: &Tensor, cosines_first: bool) -> Result<Tensor, TensorError> {
        let Some(frequencies) = &self.frequencies else { return Ok(moments.clone()) };
        let angles = moments.unsqueeze(1)?.mul(&frequencies.unsqueeze(0)?)?.scale(2.0)?.scale(std::f32::consts::PI)?;
        let (sines, cosines) = (angles.sin()?, angles.cos()?);
        Tensor::concat(&if cosines_first { [cosines, sines] } else { [sines, cosines] }, 1)
    }

    fn classed(&self, inputs: &Inputs, sample: &Tensor, batch: usize) -> Result<Option<Tensor>, ModelError> {
        const LABELS: &str = "class_labels";
        let at = || ModelError::at(LABELS);
        Ok(Some(match (&self.spec.class, &self.class) {
            (ClassSpec::None, _) => return Ok(None),
            (_, Class::Table(table)) => table.embedding(inputs.tensor(LABELS)?).map_err(at())?,
            (_, Class::Linear(layer)) => inputs.tensor(LABELS)?.linear(layer).map_err(at())?,
            (ClassSpec::Moment(_), Class::Layers(layers)) => {
                let given = moments(inputs, LABELS, sample, batch)?;
                let waved = match &self.spec.moment {
                    MomentSpec::Waves(spec) => waves(&given, spec),
                    MomentSpec::Learned(spec) => self.learned_waves(&given, spec.cosines_first),
                };
                layers.forward(&waved.map_err(at())?, None)?
            }
            (_, Class::Layers(layers)) => layers.forward(inputs.tensor(LABELS)?, None)?,
            (_, Class::None) => inputs.tensor(LABELS)?.clone(),
        }))
    }
}

/// The moments of that name, one number or one of each image: floats `[batch]`.
///
/// # Errors
///
/// When they are missing or of another shape.
pub fn moments(inputs: &Inputs, name: &str, like: &Tensor, batch: usize) -> Result<Tensor, ModelError> {
    let at = || ModelError::at(name);
    if let Some(number) = inputs.number(name) {
        return Tensor::new(like.engine(), vec![number as f32; batch], &[batch]).map_err(at());
    }
    let given = inputs.tensor(name)?;
    let floats = || given.to_kind(Kind::Float)?.reshape(&[given.count()])?.broadcast(&[batch]);
    floats().map_err(at())
}

impl Addition {
    fn load(loader: &Loader<'_>, spec: &AdditionSpec, width: usize) -> Result<Self, ModelError> {
        let norm = |name: &str, width| Norm::load(loader, name, &NormSpec::layer(1e-5), width);
        let layer = |name: &str, inputs| loader.linear(name, width, inputs, true);
        Ok(match *spec {
            AdditionSpec::None => Self::None,
            AdditionSpec::Text { inputs, heads } => {
                let square = |name: &str| loader.linear(name, inputs, inputs, true);
                Self::Text(Box::new(TextSummary {
                    heads,
                    before: norm("addition.before", inputs)?,
                    position: loader.tensor("addition.position", &[1, inputs])?,
                    q: square("addition.q")?,
                    k: square("addition.k")?,
                    v: square("addition.v")?,
                    out: layer("addition.out", inputs)?,
                    after: norm("addition.after", width)?,
                }))
            }
            AdditionSpec::TextImage(inputs) => Self::TextImage {
                text: layer("addition.text", inputs)?,
                text_norm: norm("addition.text_norm", width)?,
                image: layer("addition.image", inputs)?,
            },
            AdditionSpec::TextTime(_, layers) => Self::TextTime(TimeEmbed::load(loader, "addition", &layers)?),
            AdditionSpec::Image(inputs) => {
                Self::Image { image: layer("addition.image", inputs)?, norm: norm("addition.image_norm", width)? }
            }
        })
    }

    /// `[batch, width]`, where anything is added.
    fn of(&self, inputs: &Inputs, spec: &AdditionSpec) -> Result<Option<Tensor>, ModelError> {
        let at = || ModelError::at("addition");
        Ok(Some(match self {
            Self::None => return Ok(None),
            Self::Text(summary) => summary.forward(inputs.tensor("encoder_hidden_states")?)?,
            Self::TextImage { text, text_norm, image } => {
                let states = inputs.optional(TEXT).map_or_else(|| inputs.tensor("encoder_hidden_states"), Ok)?;
                let text = text_norm.forward(&states.linear(text).map_err(at())?)?;
                inputs.tensor(IMAGE)?.linear(image).and_then(|image| image.add(&text)).map_err(at())?
            }
            Self::TextTime(layers) => {
                let (text, sizes) = (inputs.tensor(TEXT)?, inputs.tensor(SIZES)?);
                let AdditionSpec::TextTime(spec, _) = spec else { return Ok(None) };
                let both = || {
                    let batch = text.dim(0)?;
                    let waved = waves(&sizes.to_kind(Kind::Float)?.reshape(&[sizes.count()])?, spec)?;
                    Tensor::concat(&[text.clone(), waved.reshape(&[batch, waved.count() / batch.max(1)])?], 1)
                };
                layers.forward(&both().map_err(at())?, None)?
            }
            Self::Image { image, norm } => norm.forward(&inputs.tensor(IMAGE)?.linear(image).map_err(at())?)?,
        }))
    }
}

impl TextSummary {
    /// x: `[batch, states, inputs]` to `[batch, width]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let x = self.before.forward(x)?;
        let summary = || -> Result<Tensor, TensorError> {
            let mean = x.mean(&[1])?.add(&self.position)?;
            let all = Tensor::concat(&[mean.clone(), x.clone()], 1)?;
            let shape = plain_heads(self.heads, x.dim(-1)? / self.heads);
            let [k, v] = all.linears([&self.k, &self.v])?;
            attend(&shape, &mean.linear(&self.q)?, &k, &v, &[])?.squeeze(1)?.linear(&self.out)
        };
        self.after.forward(&summary().map_err(ModelError::at("addition"))?)
    }
}

impl SourceLayers {
    fn load(loader: &Loader<'_>, spec: &SourceSpec) -> Result<Self, ModelError> {
        Ok(match *spec {
            SourceSpec::AsIs => Self::AsIs,
            SourceSpec::Text { inputs, width } => Self::Text(loader.linear("source.text", width, inputs, true)?),
            SourceSpec::TextImage { inputs, width, count } => Self::TextImage(
                loader.linear("source.text", width, inputs, true)?,
                loader.linear("source.image", count * width, width, true)?,
            ),
            SourceSpec::Image { inputs, width, count } => Self::Image(
                loader.linear("source.image", count * width, inputs, true)?,
                Norm::load(loader, "source.norm", &NormSpec::layer(1e-5), width)?,
                width,
            ),
        })
    }

    fn of(&self, inputs: &Inputs) -> Result<Option<ImageSource>, ModelError> {
        const STATES: &str = "encoder_hidden_states";
        let at = || ModelError::at("source");
        let apart = |image: &Linear, width: usize| {
            let made = inputs.tensor(IMAGE)?.linear(image).map_err(at())?;
            let dims = [made.dims()[0], made.dims()[1] / width, width];
            made.reshape(&dims).map_err(at())
        };
        let states = match self {
            Self::AsIs => match inputs.optional(STATES) {
                Some(states) => states.clone(),
                None => return Ok(None),
            },
            Self::Text(text) => inputs.tensor(STATES)?.linear(text).map_err(at())?,
            Self::TextImage(text, image) => {
                let text = inputs.tensor(STATES)?.linear(text).map_err(at())?;
                Tensor::concat(&[apart(image, text.dims()[2])?, text], 1).map_err(at())?
            }
            Self::Image(image, norm, width) => norm.forward(&apart(image, *width)?)?,
        };
        let absent = inputs.optional_whole("encoder_attention_mask")?.map_or_else(Vec::new, |(mask, dims)| {
            let length = dims.last().copied().unwrap_or(1).max(1);
            mask.chunks(length).map(|row| row.iter().map(|&seen| seen == 0).collect()).collect()
        });
        Ok(Some(ImageSource { states, absent }))
    }
}
