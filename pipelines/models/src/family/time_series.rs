//! Models of time series (PatchTST, <https://arxiv.org/abs/2211.14730>): each channel is cut into patches, layers make
//! states of them, and a head tells what comes next or what the series is.

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::distribution::Distribution;
use crate::layers::series_layer::SeriesLayer;
use crate::layers::series_scale::{Scaled, scaled};
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::time_series::{DistributionSpec, SeriesHead, SeriesPool, TimeSeriesSpec};

/// A model of time series with its weights.
#[derive(Debug)]
pub struct TimeSeries {
    spec: TimeSeriesSpec,
    embed: Vec<Linear>,
    first: Option<Tensor>,
    positions: Tensor,
    layers: Vec<SeriesLayer>,
    head: Head,
}

#[derive(Debug)]
enum Head {
    States,
    Patches(Linear),
    Labels(Linear, SeriesPool),
    Numbers(Distribution, SeriesPool),
    Forecast(Distribution, SeriesPool),
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
        let layers = spec.layers.iter().enumerate();
        let layers =
            layers.map(|(number, layer)| SeriesLayer::load(loader, &format!("layers.{number}"), layer, hidden));
        let first = spec.first.then(|| loader.tensor("first", &[1, 1, 1, hidden])).transpose()?;
        Ok(Self {
            embed,
            first,
            positions: loader.tensor("positions", &[spec.patches.count + usize::from(spec.first), hidden])?,
            layers: layers.collect::<Result<_, _>>()?,
            head: Head::load(loader, &spec)?,
            spec,
        })
    }

    /// Answers what the model's class answers of `past_values`, `[batch, moments, channels]`. What is known of the future
    /// is accepted, as it is for training, and not looked at.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let known = match self.head {
            Head::Labels(..) | Head::Numbers(..) => "target_values",
            Head::States | Head::Forecast(..) => "future_values",
            Head::Patches(_) => "past_values",
        };
        inputs.only(&["past_values", "past_observed_mask", known])?;
        let past = inputs.tensor("past_values")?;
        if !matches!(past.dims(), &[_, length, channels] if length == self.spec.length && channels == self.spec.channels)
        {
            let expected = format!("[batch, {}, {}]", self.spec.length, self.spec.channels);
            return Err(ModelError::input("past_values", &expected, past.dims()));
        }
        let seen = inputs.optional_mask("past_observed_mask")?;
        if let Some((_, dims)) = seen.as_ref().filter(|(_, dims)| *dims != past.dims()) {
            return Err(ModelError::input("past_observed_mask", &format!("{:?}", past.dims()), dims));
        }
        let seen = seen.map(|(seen, _)| seen);
        let scaled = scaled(self.spec.scaling, past, seen.as_deref()).map_err(ModelError::at("past_values"))?;
        let patches = self.patches(&scaled.x).map_err(ModelError::at("patches"))?;
        let mut x = self.embed(&patches.seen).map_err(ModelError::at("embed"))?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        self.told(&x, scaled, patches, inputs.optional(known).is_some()).map_err(ModelError::at("head"))
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
        let [batch, channels, patches, _] = x.sizes()?;
        let embedded = match self.embed.as_slice() {
            [shared] if self.spec.shared_embedding => x.linear(shared)?,
            each => {
                let each = each.iter().enumerate();
                let each = each.map(|(channel, layer)| x.at(1, channel)?.linear(layer));
                Tensor::stack(&each.collect::<Result<Vec<_>, _>>()?, 1)?
            }
        };
        let Some(first) = &self.first else { return embedded.add(&self.positions) };
        let first = first.add(&self.positions.narrow(0, 0, 1)?)?;
        let first = first.broadcast(&[batch, channels, 1, self.spec.hidden])?;
        Tensor::concat(&[first, embedded.add(&self.positions.narrow(0, 1, patches)?)?], 2)
    }

    /// x: `[batch, channels, states, hidden]`
    fn told(&self, x: &Tensor, scaled: Scaled, patches: Patches, known: bool) -> Result<Outputs, TensorError> {
        let Scaled { location, scale, .. } = scaled;
        Ok(match (&self.head, &self.spec.head) {
            (Head::Patches(layer), _) => {
                let skipped = usize::from(self.spec.first);
                let states = x.narrow(2, skipped, self.spec.patches.count)?;
                vec![("prediction_output".into(), states.linear(layer)?)]
            }
            (Head::Labels(layer, pool), _) => {
                vec![("prediction_logits".into(), pooled(x, *pool)?.flatten(1, 2)?.linear(layer)?)]
            }
            (Head::Numbers(layer, pool), SeriesHead::Numbers { told, range, .. }) => {
                let mut numbers = layer.forward(&pooled(x, *pool)?.flatten(1, 2)?)?;
                match (told, range) {
                    (DistributionSpec::Point, Some([low, high])) => {
                        let within = |x: &Tensor| x.sigmoid()?.affine(high - low, *low);
                        numbers = numbers.iter().map(within).collect::<Result<_, _>>()?;
                    }
                    (DistributionSpec::Point, None) => {}
                    // The reference keeps the dimension of a single number only where the target is known.
                    _ if !known => {
                        let squeezed = |x: Tensor| if x.dim(-1)? == 1 { x.squeeze(-1) } else { Ok(x) };
                        numbers = numbers.into_iter().map(squeezed).collect::<Result<_, _>>()?;
                    }
                    _ => {}
                }
                named("regression_outputs", numbers, *told)
            }
            (Head::Forecast(layer, pool), SeriesHead::Forecast { told, .. }) => {
                let numbers = layer.forward(&pooled(x, *pool)?)?;
                let turned = |x: Tensor| {
                    let x = x.transpose(1, 2)?;
                    if *told == DistributionSpec::Point { x.mul(&scale)?.add(&location) } else { Ok(x) }
                };
                let numbers = numbers.into_iter().map(turned).collect::<Result<_, _>>()?;
                let mut all = named("prediction_outputs", numbers, *told);
                all.extend([("loc".into(), location), ("scale".into(), scale)]);
                all
            }
            _ => {
                let mut all = vec![
                    ("last_hidden_state".into(), x.clone()),
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

impl Head {
    fn load(loader: &Loader<'_>, spec: &TimeSeriesSpec) -> Result<Self, ModelError> {
        let (hidden, channels) = (spec.hidden, spec.channels);
        Ok(match spec.head {
            SeriesHead::States => Self::States,
            SeriesHead::Patches => Self::Patches(loader.linear("head.patches", spec.patches.length, hidden, true)?),
            SeriesHead::Labels { labels, pool } => {
                Self::Labels(loader.linear("head.labels", labels, channels * hidden, true)?, pool)
            }
            SeriesHead::Numbers { numbers, pool, told, .. } => {
                Self::Numbers(Distribution::load(loader, "head.numbers", told, numbers, channels * hidden)?, pool)
            }
            SeriesHead::Forecast { moments, pool, told } => {
                let inputs = if pool == SeriesPool::All { hidden * spec.patches.count } else { hidden };
                Self::Forecast(Distribution::load(loader, "head.numbers", told, moments, inputs)?, pool)
            }
        })
    }
}

/// One state of each channel: `[batch, channels, states, hidden]` to `[batch, channels, hidden]`, or all in one.
fn pooled(x: &Tensor, pool: SeriesPool) -> Result<Tensor, TensorError> {
    match pool {
        SeriesPool::First => x.at(2, 0),
        SeriesPool::Mean => x.mean(&[2])?.squeeze(2),
        SeriesPool::Largest => x.largest(&[2])?.squeeze(2),
        SeriesPool::All => x.flatten(2, 3),
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
