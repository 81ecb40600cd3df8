//! Stored weights to f32, each to exactly the value that its format defines.
//!
//! The formats that models are made of most are unpacked in lanes. A product of a 16-bit scale with at most eight bits
//! is exact in f32, so `q * d + m` is rounded once however it is computed.

use crate::weights::Dtype;

use super::k_quants;
use super::lanes::{LANES, Lanes};

/// Whether weights stored so can be computed with.
pub fn can_unpack(dtype: Dtype) -> bool {
    use Dtype::*;
    matches!(dtype, F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | MXFP4)
}

/// Unpacks whole blocks.
///
/// `out` must have the number of elements that `bytes` holds; types that [`can_unpack`] refuses leave it as it is, and
/// `Weight` holds none.
#[inline(always)]
pub fn unpack<L: Lanes>(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            let (floats, _) = bytes.as_chunks::<4>();
            out.iter_mut().zip(floats).for_each(|(to, from)| *to = f32::from_le_bytes(*from));
        }
        Dtype::F16 => floats::<L, F16>(bytes, out),
        Dtype::BF16 => floats::<L, Bf16>(bytes, out),
        Dtype::Q4_0 => blocks::<L, Q4_0>(bytes, out),
        Dtype::Q4_1 => blocks::<L, Q4_1>(bytes, out),
        Dtype::Q8_0 => blocks::<L, Q8_0>(bytes, out),
        Dtype::MXFP4 => blocks::<L, Mxfp4>(bytes, out),
        _ => k_quants::unpack(dtype, bytes, out),
    }
}

// Loops, not closures: a closure does not take on the instructions of its caller.

/// Weights that are floats each by itself, so that vectors of them can be taken from anywhere.
pub trait Floats {
    /// Bytes of a vector.
    const BYTES: usize;

    /// The next [`LANES`]; must be `#[inline(always)]`.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reading [`Self::BYTES`].
    unsafe fn vector<L: Lanes>(from: *const u8) -> L;
}

/// 32-bit floats.
pub struct F32;

/// IEEE 16-bit floats.
pub struct F16;

/// bfloat16.
pub struct Bf16;

impl Floats for F32 {
    const BYTES: usize = 4 * LANES;

    #[inline(always)]
    unsafe fn vector<L: Lanes>(from: *const u8) -> L {
        // SAFETY: the caller promises 32 bytes, and arrays of bytes may lie anywhere.
        L::floats(unsafe { &*from.cast::<[u8; 32]>() })
    }
}

impl Floats for F16 {
    const BYTES: usize = 2 * LANES;

    #[inline(always)]
    unsafe fn vector<L: Lanes>(from: *const u8) -> L {
        // SAFETY: the caller promises 16 bytes, and arrays of bytes may lie anywhere.
        L::halves(unsafe { &*from.cast::<[u8; 16]>() })
    }
}

impl Floats for Bf16 {
    const BYTES: usize = 2 * LANES;

    #[inline(always)]
    unsafe fn vector<L: Lanes>(from: *const u8) -> L {
        // SAFETY: the caller promises 16 bytes, and arrays of bytes may lie anywhere.
        L::brains(unsafe { &*from.cast::<[u8; 16]>() })
    }
}

/// Floats of two bytes, as many as there are.
#[inline(always)]
fn floats<L: Lanes, F: Floats>(bytes: &[u8], out: &mut [f32]) {
    const { assert!(F::BYTES == 16, "vectors of 16 bytes") };
    let (vectors, rest) = bytes.as_chunks::<16>();
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    for (from, to) in vectors.iter().zip(outs) {
        // SAFETY: `from` is the 16 bytes of a vector.
        put::<L>(unsafe { F::vector(from.as_ptr()) }, to);
    }
    // What is left over is a vector with nothing behind it.
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);
    // SAFETY: as above.
    let lanes: L = unsafe { F::vector(last.as_ptr()) };
    out_rest.iter_mut().zip(lanes.to_array()).for_each(|(to, float)| *to = float);
}

/// A format in blocks of 32, unpacked to four vectors.
pub trait Format32 {
    /// Bytes of a block.
    const BYTES: usize;

    /// Unpacks a block; must be `#[inline(always)]`.
    ///
    /// # Safety
    ///
    /// `block` must be valid for reading [`Self::BYTES`].
    unsafe fn vectors<L: Lanes>(block: *const u8) -> [L; 4];
}

/// 4 bits, one scale.
pub struct Q4_0;

/// 4 bits, scale and minimum.
pub struct Q4_1;

/// 8 bits, one scale.
pub struct Q8_0;

/// 4-bit floats, two bits of exponent and one of mantissa, with an exponent for all
/// (<https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf>).
pub struct Mxfp4;

impl Format32 for Q4_0 {
    const BYTES: usize = 18;

    #[inline(always)]
    unsafe fn vectors<L: Lanes>(block: *const u8) -> [L; 4] {
        // SAFETY: the caller promises 18 bytes.
        let ([low, high], values) = unsafe { (block.cast::<[u8; 2]>().read(), &*block.add(2).cast::<[u8; 16]>()) };
        let (scale, offset) = (L::splat(L::half([low, high])), L::splat(-8.0));
        let [a, b, c, d] = L::nibbles(values);
        [a.add(offset).mul(scale), b.add(offset).mul(scale), c.add(offset).mul(scale), d.add(offset).mul(scale)]
    }
}

impl Format32 for Q4_1 {
    const BYTES: usize = 20;

    #[inline(always)]
    unsafe fn vectors<L: Lanes>(block: *const u8) -> [L; 4] {
        // SAFETY: the caller promises 20 bytes.
        let (head, values) = unsafe { (block.cast::<[u8; 4]>().read(), &*block.add(4).cast::<[u8; 16]>()) };
        let scale = L::splat(L::half([head[0], head[1]]));
        let least = L::splat(L::half([head[2], head[3]]));
        let [a, b, c, d] = L::nibbles(values);
        [a.mul_add(scale, least), b.mul_add(scale, least), c.mul_add(scale, least), d.mul_add(scale, least)]
    }
}

impl Format32 for Q8_0 {
    const BYTES: usize = 34;

    #[inline(always)]
    unsafe fn vectors<L: Lanes>(block: *const u8) -> [L; 4] {
        // SAFETY: the caller promises 34 bytes.
        let (head, values) = unsafe { (block.cast::<[u8; 2]>().read(), &*block.add(2).cast::<[[u8; 8]; 4]>()) };
        let scale = L::splat(L::half(head));
        let [a, b, c, d] = values;
        [L::signed(a).mul(scale), L::signed(b).mul(scale), L::signed(c).mul(scale), L::signed(d).mul(scale)]
    }
}

impl Format32 for Mxfp4 {
    const BYTES: usize = 17;

    #[inline(always)]
    unsafe fn vectors<L: Lanes>(block: *const u8) -> [L; 4] {
        // SAFETY: the caller promises 17 bytes.
        let (exponent, values) = unsafe { (block.read(), &*block.add(1).cast::<[u8; 16]>()) };
        // Half of the largest scale is a float still; the two least are below the normal ones.
        let half_scale = match exponent {
            0..2 => f32::from_bits(0x0020_0000 << exponent),
            _ => f32::from_bits(u32::from(exponent - 1) << 23),
        };
        let half_scale = L::splat(half_scale);
        let [a, b, c, d] = L::nibbles(values);
        [
            doubled_e2m1(a).mul(half_scale),
            doubled_e2m1(b).mul(half_scale),
            doubled_e2m1(c).mul(half_scale),
            doubled_e2m1(d).mul(half_scale),
        ]
    }
}

/// Twice the 4-bit floats of codes from 0 to 15: 0, 1, 2, 3, 4, 6, 8 and 12, and from 8 on the same below zero. All that is
/// computed on the way is whole.
#[inline(always)]
fn doubled_e2m1<L: Lanes>(codes: L) -> L {
    let zero = L::splat(0.0);
    let below_zero = codes.add(L::splat(-7.0)).max(zero).min(L::splat(1.0));
    let sizes = below_zero.mul_add(L::splat(-8.0), codes);
    let from_4 = sizes.add(L::splat(-4.0)).max(zero);
    let from_6 = sizes.add(L::splat(-6.0)).max(zero);
    let doubled = from_6.mul_add(L::splat(2.0), sizes.add(from_4));
    doubled.mul(below_zero.mul_add(L::splat(-2.0), L::splat(1.0)))
}

#[inline(always)]
fn blocks<L: Lanes, F: Format32>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(F::BYTES).zip(out.as_chunks_mut::<32>().0) {
        // SAFETY: the chunk has the bytes of a block.
        let vectors: [L; 4] = unsafe { F::vectors(block.as_ptr()) };
        for (lanes, out) in vectors.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
            put(lanes, out);
        }
    }
}

#[inline(always)]
fn put<L: Lanes>(lanes: L, out: &mut [f32; LANES]) {
    // SAFETY: `out` is eight floats.
    unsafe { lanes.store(out.as_mut_ptr()) };
}
