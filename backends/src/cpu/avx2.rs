//! The lanes of AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::lanes::{Kernel, LANES, Lanes};

/// Whether this processor has the instructions.
pub fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs a kernel with these instructions.
///
/// Only for processors that have them: `Instructions::Avx2` is made by detection alone.
pub fn run<K: Kernel>(kernel: K) {
    debug_assert!(is_available());
    // SAFETY: `Instructions::detect` is the only source of `Instructions::Avx2` and has seen the instructions.
    unsafe { with_instructions(kernel) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn with_instructions<K: Kernel>(kernel: K) {
    kernel.run::<Avx2>();
}

/// Eight lanes in one register. Used inside [`with_instructions`] only, which is what makes the calls below sound.
#[derive(Clone, Copy)]
pub struct Avx2(__m256);

// Each method is inlined into `with_instructions`, so the instructions are there: SAFETY of all calls below. Those that
// touch memory say more.
impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above; the caller promises eight readable floats, and the load needs no alignment.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above; the caller promises room for eight floats, and the store needs no alignment.
        unsafe { _mm256_storeu_ps(to, self.0) };
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    fn exp2_whole(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
    }

    #[inline(always)]
    fn sums(vectors: [Self; LANES]) -> Self {
        let [Self(a), Self(b), Self(c), Self(d), Self(e), Self(f), Self(g), Self(h)] = vectors;
        // SAFETY: see above.
        unsafe {
            // Each half is four sums of one vector: lanes 0 and 4, 1 and 5, 2 and 6, 3 and 7.
            let [ae, bf, cg, dh] = [
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, e), _mm256_permute2f128_ps::<0x31>(a, e)),
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(b, f), _mm256_permute2f128_ps::<0x31>(b, f)),
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(c, g), _mm256_permute2f128_ps::<0x31>(c, g)),
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(d, h), _mm256_permute2f128_ps::<0x31>(d, h)),
            ];
            // Then two of each: the first with the third, the second with the fourth.
            let abef = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ae, bf), _mm256_shuffle_ps::<0xee>(ae, bf));
            let cdgh = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(cg, dh), _mm256_shuffle_ps::<0xee>(cg, dh));
            Self(_mm256_add_ps(_mm256_shuffle_ps::<0x88>(abef, cdgh), _mm256_shuffle_ps::<0xdd>(abef, cdgh)))
        }
    }

    #[inline(always)]
    fn nibbles(bytes: &[u8; 16]) -> [Self; 4] {
        // SAFETY: see above; the loads read eight bytes each of the sixteen of the array.
        unsafe {
            let mask = _mm256_set1_epi32(15);
            let first = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().cast()));
            let second = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().add(8).cast()));
            [
                Self(_mm256_cvtepi32_ps(_mm256_and_si256(first, mask))),
                Self(_mm256_cvtepi32_ps(_mm256_and_si256(second, mask))),
                Self(_mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(first))),
                Self(_mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(second))),
            ]
        }
    }

    #[inline(always)]
    fn floats(bytes: &[u8; 32]) -> Self {
        // SAFETY: see above; the load reads the 32 bytes of the array, and needs no alignment.
        Self(unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn signed(bytes: &[u8; 8]) -> Self {
        // SAFETY: see above; the load reads the eight bytes of the array.
        unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes.as_ptr().cast())))) }
    }

    #[inline(always)]
    fn halves(bytes: &[u8; 16]) -> Self {
        // SAFETY: see above; the load reads the sixteen bytes of the array.
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn brains(bytes: &[u8; 16]) -> Self {
        // SAFETY: see above; the load reads the sixteen bytes of the array.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    fn half(bits: [u8; 2]) -> f32 {
        // SAFETY: see above.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bits))))) }
    }
}
