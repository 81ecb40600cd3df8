//! Normalisation of rows.

use super::Cpu;
use super::lanes::{Kernel, LANES, Lanes};

impl Cpu {
    /// `x / sqrt(mean(x^2) + eps) * weight`, row by row.
    ///
    /// x, out: `[tokens, n]`; weight: `[n]`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == out.len() && x.len().is_multiple_of(weight.len()), "the shapes of a norm");
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            self.run(RmsNorm { x, weight, eps, out });
        }
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let squares = dot::<L>(self.x, self.x);
        let scale = 1.0 / (squares / self.x.len() as f32 + self.eps).sqrt();
        for ((out, &x), &weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = weight * (x * scale);
        }
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
