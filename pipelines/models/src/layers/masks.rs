//! Masks of objects: where each looks in the image, drawn finer with the maps of earlier stages
//! (<https://arxiv.org/abs/2005.12872>).

use accel_backends::tensor::{Activation, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::convolution::{Convolution, GroupNorm};
use crate::layers::resize::{Filter, resize};
use crate::rules::Loader;

/// What draws masks, with its weights.
#[derive(Debug)]
pub struct Masks {
    heads: usize,
    q: Linear,
    k: Linear,
    draws: Vec<Draw>,
    adapters: Vec<Convolution>,
    out: Convolution,
}

/// A convolution with the norm of its channels.
#[derive(Debug)]
struct Draw {
    convolution: Convolution,
    norm: GroupNorm,
}

impl Masks {
    /// Reads the part `masks`; `widths` are those of the maps.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, hidden: usize, heads: usize, widths: &[usize]) -> Result<Self, ModelError> {
        let loader = loader.part("masks");
        let first = hidden + heads;
        let inner = [first, first, hidden / 2, hidden / 4, hidden / 8, hidden / 16];
        let draw = |number: usize| {
            let (inputs, outputs) = (inner[number], inner[number + 1]);
            let convolution = Convolution::image(&loader, &format!("draws.{number}"), inputs, outputs, 3)?;
            let norm = GroupNorm::load(&loader, &format!("norms.{number}"), outputs, outputs.min(8), 1e-5)?;
            Ok::<_, ModelError>(Draw { convolution, norm })
        };
        let [.., third, second, first] = &reversed(widths)[..] else {
            return Err(ModelError::input("masks", "maps of three stages or more", widths));
        };
        let adapter = |(number, inputs): (usize, usize)| {
            Convolution::image(&loader, &format!("adapters.{number}"), inputs, inner[number + 2], 1)
        };
        Ok(Self {
            heads,
            q: loader.linear("q", hidden, hidden, true)?,
            k: loader.linear("k", hidden, hidden, true)?,
            draws: (0..5).map(draw).collect::<Result<_, _>>()?,
            adapters: [*third, *second, *first].into_iter().enumerate().map(adapter).collect::<Result<_, _>>()?,
            out: Convolution::image(&loader, "out", inner[5], 1, 3)?,
        })
    }

    /// found: `[batch, queries, hidden]`; places: `[batch, height * width, hidden]`; projected: the last map, of as many
    /// elements; maps: of the stages. To `[batch, queries, height, width]` of the first of three maps.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        found: &Tensor,
        places: &Tensor,
        projected: &Tensor,
        maps: &[Tensor],
        absent: &[Vec<bool>],
    ) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("masks");
        let objects = [found.dim(0).map_err(at())?, found.dim(1).map_err(at())?];
        let mut x = self.first(found, places, projected, absent).map_err(at())?;
        x = self.draws[1].forward(&self.draws[0].forward(&x)?)?;
        for ((adapter, draw), map) in self.adapters.iter().zip(&self.draws[2..]).zip(maps.iter().take(3).rev()) {
            x = draw.forward(&finer(&x, &adapter.forward(map)?, objects).map_err(at())?)?;
        }
        let x = self.out.forward(&x)?;
        let dims = [&objects, &x.dims()[2..]].concat();
        x.reshape(&dims).map_err(at())
    }

    /// The last map and where each object looks in it: `[batch * queries, hidden + heads, height, width]`.
    fn first(
        &self,
        found: &Tensor,
        places: &Tensor,
        projected: &Tensor,
        absent: &[Vec<bool>],
    ) -> Result<Tensor, TensorError> {
        let ([batch, queries, hidden], [_, _, height, width]) = (found.sizes()?, projected.sizes()?);
        let looks = self.looks(found, places, absent)?.reshape(&[batch, queries, self.heads, height, width])?;
        let each = projected.unsqueeze(1)?.broadcast(&[batch, queries, hidden, height, width])?;
        Tensor::concat(&[each, looks], 2)?.flatten(0, 1)
    }

    /// Where each object looks, with all heads together: `[batch, queries, heads * places]`.
    fn looks(&self, found: &Tensor, places: &Tensor, absent: &[Vec<bool>]) -> Result<Tensor, TensorError> {
        let ([batch, queries, hidden], [_, count, _]) = (found.sizes()?, places.sizes()?);
        let head = hidden / self.heads;
        let q = found.linear(&self.q)?.scale(1.0 / (head as f32).sqrt())?;
        let q = q.reshape(&[batch, queries, self.heads, head])?.permute(&[0, 2, 1, 3])?;
        let k = places.linear(&self.k)?.reshape(&[batch, count, self.heads, head])?.permute(&[0, 2, 3, 1])?;
        let hidden = absent.iter().flatten().map(|&absent| if absent { -1e30 } else { 0.0 }).collect();
        let scores = q.matmul(&k)?.add(&Tensor::new(found.engine(), hidden, &[batch, 1, 1, count])?)?;
        scores.permute(&[0, 2, 1, 3])?.reshape(&[batch, queries, self.heads * count])?.softmax(-1)
    }
}

impl Draw {
    /// x: `[batch, inputs, height, width]` to `[batch, outputs, height, width]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let x = self.norm.forward(&self.convolution.forward(x)?)?;
        x.activate(Activation::Relu).map_err(ModelError::at("masks"))
    }
}

/// Each object's map `x` in the size of a finer map, which is added to it. x: `[batch * queries, channels, ..]`; finer:
/// `[batch, channels, height, width]`; to `[batch * queries, channels, height, width]`.
fn finer(x: &Tensor, finer: &Tensor, [batch, queries]: [usize; 2]) -> Result<Tensor, TensorError> {
    let [_, channels, height, width] = finer.sizes()?;
    let resized = resize(x, [height, width], Filter::Nearest)?;
    resized.reshape(&[batch, queries, channels, height, width])?.add(&finer.unsqueeze(1)?)?.flatten(0, 1)
}

fn reversed(widths: &[usize]) -> Vec<usize> {
    widths.iter().rev().copied().collect()
}
