//! Eight f32 lanes: the one vocabulary that kernels are written in.
//!
//! Every operation rounds as IEEE 754 says, fused multiply-add included, so all implementations give equal bits. Where a
//! processor leaves the choice (`max` of NaN), the implementations copy what x86 does.

/// Lanes in a vector, on every processor.
pub const LANES: usize = 8;

/// A computation that is written once and compiled for each set of instructions.
pub trait Kernel {
    /// Computes. Implementations must be `#[inline(always)]`, so that they take on the instructions of the caller; and
    /// so must what they call with lanes, which closures cannot be.
    fn run<L: Lanes>(self);
}

/// Eight lanes.
///
/// All methods must be `#[inline(always)]` in implementations, for the same reason.
pub trait Lanes: Copy {
    /// All lanes equal.
    fn splat(value: f32) -> Self;
    /// Eight floats.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reading [`LANES`] floats.
    unsafe fn load(from: *const f32) -> Self;
    /// Eight floats.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writing [`LANES`] floats.
    unsafe fn store(self, to: *mut f32);
    /// `self * factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The sum.
    fn add(self, other: Self) -> Self;
    /// The product.
    fn mul(self, other: Self) -> Self;
    /// The quotient.
    fn div(self, other: Self) -> Self;
    /// `if self > other { self } else { other }`.
    fn max(self, other: Self) -> Self;
    /// `if self < other { self } else { other }`.
    fn min(self, other: Self) -> Self;
    /// The nearest whole number, halves to even.
    fn round(self) -> Self;
    /// Two to the power of lanes that hold whole numbers from -126 to 127.
    fn exp2_whole(self) -> Self;
    /// The 32 halves of 16 bytes: low halves in the first two vectors, high halves in the last two.
    fn nibbles(bytes: &[u8; 16]) -> [Self; 4];
    /// Eight floats, of each the least byte first.
    fn floats(bytes: &[u8; 32]) -> Self;
    /// Eight signed bytes.
    fn signed(bytes: &[u8; 8]) -> Self;
    /// Eight IEEE 16-bit floats.
    fn halves(bytes: &[u8; 16]) -> Self;
    /// Eight bfloat16.
    fn brains(bytes: &[u8; 16]) -> Self;
    /// One IEEE 16-bit float.
    fn half(bits: [u8; 2]) -> f32;

    /// The sum of the lanes, in one fixed tree.
    #[inline(always)]
    fn sum(self) -> f32 {
        let lanes = self.to_array();
        let [a, b, c, d] = [lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6], lanes[3] + lanes[7]];
        (a + c) + (b + d)
    }

    /// The sum of each of eight, in the same tree.
    #[inline(always)]
    fn sums(vectors: [Self; LANES]) -> Self {
        let mut sums = [0.0; LANES];
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = vector.sum();
        }
        // SAFETY: `sums` is eight floats.
        unsafe { Self::load(sums.as_ptr()) }
    }

    /// The lanes.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: `lanes` is eight floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }
}

/// Lanes in plain Rust.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| op(self.0[lane], other.0[lane])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises eight readable floats; the array has the alignment of a float.
        Self(unsafe { from.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises room for eight floats; the array has the alignment of a float.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) };
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane])))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }

    #[inline(always)]
    fn exp2_whole(self) -> Self {
        Self(self.0.map(|power| f32::from_bits(((power as i32).wrapping_add(127) as u32) << 23)))
    }

    #[inline(always)]
    fn nibbles(bytes: &[u8; 16]) -> [Self; 4] {
        let low = |from: usize| Self(std::array::from_fn(|lane| f32::from(bytes[from + lane] & 15)));
        let high = |from: usize| Self(std::array::from_fn(|lane| f32::from(bytes[from + lane] >> 4)));
        [low(0), low(8), high(0), high(8)]
    }

    #[inline(always)]
    fn floats(bytes: &[u8; 32]) -> Self {
        let float = |lane: usize| f32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * lane + byte]));
        Self(std::array::from_fn(float))
    }

    #[inline(always)]
    fn signed(bytes: &[u8; 8]) -> Self {
        Self(bytes.map(|byte| f32::from(byte as i8)))
    }

    #[inline(always)]
    fn halves(bytes: &[u8; 16]) -> Self {
        Self(std::array::from_fn(|lane| Self::half([bytes[2 * lane], bytes[2 * lane + 1]])))
    }

    #[inline(always)]
    fn brains(bytes: &[u8; 16]) -> Self {
        Self(std::array::from_fn(|lane| f32::from_le_bytes([0, 0, bytes[2 * lane], bytes[2 * lane + 1]])))
    }

    #[inline(always)]
    fn half(bits: [u8; 2]) -> f32 {
        half::f16::from_le_bytes(bits).to_f32_const()
    }
}
