//! Convolutions as products: each place of the output becomes a row of what its taps see.

use super::op::{Convolution, Op};
use super::{Engine, Tensor, TensorError, Weight};
use crate::cpu::Product;

/// Values of patches that a convolution has at once: what they take stays near the processor, and is still read by many
/// rows of weights.
const PATCH_VALUES: usize = 1 << 19;
/// Places that are filled together: as many neighbours as one line of the cache holds.
const TOGETHER: usize = 16;
/// Channels that one part of the work turns.
const PART_CHANNELS: usize = 32;

/// `[batch, channels, space..]` and weights `[outputs, channels of a group, taps..]` to `[batch, outputs, space..]`.
pub(super) fn eager(engine: &Engine, conv: &Convolution, args: &[&Tensor]) -> Result<Tensor, TensorError> {
    let (x, weight) = (args[0], super::eager::stored(args[1])?);
    let out_dims = Op::Convolution(conv.clone()).infer(args)?.remove(0).1;
    let bias = args.get(2).map(|bias| bias.to_vec()).transpose()?;
    let rows = Patches::new(conv, x.dims(), args[1].dims(), &out_dims);
    let (outputs, group) = (weight.rows(), weight.rows() / conv.groups);
    let (batch, places, columns) = (out_dims[0], rows.places, weight.columns());
    let mut out = vec![0.0; batch * outputs * places];
    let most = (PATCH_VALUES / columns.max(1)).clamp(TOGETHER, places.max(TOGETHER));
    let mut patches = vec![0.0; most * columns];
    let mut product = vec![0.0; most * group];
    let groups: Vec<Weight> = (0..conv.groups).map(|number| weight.rows_of(number * group, group)).collect();
    let kernels = engine.kernels();
    x.read(|x| {
        for image in 0..batch {
            let x = &x[image * rows.image..][..rows.image];
            for (number, weight) in groups.iter().enumerate() {
                let bias = bias.as_ref().map(|bias| &bias[number * group..][..group]);
                let out = &mut out[(image * outputs + number * group) * places..][..group * places];
                for first in (0..places).step_by(most) {
                    let count = most.min(places - first);
                    let patches = &mut patches[..count * columns];
                    kernels.chunks(patches, TOGETHER * columns, &|part, patches| {
                        rows.fill(x, number, first + part * TOGETHER, patches);
                    });
                    let product = &mut product[..count * group];
                    kernels.linear(patches, count, &mut [Product { weight, bias, out: &mut *product }]);
                    let product = &*product;
                    kernels.chunks(out, PART_CHANNELS * places, &|part, out| {
                        turn(product, group, part * PART_CHANNELS, &mut out[first..], places);
                    });
                }
            }
        }
    })?;
    Tensor::new(engine, out, &out_dims)
}

/// Rows `[places, channels]` to `[some channels, places]`, of which `all` are from one channel to the next.
fn turn(rows: &[f32], channels: usize, first: usize, out: &mut [f32], all: usize) {
    for (number, rows) in rows.chunks(TOGETHER * channels).enumerate() {
        let count = rows.len() / channels;
        for (channel, out) in (first..channels).zip(out.chunks_mut(all)) {
            let out = &mut out[number * TOGETHER..][..count];
            out.iter_mut().zip(rows[channel..].iter().step_by(channels)).for_each(|(out, value)| *out = *value);
        }
    }
}

/// Where the taps of a convolution lie, in up to three dimensions.
struct Patches {
    channels: usize,
    image: usize,
    places: usize,
    size: [usize; 3],
    taps: [usize; 3],
    out: [usize; 3],
    stride: [usize; 3],
    before: [usize; 3],
    dilation: [usize; 3],
}

impl Patches {
    fn new(conv: &Convolution, x: &[usize], weight: &[usize], out: &[usize]) -> Self {
        // Fewer dimensions are the last of three.
        let three = |values: &[usize]| {
            let mut all = [1; 3];
            all[3 - values.len()..].copy_from_slice(values);
            all
        };
        let mut before = [0; 3];
        let first = 3 - conv.padding.len();
        conv.padding.iter().enumerate().for_each(|(axis, (zeros, _))| before[first + axis] = *zeros);
        Self {
            channels: weight[1],
            image: x[1..].iter().product(),
            places: out[2..].iter().product(),
            size: three(&x[2..]),
            taps: three(&weight[2..]),
            out: three(&out[2..]),
            stride: three(&conv.stride),
            before,
            dilation: three(&conv.dilation),
        }
    }

    /// The patches of some places from `first` on: `[places, channels of the group * taps]`, [`TOGETHER`] at most.
    fn fill(&self, image: &[f32], group: usize, first: usize, patches: &mut [f32]) {
        let area = self.size.iter().product::<usize>();
        let taps = self.taps.iter().product::<usize>();
        let row = self.channels * taps;
        for tap in 0..taps {
            // What this tap sees of a channel, at each place; nothing where it sees the zeros around it.
            let mut seen = [None; TOGETHER];
            let count = patches.len() / row;
            seen.iter_mut().zip(first..first + count).for_each(|(seen, place)| *seen = self.seen(place, tap));
            let begin = seen[0].unwrap_or(0);
            let side_by_side = (0..count).all(|place| seen[place] == Some(begin + place));
            for channel in 0..self.channels {
                let from = &image[(group * self.channels + channel) * area..][..area];
                let to = patches[channel * taps + tap..].iter_mut().step_by(row);
                if side_by_side {
                    to.zip(&from[begin..begin + count]).for_each(|(to, value)| *to = *value);
                } else {
                    to.zip(seen).for_each(|(to, seen)| *to = seen.map_or(0.0, |at| from[at]));
                }
            }
        }
    }

    /// Where in a channel a tap at a place lies, if it lies inside.
    fn seen(&self, place: usize, tap: usize) -> Option<usize> {
        let [_, out_height, out_width] = self.out;
        let [_, tap_height, tap_width] = self.taps;
        let places = [place / (out_height * out_width), place / out_width % out_height, place % out_width];
        let taps = [tap / (tap_height * tap_width), tap / tap_width % tap_height, tap % tap_width];
        let mut at = 0;
        for axis in 0..3 {
            let inside = places[axis] * self.stride[axis] + taps[axis] * self.dilation[axis];
            let inside = inside.checked_sub(self.before[axis]).filter(|&inside| inside < self.size[axis])?;
            at = at * self.size[axis] + inside;
        }
        Some(at)
    }
}
