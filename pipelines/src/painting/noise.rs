//! Normal noise of a seed, as `torch.randn` draws it with a `torch.Generator` of the CPU, so that a seed gives the picture
//! that it gives elsewhere (`aten/src/ATen/native/cpu/DistributionTemplates.h`, `aten/src/ATen/core/DistributionsHelper.h`).
//!
//! Torch has two ways, by how many numbers are drawn. Its vectorised logarithm and sine round otherwise, so that single
//! numbers may differ in their last bits.

use std::f64::consts::PI;

/// Numbers that are made together, the first half of cosines and the second of sines.
const BLOCK: usize = 16;
/// Words of the state.
const WORDS: usize = 624;
/// How far ahead the word is that each word is mixed with.
const AHEAD: usize = 397;

/// `count` numbers of mean 0 and variance 1. Of the seed the lower 32 bits count, as in torch.
pub fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut generator = MersenneTwister::new(seed as u32);
    if count < BLOCK {
        return few(count, &mut generator);
    }
    let mut values: Vec<f32> = (0..count).map(|_| generator.single()).collect();
    let whole = count / BLOCK * BLOCK;
    values[..whole].chunks_exact_mut(BLOCK).for_each(to_normal);
    if whole < count {
        // The last sixteen are drawn anew, over some that are there.
        let last = &mut values[count - BLOCK..];
        last.iter_mut().for_each(|value| *value = generator.single());
        to_normal(last);
    }
    values
}

/// Sixteen numbers from 0 to 1 to normal ones (<https://en.wikipedia.org/wiki/Box-Muller_transform>).
fn to_normal(block: &mut [f32]) {
    let (cosines, sines) = block.split_at_mut(BLOCK / 2);
    for (first, second) in cosines.iter_mut().zip(sines) {
        let radius = libm::sqrtf(-2.0 * libm::logf(1.0 - *first));
        let angle = (2.0 * PI * f64::from(*second)) as f32;
        (*first, *second) = (radius * libm::cosf(angle), radius * libm::sinf(angle));
    }
}

/// Pairs in double precision.
fn few(count: usize, generator: &mut MersenneTwister) -> Vec<f32> {
    let pairs = (0..count.div_ceil(2)).flat_map(|_| {
        let (angle, radius) = (2.0 * PI * generator.double(), generator.double());
        let radius = libm::sqrt(-2.0 * libm::log1p(-radius));
        [(radius * libm::cos(angle)) as f32, (radius * libm::sin(angle)) as f32]
    });
    pairs.take(count).collect()
}

/// MT19937 (<http://www.math.sci.hiroshima-u.ac.jp/m-mat/MT/ARTICLES/mt.pdf>).
struct MersenneTwister {
    state: [u32; WORDS],
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for place in 1..WORDS {
            let before = state[place - 1];
            state[place] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(place as u32);
        }
        Self { state, next: WORDS }
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            for place in 0..WORDS {
                let mixed = (self.state[place] & 0x8000_0000) | (self.state[(place + 1) % WORDS] & 0x7fff_ffff);
                let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[place] = self.state[(place + AHEAD) % WORDS] ^ (mixed >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// From 0 to 1, of 24 bits.
    fn single(&mut self) -> f32 {
        (self.word() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// From 0 to 1, of 53 bits.
    fn double(&mut self) -> f64 {
        let word = (u64::from(self.word()) << 32) | u64::from(self.word());
        (word & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }
}
