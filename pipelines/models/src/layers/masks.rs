//! Masks of objects: where each looks in the image, drawn finer with the maps of earlier stages
//! (<https://arxiv.org/abs/2005.12872>).

use accel_backends::tensor::{Activation, Convolution, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::resize::{Filter, resize};
use crate::rules::Loader;

/// What draws masks, with its weights.
#[derive(Debug)]
pub struct Masks {
    heads: usize,
    q: Linear,
    k: Linear,
    draws: Vec<Draw>,
    adapters: Vec<Linear>,
    out: Linear,
}

/// A convolution with the norm of its channels.
#[derive(Debug)]
struct Draw {
    conv: Linear,
    norm: (Tensor, Tensor),
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
            let vector = |part: &str| loader.tensor(&format!("norms.{number}.{part}"), &[outputs]);
            let conv = loader.layer(&format!("draws.{number}"), &[outputs, inputs, 3, 3], true)?;
            Ok::<_, ModelError>(Draw { conv, norm: (vector("weight")?, vector("bias")?) })
        };
        let [.., third, second, first] = &reversed(widths)[..] else {
            return Err(ModelError::input("masks", "maps of three stages or more", widths));
        };
        let adapter = |(number, inputs): (usize, usize)| {
            loader.layer(&format!("adapters.{number}"), &[inner[number + 2], inputs, 1, 1], true)
        };
        Ok(Self {
            heads,
            q: loader.linear("q", hidden, hidden, true)?,
            k: loader.linear("k", hidden, hidden, true)?,
            draws: (0..5).map(draw).collect::<Result<_, _>>()?,
            adapters: [*third, *second, *first].into_iter().enumerate().map(adapter).collect::<Result<_, _>>()?,
            out: loader.layer("out", &[1, inner[5], 3, 3], true)?,
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
        self.draw(found, places, projected, maps, absent).map_err(ModelError::at("masks"))
    }

    fn draw(
        &self,
        found: &Tensor,
        places: &Tensor,
        projected: &Tensor,
        maps: &[Tensor],
        absent: &[Vec<bool>],
    ) -> Result<Tensor, TensorError> {
        let ([batch, queries, hidden], [_, _, height, width]) = (found.sizes()?, projected.sizes()?);
        let looks = self.looks(found, places, absent)?.reshape(&[batch, queries, self.heads, height, width])?;
        let each = projected.unsqueeze(1)?.broadcast(&[batch, queries, hidden, height, width])?;
        let mut x = Tensor::concat(&[each, looks], 2)?.flatten(0, 1)?;
        x = self.draws[1].forward(&self.draws[0].forward(&x)?)?;
        for (number, adapter) in self.adapters.iter().enumerate() {
            let finer = maps[2 - number].convolution(&Convolution::new(2), adapter)?;
            let [_, channels, rows, columns] = finer.sizes()?;
            let resized = resize(&x, [rows, columns], Filter::Nearest)?;
            x = resized
                .reshape(&[batch, queries, channels, rows, columns])?
                .add(&finer.unsqueeze(1)?)?
                .flatten(0, 1)?;
            x = self.draws[number + 2].forward(&x)?;
        }
        let x = x.convolution(&Convolution::new(2).padding(1), &self.out)?;
        let [_, _, rows, columns] = x.sizes()?;
        x.reshape(&[batch, queries, rows, columns])
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
    fn forward(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let x = x.convolution(&Convolution::new(2).padding(1), &self.conv)?;
        let groups = x.dim(1)?.min(8);
        x.group_norm(groups, Some((&self.norm.0, &self.norm.1)), 1e-5)?.activate(Activation::Relu)
    }
}

fn reversed(widths: &[usize]) -> Vec<usize> {
    widths.iter().rev().copied().collect()
}
