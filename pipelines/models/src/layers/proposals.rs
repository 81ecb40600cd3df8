//! Places of an image that look like objects, from which layers then find them (<https://arxiv.org/abs/2010.04159>).

use accel_backends::tensor::{Engine, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::norm::Norm;
use crate::layers::perceptron::Perceptron;
use crate::layers::place::Shown;
use crate::rules::Loader;
use crate::spec::NormSpec;

/// What proposes objects, with its weights.
#[derive(Debug)]
pub struct Proposals {
    count: usize,
    state: Linear,
    state_norm: Norm,
    labels: Linear,
    boxes: Perceptron,
    place: Linear,
    place_norm: Norm,
}

/// What is proposed.
#[derive(Debug)]
pub struct Proposed {
    /// What objects begin with: `[batch, objects, hidden]`.
    pub states: Tensor,
    /// What each looks for, of the same shape.
    pub queries: Tensor,
    /// Where: `[batch, objects, 4]`.
    pub boxes: Tensor,
    /// Logits of all places' labels: `[batch, places, labels]`.
    pub labels: Tensor,
    /// Logits of all places' boxes: `[batch, places, 4]`.
    pub all_boxes: Tensor,
}

impl Proposals {
    /// Reads the part `proposals`; and from `objects` the parts `labels` and `boxes`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        objects: &Loader<'_>,
        hidden: usize,
        labels: usize,
        count: usize,
    ) -> Result<Self, ModelError> {
        let (part, norm) = (loader.part("proposals"), NormSpec::layer(1e-5));
        Ok(Self {
            count,
            state: part.linear("state", hidden, hidden, true)?,
            state_norm: Norm::load(&part, "state_norm", &norm, hidden)?,
            labels: objects.linear("labels", labels, hidden, true)?,
            boxes: Perceptron::load(objects, "boxes", &[hidden, hidden, hidden, 4])?,
            place: part.linear("place", 2 * hidden, 2 * hidden, true)?,
            place_norm: Norm::load(&part, "place_norm", &norm, 2 * hidden)?,
        })
    }

    /// x: `[batch, places, hidden]`, of all maps one after the other; shown: what of each map is no padding.
    ///
    /// # Errors
    ///
    /// When there are fewer places than objects are looked for.
    pub fn of(&self, x: &Tensor, shown: &[Shown]) -> Result<Proposed, ModelError> {
        let at = || ModelError::at("proposals");
        let (begun, whole) = own_boxes(x.engine(), shown).map_err(at())?;
        let states = x.mul(&whole).and_then(|x| x.linear(&self.state)).map_err(at())?;
        let states = self.state_norm.forward(&states)?;
        let labels = states.linear(&self.labels).map_err(at())?;
        let all_boxes = self.boxes.forward(&states)?.add(&begun).map_err(at())?;
        let chosen = || -> Result<(Tensor, Tensor), TensorError> {
            let (_, places) = labels.at(-1, 0)?.top_k(self.count)?;
            let places = places.unsqueeze(-1)?.broadcast(&[places.dim(0)?, self.count, 4])?;
            let boxes = all_boxes.take_along(1, &places)?.sigmoid()?;
            Ok((waves(&boxes, x.dim(2)? / 2)?.linear(&self.place)?, boxes))
        };
        let (places, boxes) = chosen().map_err(at())?;
        let [queries, states] = self.place_norm.forward(&places)?.chunks(2).map_err(at())?;
        Ok(Proposed { states, queries, boxes, labels, all_boxes })
    }
}

/// Logits of a box around each place, infinite where there is none, `[batch, places, 4]`; and 1 where there is one, else 0:
/// `[batch, places, 1]`.
fn own_boxes(engine: &Engine, shown: &[Shown]) -> Result<(Tensor, Tensor), TensorError> {
    let batch = shown.first().map_or(0, |shown| shown.images.len());
    let (mut boxes, mut whole) = (Vec::new(), Vec::new());
    for image in 0..batch {
        for (level, map) in shown.iter().enumerate() {
            let ([height, width], [down, right]) = (map.size, map.ratios()[image]);
            let side = 0.05 * 2f32.powi(level as i32);
            for (place, &shown) in map.images[image].iter().enumerate() {
                let (row, column) = ((place / width) as f32 + 0.5, (place % width) as f32 + 0.5);
                let own = [column / (right * width as f32), row / (down * height as f32), side, side];
                let inside = shown && own.iter().all(|&part| part > 0.01 && part < 0.99);
                boxes.extend(own.map(|part| if inside { (part / (1.0 - part)).ln() } else { f32::INFINITY }));
                whole.push(f32::from(u8::from(inside)));
            }
        }
    }
    let places = whole.len() / batch.max(1);
    Ok((Tensor::new(engine, boxes, &[batch, places, 4])?, Tensor::new(engine, whole, &[batch, places, 1])?))
}

/// Sine and cosine in turn, of falling frequencies, of each number of boxes: `[batch, n, 4]` to `[batch, n, 4 * each]`.
fn waves(boxes: &Tensor, each: usize) -> Result<Tensor, TensorError> {
    let [batch, n, _] = boxes.sizes()?;
    let period = |pair: usize| libm::pow(10_000.0, (2 * pair) as f64 / each as f64) as f32;
    let periods = Tensor::new(boxes.engine(), (0..each / 2).map(period).collect(), &[each / 2])?;
    let turns = boxes.scale(std::f32::consts::TAU)?.unsqueeze(-1)?.div(&periods)?;
    Tensor::stack(&[turns.sin()?, turns.cos()?], -1)?.reshape(&[batch, n, 8 * (each / 2)])
}
