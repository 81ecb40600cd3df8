//! The formats that are unpacked element by element: Q5_0, Q5_1 and those in blocks of 256.
//!
//! Layouts and the order of operations are those of ggml's reference dequantisation
//! (<https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>): products and sums are rounded apart.

use half::f16;

use crate::weights::Dtype;

/// Unpacks whole blocks; types of other modules leave `out` as it is.
#[inline(always)]
pub fn unpack(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::Q5_0 => blocks::<Q5_0>(dtype, bytes, out),
        Dtype::Q5_1 => blocks::<Q5_1>(dtype, bytes, out),
        Dtype::Q2_K => blocks::<Q2K>(dtype, bytes, out),
        Dtype::Q3_K => blocks::<Q3K>(dtype, bytes, out),
        Dtype::Q4_K => blocks::<Q4K>(dtype, bytes, out),
        Dtype::Q5_K => blocks::<Q5K>(dtype, bytes, out),
        Dtype::Q6_K => blocks::<Q6K>(dtype, bytes, out),
        _ => {}
    }
}

/// A format whose blocks are unpacked in plain Rust.
///
/// What is called is `#[inline(always)]`, so that the compiler makes vectors of the loops with the instructions of the caller.
trait Format {
    /// Unpacks a block.
    fn unpack(block: &[u8], out: &mut [f32]);
}

#[inline(always)]
fn blocks<F: Format>(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let (block, block_bytes) = dtype.block();
    for (from, to) in bytes.chunks_exact(block_bytes).zip(out.chunks_exact_mut(block)) {
        F::unpack(from, to);
    }
}

struct Q5_0;
struct Q5_1;
struct Q2K;
struct Q3K;
struct Q4K;
struct Q5K;
struct Q6K;

#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32_const()
}

impl Format for Q5_0 {
    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let scale = half(block, 0);
        for (place, value) in fives(&block[2..6], &block[6..]).into_iter().enumerate() {
            out[place] = f32::from(i16::from(value) - 16) * scale;
        }
    }
}

impl Format for Q5_1 {
    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (scale, least) = (half(block, 0), half(block, 2));
        for (place, value) in fives(&block[4..8], &block[8..]).into_iter().enumerate() {
            out[place] = f32::from(value) * scale + least;
        }
    }
}

/// Values of five bits: the fifth bits come first.
#[inline(always)]
fn fives(fifth: &[u8], nibbles: &[u8]) -> [u8; 32] {
    let fifth = u32::from_le_bytes([fifth[0], fifth[1], fifth[2], fifth[3]]);
    std::array::from_fn(|place| {
        let byte = nibbles[place % 16];
        let nibble = if place < 16 { byte & 15 } else { byte >> 4 };
        nibble | (((fifth >> place) & 1) << 4) as u8
    })
}

impl Format for Q2K {
    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (scales, values) = (&block[..16], &block[16..80]);
        let (scale, least) = (half(block, 80), half(block, 82));
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let (d, m) = (scale * f32::from(scales[group] & 15), least * f32::from(scales[group] >> 4));
            // 128 elements lie in 32 bytes: four planes of two bits.
            let from = group / 8 * 32 + group % 2 * 16;
            let shift = group % 8 / 2 * 2;
            for (place, out) in out.iter_mut().enumerate() {
                *out = d * f32::from(values[from + place] >> shift & 3) - m;
            }
        }
    }
}

impl Format for Q3K {
    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (high, values, packed) = (&block[..32], &block[32..96], &block[96..108]);
        let scale = half(block, 108);
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let low = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
            let top = packed[8 + group % 4] >> (group / 4 * 2) & 3;
            let d = scale * f32::from(i16::from(low | top << 4) - 32);
            let from = group / 8 * 32 + group % 2 * 16;
            let shift = group % 8 / 2 * 2;
            let plane = group / 2;
            for (place, out) in out.iter_mut().enumerate() {
                let value = i16::from(values[from + place] >> shift & 3);
                let bit = high[group % 2 * 16 + place] >> plane & 1;
                *out = d * f32::from(value - if bit == 1 { 0 } else { 4 });
            }
        }
    }
}

/// Scale and minimum of the `group`-th 32 elements, six bits each in twelve bytes.
#[inline(always)]
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        ((low & 15) | (packed[group - 4] >> 6 << 4), (low >> 4) | (packed[group] >> 6 << 4))
    }
}

impl Format for Q4K {
    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (scale, least) = (half(block, 0), half(block, 2));
        let (packed, values) = (&block[4..16], &block[16..144]);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let (d, m) = six_bits(packed, group);
            let (d, m) = (scale * f32::from(d), least * f32::from(m));
            let (from, shift) = (group / 2 * 32, group % 2 * 4);
            for (place, out) in out.iter_mut().enumerate() {
                *out = d * f32::from(values[from + place] >> shift & 15) - m;
            }
        }
    }
}

impl Format for Q5K {
    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (scale, least) = (half(block, 0), half(block, 2));
        let (packed, high, values) = (&block[4..16], &block[16..48], &block[48..176]);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let (d, m) = six_bits(packed, group);
            let (d, m) = (scale * f32::from(d), least * f32::from(m));
            let (from, shift) = (group / 2 * 32, group % 2 * 4);
            for (place, out) in out.iter_mut().enumerate() {
                let value = (values[from + place] >> shift & 15) | (high[place] >> group & 1) << 4;
                *out = d * f32::from(value) - m;
            }
        }
    }
}

impl Format for Q6K {
    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let scale = half(block, 208);
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            // 128 elements lie in 64 bytes of nibbles, two planes of them, and in 32 bytes of two bits, four planes.
            let (part, plane, from) = (group / 8, group % 8 / 2, group % 2 * 16);
            let (low, high) = (&low[part * 64 + plane % 2 * 32 + from..], &high[part * 32 + from..]);
            let d = scale * f32::from(scales[group] as i8);
            for (place, out) in out.iter_mut().enumerate() {
                let value = (low[place] >> (plane / 2 * 4) & 15) | (high[place] >> (plane * 2) & 3) << 4;
                *out = d * f32::from(i16::from(value) - 32);
            }
        }
    }
}
