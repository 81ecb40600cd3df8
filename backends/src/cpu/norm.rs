//! Normalisation of rows.

use super::Cpu;
use super::lanes::{Kernel, LANES, Lanes};
use crate::tensor::NormKind;

impl Cpu {
    /// A norm of each row, then times `weight` and plus `bias`.
    ///
    /// x, out: `[rows, width]`; weight, bias: `[width]`.
    #[expect(clippy::too_many_arguments, reason = "they are the operation's")]
    pub fn norm(
        &self,
        kind: NormKind,
        x: &[f32],
        width: usize,
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        eps: f32,
        out: &mut [f32],
    ) {
        let fits = |vector: Option<&[f32]>| vector.is_none_or(|vector| vector.len() == width);
        assert!(x.len() == out.len() && x.len().is_multiple_of(width) && fits(weight) && fits(bias), "a norm's shapes");
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            match kind {
                NormKind::RootMeanSquare => self.run(RmsNorm { x, eps, out }),
                NormKind::Layer => self.run(LayerNorm { x, eps, out }),
            }
            if let Some(weight) = weight {
                out.iter_mut().zip(weight).for_each(|(out, &weight)| *out *= weight);
            }
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(out, &bias)| *out += bias);
            }
        }
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let squares = dot::<L>(self.x, self.x);
        let scale = 1.0 / (squares / self.x.len() as f32 + self.eps).sqrt();
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = x * scale;
        }
    }
}

struct LayerNorm<'a> {
    x: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let width = self.x.len() as f32;
        let (xs, rest) = self.x.as_chunks::<LANES>();
        let mut sum = L::splat(0.0);
        for x in xs {
            // SAFETY: each is eight floats.
            sum = sum.add(unsafe { L::load(x.as_ptr()) });
        }
        let mean = (sum.sum() + rest.iter().sum::<f32>()) / width;
        self.out.iter_mut().zip(self.x).for_each(|(out, &x)| *out = x - mean);
        let scale = 1.0 / (dot::<L>(self.out, self.out) / width + self.eps).sqrt();
        self.out.iter_mut().for_each(|out| *out *= scale);
    }
}

/// The sum of products in the order that [`super`] describes.
#[inline(always)]
pub fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sum = L::splat(0.0);
    for (a, b) in a.iter().zip(b) {
        // SAFETY: each is eight floats.
        unsafe { sum = L::load(a.as_ptr()).mul_add(L::load(b.as_ptr()), sum) };
    }
    if !a_rest.is_empty() {
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        a[..a_rest.len()].copy_from_slice(a_rest);
        b[..b_rest.len()].copy_from_slice(b_rest);
        // SAFETY: each is eight floats.
        unsafe { sum = L::load(a.as_ptr()).mul_add(L::load(b.as_ptr()), sum) };
    }
    sum.sum()
}
