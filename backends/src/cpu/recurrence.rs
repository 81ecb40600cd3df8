//! Recurrences of one sequence: token after token, channels side by side.
//!
//! A channel's result depends on its own numbers alone, in the order of the tokens, and what is carried is exact: a
//! sequence that is read in pieces gives the same bits.

use super::Cpu;
use super::activation::exp;
use super::lanes::{Kernel, LANES, Lanes};
use super::pool::Target;
use crate::tensor::Scan;

/// Channels that one part of the work takes.
const PART: usize = 64;

/// What a scan reads; shapes stand at [`Scan`].
#[derive(Clone, Copy, Debug)]
pub struct ScanParts<'a> {
    /// `[tokens, heads * head]`
    pub x: &'a [f32],
    /// `[tokens, heads]`
    pub step: &'a [f32],
    /// `[heads, places or 1]`
    pub rate: &'a [f32],
    /// `[tokens, groups * places]`
    pub input: &'a [f32],
    /// `[tokens, groups * places]`
    pub output: &'a [f32],
    /// `[heads]`
    pub skip: &'a [f32],
}

impl Cpu {
    /// x, out: `[tokens, channels]`; weight: `[taps, channels]`; tail: `[taps - 1, channels]`, which becomes that of the
    /// next tokens.
    pub fn causal_convolution(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        tail: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let channels = weight.len() - tail.len();
        let taps = weight.len() / channels;
        assert!(x.len() == out.len() && x.len().is_multiple_of(channels), "the shape of a causal convolution");
        assert!(weight.len() == taps * channels, "the weight of a causal convolution");
        let kept = tail.len();
        tail.extend_from_slice(x);
        for (token, out) in out.chunks_exact_mut(channels).enumerate() {
            let seen = tail[token * channels..].chunks_exact(channels);
            for (x, weight) in seen.zip(weight.chunks_exact(channels)) {
                out.iter_mut().zip(x).zip(weight).for_each(|((out, &x), &weight)| *out += x * weight);
            }
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(out, &bias)| *out += bias);
            }
        }
        tail.drain(..tail.len() - kept);
    }

    /// state: `[heads * head, places]`, which becomes that after the last token; out: as x.
    pub fn scan(
        &self,
        scan: Scan,
        (heads, places): (usize, usize),
        parts: &ScanParts<'_>,
        state: &mut [f32],
        out: &mut [f32],
    ) {
        let width = heads * scan.head;
        let tokens = out.len() / width;
        let shared = tokens * scan.groups * places;
        let fits = parts.x.len() == out.len()
            && parts.step.len() == tokens * heads
            && (parts.rate.len() == heads || parts.rate.len() == heads * places)
            && parts.input.len() == shared
            && parts.output.len() == shared
            && parts.skip.len() == heads
            && state.len() == width * places
            && heads.is_multiple_of(scan.groups);
        assert!(fits, "the shapes of a scan");
        // Places are read eight at a time: what is missing in the last eight weighs nothing.
        let padded = places.next_multiple_of(LANES);
        let input = widened(parts.input, places, padded);
        let output = widened(parts.output, places, padded);
        let rates = parts.rate.len() / heads;
        let rate = if rates == 1 { parts.rate.to_vec() } else { widened(parts.rate, places, padded) };
        let (out, state) = (Target(out.as_mut_ptr()), Target(state.as_mut_ptr()));
        let (out, state) = (&out, &state);
        let each = PART.div_ceil(scan.head);
        self.pool.run(heads.div_ceil(each), &|part, scratch| {
            scratch.sums.clear();
            scratch.sums.resize(padded, 0.0);
            for channel in part * each * scan.head..heads.min((part + 1) * each) * scan.head {
                let head = channel / scan.head;
                // SAFETY: parts are disjoint ranges of channels, and `state` is borrowed for as long as they run.
                let kept = unsafe { std::slice::from_raw_parts_mut(state.0.add(channel * places), places) };
                scratch.sums[..places].copy_from_slice(kept);
                self.run(ScanChannel {
                    channel,
                    head,
                    width,
                    heads,
                    group: head / (heads / scan.groups),
                    groups: scan.groups,
                    parts,
                    rate: &rate[head * (rate.len() / heads)..][..rate.len() / heads],
                    input: &input,
                    output: &output,
                    state: &mut scratch.sums,
                    out,
                });
                kept.copy_from_slice(&scratch.sums[..places]);
            }
        });
    }

    /// keys and values, out: `[tokens, width]`; decay and first: `[width]`; state: `[3, width]`, which becomes that after
    /// the last token.
    pub fn wkv(&self, [key, value]: [&[f32]; 2], [decay, first]: [&[f32]; 2], state: &mut [f32], out: &mut [f32]) {
        let width = decay.len();
        let fits = key.len() == out.len() && value.len() == out.len() && out.len().is_multiple_of(width);
        assert!(fits && first.len() == width && state.len() == 3 * width, "the shapes of wkv");
        self.run(Wkv { key, value, decay, first, state, out });
    }
}

/// Rows of `padded` numbers, the first `places` of each as they are in `x`, the rest 0.
fn widened(x: &[f32], places: usize, padded: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / places * padded];
    for (to, from) in out.chunks_exact_mut(padded).zip(x.chunks_exact(places)) {
        to[..places].copy_from_slice(from);
    }
    out
}

struct ScanChannel<'a> {
    channel: usize,
    head: usize,
    width: usize,
    heads: usize,
    group: usize,
    groups: usize,
    parts: &'a ScanParts<'a>,
    rate: &'a [f32],
    input: &'a [f32],
    output: &'a [f32],
    state: &'a mut [f32],
    out: &'a Target,
}

impl Kernel for ScanChannel<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let padded = self.state.len();
        for token in 0..self.parts.x.len() / self.width {
            let x = self.parts.x[token * self.width + self.channel];
            let step = self.parts.step[token * self.heads + self.head];
            let from = (token * self.groups + self.group) * padded;
            let (inputs, outputs) = (&self.input[from..from + padded], &self.output[from..from + padded]);
            let (steps, added) = (L::splat(step), L::splat(step * x));
            let one = exp(L::splat(self.rate[0]).mul(steps));
            let mut sum = L::splat(0.0);
            let lanes = self.state.as_chunks_mut::<LANES>().0.iter_mut();
            let shared = inputs.as_chunks::<LANES>().0.iter().zip(outputs.as_chunks::<LANES>().0);
            for (place, (state, (input, output))) in lanes.zip(shared).enumerate() {
                // SAFETY: each is eight floats.
                unsafe {
                    let keep = match self.rate.get(place * LANES..(place + 1) * LANES) {
                        Some(rate) if self.rate.len() == padded => exp(L::load(rate.as_ptr()).mul(steps)),
                        _ => one,
                    };
                    let now = keep.mul_add(L::load(state.as_ptr()), added.mul(L::load(input.as_ptr())));
                    now.store(state.as_mut_ptr());
                    sum = now.mul_add(L::load(output.as_ptr()), sum);
                }
            }
            let y = sum.sum() + self.parts.skip[self.head] * x;
            // SAFETY: the place is inside `out`, and no other part writes this channel.
            unsafe { *self.out.0.add(token * self.width + self.channel) = y };
        }
    }
}

struct Wkv<'a> {
    key: &'a [f32],
    value: &'a [f32],
    decay: &'a [f32],
    first: &'a [f32],
    state: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for Wkv<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let width = self.decay.len();
        for from in (0..width).step_by(LANES) {
            let count = LANES.min(width - from);
            let read = |values: &[f32], from: usize| -> [f32; LANES] {
                let mut lanes = [0.0; LANES];
                lanes[..count].copy_from_slice(&values[from..from + count]);
                lanes
            };
            let (decay, first) = (lanes::<L>(&read(self.decay, from)), lanes::<L>(&read(self.first, from)));
            let mut sums = Sums {
                values: lanes::<L>(&read(self.state, from)),
                weights: lanes::<L>(&read(self.state, width + from)),
                power: lanes::<L>(&read(self.state, 2 * width + from)),
            };
            for token in (0..self.key.len()).step_by(width) {
                let key = lanes::<L>(&read(self.key, token + from));
                let value = lanes::<L>(&read(self.value, token + from));
                let seen = sums.joined(L::splat(0.0), key.add(first), value);
                let out = seen.values.div(seen.weights).to_array();
                self.out[token + from..][..count].copy_from_slice(&out[..count]);
                sums = sums.joined(decay, key, value);
            }
            for (place, part) in [sums.values, sums.weights, sums.power].into_iter().enumerate() {
                self.state[place * width + from..][..count].copy_from_slice(&part.to_array()[..count]);
            }
        }
    }
}

#[inline(always)]
fn lanes<L: Lanes>(values: &[f32; LANES]) -> L {
    // SAFETY: it is eight floats.
    unsafe { L::load(values.as_ptr()) }
}

/// Sums of weighed values and of weights, both to be multiplied by `e^power`, which alone might overflow.
struct Sums<L> {
    values: L,
    weights: L,
    power: L,
}

impl<L: Lanes> Sums<L> {
    /// The same, `decay` later, and one value more.
    #[inline(always)]
    fn joined(&self, decay: L, key: L, value: L) -> Self {
        let power = self.power.add(decay);
        let largest = power.max(key);
        let less = largest.mul(L::splat(-1.0));
        let (before, now) = (exp(power.add(less)), exp(key.add(less)));
        Self {
            values: before.mul_add(self.values, now.mul(value)),
            weights: before.mul_add(self.weights, now),
            power: largest,
        }
    }
}
