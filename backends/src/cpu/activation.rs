//! The exponential, and activations made of it.
use super::Cpu;
use super::lanes::{Kernel, LANES, Lanes};

/// Tokens' worth of floats that one part of the work takes.
const PART: usize = 4096;

/// `e^x`, to within two units in the last place; below the range of normal floats it stays at the smallest of them.
///
/// The Cephes polynomial (S. L. Moshier, `expf`), in fused multiply-adds.
#[inline(always)]
pub fn exp<L: Lanes>(x: L) -> L {
    // The bounds come first, so that NaN passes through.
    let x = L::splat(88.0).min(L::splat(-87.0).max(x));
    let power = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
    let rest = power.mul_add(L::splat(-0.693_359_4), x);
    let rest = power.mul_add(L::splat(2.121_944_4e-4), rest);
    let mut sum = L::splat(1.987_569_1e-4);
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        sum = sum.mul_add(rest, L::splat(factor));
    }
    let sum = sum.mul_add(rest.mul(rest), rest).add(L::splat(1.0));
    sum.mul(power.exp2_whole())
}

/// What elements go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `x / (1 + e^-x)`
    Silu,
    /// `x (1 + erf(x / sqrt(2))) / 2`, exactly so and not an approximation.
    Gelu,
    /// The same, but 10 at most.
    GeluClipped,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`
    GeluTanh,
    /// `x / (1 + e^(-1.702 x))`
    GeluQuick,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)^2`
    Relu2,
    /// `min(max(x, 0), 6)`
    Relu6,
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `min(max(x / 6 + 1/2, 0), 1)`
    HardSigmoid,
    /// `x` times its hard sigmoid.
    HardSwish,
    /// `(1 + erf((x - sqrt(1/2)) / (sqrt(2) sigma))) / 2`, where `sigma` is `sqrt(1 / (4 pi))` in six decimals
    /// (<https://arxiv.org/abs/2209.10655>).
    Laplace,
    /// `log(1 + e^x)`
    Softplus,
    /// `x tanh(log(1 + e^x))`
    Mish,
    /// `x`, or below zero `e^x - 1`.
    Elu,
    /// `x`, or below zero a part of it.
    LeakyRelu {
        /// The part, in hundredths.
        hundredths: u8,
    },
}

impl Cpu {
    /// `activation(gate) * up`, elementwise; false where there is no kernel.
    pub fn gated(&self, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) -> bool {
        assert!(gate.len() == up.len() && up.len() == out.len(), "the shapes of a gated activation");
        let Some(scalar) = scalar(activation) else { return false };
        self.chunks(out, PART, &|part, out| {
            let from = part * PART;
            let (gate, up) = (&gate[from..][..out.len()], &up[from..][..out.len()]);
            match activation {
                Activation::Silu => self.run(Swiglu { gate, up, out }),
                _ => out.iter_mut().zip(gate).zip(up).for_each(|((out, &gate), &up)| *out = scalar(gate) * up),
            }
        });
        true
    }

    /// `activation(x)`, elementwise; false where there is no kernel.
    pub fn activate(&self, activation: Activation, x: &[f32], out: &mut [f32]) -> bool {
        assert!(x.len() == out.len(), "the shape of an activation");
        let Some(scalar) = scalar(activation) else { return false };
        self.chunks(out, PART, &|part, out| {
            let x = &x[part * PART..][..out.len()];
            match activation {
                Activation::Silu => self.run(Swish { x, out }),
                _ => out.iter_mut().zip(x).for_each(|(out, &x)| *out = scalar(x)),
            }
        });
        true
    }
}

/// The activation of one number, where there is a kernel.
fn scalar(activation: Activation) -> Option<fn(f32) -> f32> {
    Some(match activation {
        // Vectors of it have a kernel of their own.
        Activation::Silu => |x| x / (1.0 + libm::expf(-x)),
        Activation::Gelu => |x| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => |x| 0.5 * x * (1.0 + libm::tanhf(0.797_884_6 * (x + 0.044_715 * x * x * x))),
        Activation::GeluQuick => |x| x / (1.0 + libm::expf(-1.702 * x)),
        Activation::Relu => |x| if x < 0.0 { 0.0 } else { x },
        Activation::Relu2 => |x| if x < 0.0 { 0.0 } else { x * x },
        Activation::Tanh => libm::tanhf,
        Activation::Sigmoid => |x| 1.0 / (1.0 + libm::expf(-x)),
        Activation::Softplus => |x| libm::log1pf(libm::expf(-x.abs())) + if x < 0.0 { 0.0 } else { x },
        _ => return None,
    })
}

#[inline(always)]
fn silu<L: Lanes>(x: L) -> L {
    // Below, the result is smaller than any activation that matters, but the bounded exponential would not make it so.
    let x = L::splat(-88.0).max(x);
    x.div(exp(x.mul(L::splat(-1.0))).add(L::splat(1.0)))
}

struct Swiglu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Swiglu<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (gates, gate_rest) = self.gate.as_chunks::<LANES>();
        let (ups, up_rest) = self.up.as_chunks::<LANES>();
        let (outs, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            // SAFETY: each is eight floats.
            unsafe { silu(L::load(gate.as_ptr())).mul(L::load(up.as_ptr())).store(out.as_mut_ptr()) };
        }
        for ((&gate, &up), out) in gate_rest.iter().zip(up_rest).zip(out_rest) {
            *out = silu(L::splat(gate)).mul(L::splat(up)).to_array()[0];
        }
    }
}

struct Swish<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Swish<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (xs, rest) = self.x.as_chunks::<LANES>();
        let (outs, out_rest) = self.out.as_chunks_mut::<LANES>();
        for (x, out) in xs.iter().zip(outs) {
            // SAFETY: each is eight floats.
            unsafe { silu(L::load(x.as_ptr())).store(out.as_mut_ptr()) };
        }
        for (&x, out) in rest.iter().zip(out_rest) {
            *out = silu(L::splat(x)).to_array()[0];
        }
    }
}
