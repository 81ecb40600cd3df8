//! Models of time series (PatchTST, <https://arxiv.org/abs/2211.14730>): each channel is cut into patches, layers make
//! states of them, and a head tells what comes next or what the series is.

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::distribution::{self, Distribution};
use crate::layers::series_layer::SeriesLayer;
use crate::layers::series_mixer::SeriesMixer;
use crate::layers::series_scale::{Scaled, scaled};
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::time_series::{DistributionSpec, SeriesHead, SeriesLayerSpec, SeriesPool, TimeSeriesSpec};

/// A model of time series with its weights.
#[derive(Debug)]
pub struct TimeSeries {
    spec: TimeSeriesSpec,
    embed: Vec<Linear>,
    first: Option<Tensor>,
    positions: Option<Tensor>,
    layers: Vec<Layer>,
    scale: Option<[Linear; 4]>,
    head: Head,
}

#[derive(Debug)]
enum Layer {
    Attention(Box<SeriesLayer>),
    Mixer(Box<SeriesMixer>),
}

#[derive(Debug)]
enum Head {
    States,
    Patches(Linear),
    Labels(Linear),
    Numbers(Distribution),
    Forecast(Distribution),
}

/// A series in patches, as the model was given it and as it sees it: `[batch, channels, patches, length]`.
struct Patches {
    given: Tensor,
    seen: Tensor,
    hidden: Option<Tensor>,
}

impl TimeSeries {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: TimeSeriesSpec) -> Result<Self, ModelError> {
        let (hidden, length) = (spec.hidden, spec.patches.length);
        let embed = match spec.shared_embedding {
            true => vec![loader.linear("embed", hidden, length, true)?],
            false => (0..spec.channels)
                .map(|channel| loader.linear(&format!("embed.{channel}"), hidden, length, true))
                .collect::<Result<_, _>>()?,
        };
        let sizes = [spec.channels, spec.patches.count, hidden];
        let layers = spec.layers.iter().enumerate();
        let layers = layers.map(|(number, layer)| Layer::load(loader, &format!("layers.{number}"), layer, sizes));
        let states = spec.patches.count + usize::from(spec.first);
        let scale = || {
            let layer = |name: &str, outputs, inputs| loader.linear(name, outputs, inputs, true);
            Ok::<_, ModelError>([
                layer("scale.up", 4, 2)?,
                layer("scale.down", 2, 4)?,
                layer("scaled.up", 2 * hidden, hidden + 2)?,
                layer("scaled.down", hidden, 2 * hidden)?,
            ])
        };
        Ok(Self {
            embed,
            first: spec.first.then(|| loader.tensor("first", &[1, 1, 1, hidden])).transpose()?,
            positions: spec.positions.then(|| loader.tensor("positions", &[states, hidden])).transpose()?,
            layers: layers.collect::<Result<_, _>>()?,
            scale: spec.told_scale.then(scale).transpose()?,
            head: Head::load(loader, &spec)?,
            spec,
        })
    }

    /// Answers what the model's class answers of `past_values`, `[batch, moments, channels]`. What is known of the future
    /// is accepted, as it is for training.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let known = match self.head {
            Head::Labels(_) | Head::Numbers(_) => "target_values",
            Head::States | Head::Forecast(_) => "future_values",
            Head::Patches(_) => "past_values",
        };
        inputs.only(&["past_values", known, self.spec.observed.unwrap_or("past_values")])?;
        let past = inputs.tensor("past_values")?;
        if !matches!(past.dims(), &[_, length, channels] if length == self.spec.length && channels == self.spec.channels)
        {
            let expected = format!("[batch, {}, {}]", self.spec.length, self.spec.channels);
            return Err(ModelError::input("past_values", &expected, past.dims()));
        }
        let observed = self.spec.observed.map(|name| inputs.optional_mask(name)).transpose()?.flatten();
        if let Some((_, dims)) = observed.as_ref().filter(|(_, dims)| *dims != past.dims()) {
            let name = self.spec.observed.unwrap_or_default();
            return Err(ModelError::input(name, &format!("{:?}", past.dims()), dims));
        }
        let observed = observed.map(|(observed, _)| observed);
        let scaled = scaled(self.spec.scaling, past, observed.as_deref()).map_err(ModelError::at("past_values"))?;
        let patches = self.patches(&scaled.x).map_err(ModelError::at("patches"))?;
        let mut x = self.embed(&patches.seen).map_err(ModelError::at("embed"))?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        if let Some(layers) = &self.scale {
            x = with_scale(&x, &scaled, layers).map_err(ModelError::at("scale"))?;
        }
        let mut all = self.told(&x, scaled, patches, inputs.optional(known).is_some());
        if let (Ok(all), true) = (&mut all, self.spec.states) {
            all.push(("last_hidden_state".into(), x));
        }
        all.map_err(ModelError::at("head"))
    }

    /// What comes after `past_values`, `[batch, moments, channels]`: `[batch, later moments, channels that are told]`. Where
    /// the model tells distributions, the mean of each: the numbers from which samples differ least.
    ///
    /// # Errors
    ///
    /// When the shape does not fit, or the model's class does not forecast.
    pub fn forecast(&self, past: Tensor) -> Result<Tensor, ModelError> {
        let SeriesHead::Forecast { told, scaled_logits, .. } = self.spec.head else {
            return Err(ModelError::Unsupported {
                what: "forecasting by".into(),
                found: "a model that tells other things of series".into(),
                supported: "models that tell what comes next".into(),
            });
        };
        let mut inputs = Inputs::default();
        inputs.insert("past_values", past);
        let mut outputs = self.answer(&inputs)?.into_iter();
        let mut next = || outputs.next().map(|(_, tensor)| tensor);
        let name = self.spec.answer;
        let parameters: Vec<Tensor> = (0..told.parameters()).filter_map(|_| next()).collect();
        let (location, scale) = (next(), next());
        let missing = || ModelError::MissingInput { name: name.into() };
        let (location, scale) = location.zip(scale).ok_or_else(missing)?;
        // Logits that count the scale already count it once.
        let scale = if scaled_logits && told == DistributionSpec::NegativeBinomial { None } else { Some(scale) };
        distribution::mean(told, &parameters, &location, scale.as_ref()).map_err(ModelError::at(name))
    }

    /// x: `[batch, moments, channels]`
    fn patches(&self, x: &Tensor) -> Result<Patches, TensorError> {
        let [batch, moments, channels] = x.sizes()?;
        let (patches, length) = (self.spec.patches, self.spec.patches.length);
        // The last patch ends with the series; what does not fit is left out at the beginning.
        let begin = moments.saturating_sub(length + patches.stride * (patches.count - 1));
        let places = (0..patches.count).flat_map(|patch| (0..length).map(move |place| (patch, place)));
        let places: Vec<usize> = places.map(|(patch, place)| begin + patch * patches.stride + place).collect();
        let given = x.transpose(1, 2)?.pick(2, &places)?.reshape(&[batch, channels, patches.count, length])?;
        let Some(hides) = &self.spec.hidden_patches else {
            return Ok(Patches { seen: given.clone(), given, hidden: None });
        };
        let hidden = |channel: usize| {
            let hides_any = !hides.seen.contains(&channel);
            (0..patches.count).map(move |patch| i64::from(hides_any && patch + hides.last >= patches.count))
        };
        let hidden: Vec<i64> = (0..batch).flat_map(|_| (0..channels).flat_map(hidden)).collect();
        let hidden = Tensor::whole(x.engine(), hidden, &[batch, channels, patches.count])?;
        let seen = hidden.unsqueeze(3)?.select(&given.like(hides.value)?, &given)?;
        Ok(Patches { given, seen, hidden: Some(hidden) })
    }

    /// x: `[batch, channels, patches, length]` to `[batch, channels, patches, hidden]`, or one state more.
    fn embed(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let [batch, channels, ..] = x.sizes::<4>()?;
        let mut embedded = match self.embed.as_slice() {
            [shared] if self.spec.shared_embedding => x.linear(shared)?,
            each => {
                let each = each.iter().enumerate();
                let each = each.map(|(channel, layer)| x.at(1, channel)?.linear(layer));
                Tensor::stack(&each.collect::<Result<Vec<_>, _>>()?, 1)?
            }
        };
        if let Some(first) = &self.first {
            let first = first.broadcast(&[batch, channels, 1, self.spec.hidden])?;
            embedded = Tensor::concat(&[first, embedded], 2)?;
        }
        self.positions.as_ref().map_or_else(|| Ok(embedded.clone()), |positions| embedded.add(positions))
    }

    /// x: `[batch, channels, states, hidden]`
    fn told(&self, x: &Tensor, scaled: Scaled, patches: Patches, known: bool) -> Result<Outputs, TensorError> {
        let Scaled { location, scale, .. } = scaled;
        let name = self.spec.answer;
        Ok(match (&self.head, &self.spec.head) {
            (Head::Patches(layer), _) => {
                let skipped = usize::from(self.spec.first);
                let states = x.narrow(2, skipped, self.spec.patches.count)?;
                vec![(name.into(), states.linear(layer)?)]
            }
            (Head::Labels(layer), SeriesHead::Labels { pool, range, .. }) => {
                let labels = pooled(x, *pool)?.flatten(1, 2)?.linear(layer)?;
                vec![(name.into(), within(labels, *range)?)]
            }
            (Head::Numbers(layer), SeriesHead::Numbers { pool, told, range, .. }) => {
                let numbers = layer.forward(&pooled(x, *pool)?.flatten(1, 2)?)?.into_iter();
                let numbers = numbers.map(|numbers| match told {
                    DistributionSpec::Point => within(numbers, *range),
                    // The reference keeps the dimension of a single number only where the target is known.
                    _ if !known && numbers.dim(-1)? == 1 => numbers.squeeze(-1),
                    _ => Ok(numbers),
                });
                named(name, numbers.collect::<Result<_, _>>()?, *told)
            }
            (Head::Forecast(layer), SeriesHead::Forecast { pool, told, channels, scaled_logits, .. }) => {
                let picked = |x: &Tensor| match channels {
                    Some(channels) => x.pick(2, channels),
                    None => Ok(x.clone()),
                };
                let (location, scale) = (picked(&location)?, picked(&scale)?);
                let numbers = layer.forward(&pooled(x, *pool)?)?.into_iter().enumerate();
                let numbers = numbers.map(|(place, numbers)| {
                    let numbers = picked(&numbers.transpose(1, 2)?)?;
                    match (told, place) {
                        (DistributionSpec::Point, _) => numbers.mul(&scale)?.add(&location),
                        // The reference adds it where it measures how well a distribution fits, and answers that.
                        (DistributionSpec::NegativeBinomial, 1) if known || *scaled_logits => {
                            numbers.add(&scale.log()?)
                        }
                        _ => Ok(numbers),
                    }
                });
                let mut all = named(name, numbers.collect::<Result<_, _>>()?, *told);
                all.extend([("loc".into(), location), ("scale".into(), scale)]);
                all
            }
            _ => {
                let mut all = vec![
                    (name.into(), x.clone()),
                    ("loc".into(), location),
                    ("scale".into(), scale),
                    ("patch_input".into(), patches.given),
                ];
                all.extend(patches.hidden.map(|hidden| ("mask".into(), hidden)));
                all
            }
        })
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, name: &str, spec: &SeriesLayerSpec, sizes: [usize; 3]) -> Result<Self, ModelError> {
        Ok(match spec {
            SeriesLayerSpec::Attention(spec) => {
                Self::Attention(Box::new(SeriesLayer::load(loader, name, spec, sizes[2])?))
            }
            SeriesLayerSpec::Mixer(spec) => Self::Mixer(Box::new(SeriesMixer::load(loader, name, spec, sizes)?)),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        match self {
            Self::Attention(layer) => layer.forward(x),
            Self::Mixer(layer) => layer.forward(x),
        }
    }
}

impl Head {
    fn load(loader: &Loader<'_>, spec: &TimeSeriesSpec) -> Result<Self, ModelError> {
        let of_channel = |pool: &SeriesPool| match pool {
            SeriesPool::All | SeriesPool::Elements => spec.hidden * spec.patches.count,
            _ => spec.hidden,
        };
        let name = "head.numbers";
        Ok(match &spec.head {
            SeriesHead::States => Self::States,
            SeriesHead::Patches => {
                Self::Patches(loader.linear("head.patches", spec.patches.length, spec.hidden, true)?)
            }
            SeriesHead::Labels { labels, pool, .. } => {
                Self::Labels(loader.linear("head.labels", *labels, spec.channels * of_channel(pool), true)?)
            }
            SeriesHead::Numbers { numbers, pool, told, .. } => {
                let inputs = spec.channels * of_channel(pool);
                Self::Numbers(Distribution::load(loader, name, *told, *numbers, inputs)?)
            }
            SeriesHead::Forecast { moments, pool, told, .. } => {
                Self::Forecast(Distribution::load(loader, name, *told, *moments, of_channel(pool))?)
            }
        })
    }
}

/// States that are told how their series was scaled. x: `[batch, channels, patches, hidden]` to the same shape.
fn with_scale(x: &Tensor, scaled: &Scaled, layers: &[Linear; 4]) -> Result<Tensor, TensorError> {
    let [batch, channels, patches, _] = x.sizes()?;
    let [scale_up, scale_down, up, down] = layers;
    let both = Tensor::stack(&[scaled.location.squeeze(1)?, scaled.scale.squeeze(1)?], 2)?;
    let told = both.linear(scale_up)?.linear(scale_down)?.unsqueeze(2)?;
    let told = told.broadcast(&[batch, channels, patches, 2])?;
    Tensor::concat(&[x.clone(), told], 3)?.linear(up)?.linear(down)
}

/// One state of each channel: `[batch, channels, states, hidden]` to `[batch, channels, hidden]`, or all in one.
fn pooled(x: &Tensor, pool: SeriesPool) -> Result<Tensor, TensorError> {
    match pool {
        SeriesPool::First => x.at(2, 0),
        SeriesPool::Last => x.at(2, x.dim(2)?.saturating_sub(1)),
        SeriesPool::Mean => x.mean(&[2])?.squeeze(2),
        SeriesPool::Largest => x.largest(&[2])?.squeeze(2),
        SeriesPool::All => x.flatten(2, 3),
        SeriesPool::Elements => x.transpose(2, 3)?.flatten(2, 3),
    }
}

/// Numbers that are kept between two, where there are such.
fn within(numbers: Tensor, range: Option<[f32; 2]>) -> Result<Tensor, TensorError> {
    match range {
        Some([low, high]) => numbers.sigmoid()?.affine(high - low, low),
        None => Ok(numbers),
    }
}

/// The parameters of numbers under the name of a list, or numbers themselves.
fn named(name: &str, numbers: Vec<Tensor>, told: DistributionSpec) -> Outputs {
    let of = |(place, number): (usize, Tensor)| match told {
        DistributionSpec::Point => (name.to_owned(), number),
        _ => (format!("{name}.{place}"), number),
    };
    numbers.into_iter().enumerate().map(of).collect()
}
