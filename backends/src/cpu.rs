//! Fused kernels for processors, and the only unsafe code of the workspace.
//!
//! Activations are f32 and weights stay as they are stored; a weight is unpacked to exactly the value that its format
//! defines, in a scratch that fits the first-level cache, and used for as many tokens as fit the second before the next is
//! unpacked.
//!
//! **One order of additions.** A product sums over `k` in eight lanes, lane `i` taking the elements `i`, `i + 8`, ... by
//! fused multiply-add, and the lanes are added in one fixed tree. Attention works through keys in blocks that begin at
//! fixed positions. So a row's result depends on its inputs and the weights alone: not on the number of tokens beside
//! it, the chunking of a prompt, the number of threads, or the processor, because every kernel is written once over
//! `lanes::Lanes`, whose implementations round alike. [`ARITHMETIC`] names this order; changing it changes the name.

mod activation;
mod arithmetic;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod heap;
mod k_quants;
mod lanes;
mod linear;
mod norm;
mod pool;
mod recurrence;
mod rope;
mod slice;
mod unpack;

pub use activation::Activation;
pub use arithmetic::{Arithmetic, Pairing};
pub use attention::{AttentionShape, Keys, KeysValues, PAGE, QueryRow};
pub use heap::{bound_heap, give_back};
pub use linear::Product;
pub use recurrence::ScanParts;
pub use rope::RopeStyle;
pub(crate) use rope::rope;
pub use slice::give_way;
pub use unpack::can_unpack;

use lanes::{Kernel, Portable};
use pool::{Pool, Target};

/// The name of this order of additions.
pub const ARITHMETIC: &str = "cpu-f32-1";

/// Which instructions the kernels use; the results are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// What the compiler makes of plain Rust.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Instructions {
    /// The best that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if avx2::is_available() {
            return Self::Avx2;
        }
        Self::Portable
    }
}

/// A processor: its instructions and the threads that share the work of one operation.
#[derive(Debug)]
pub struct Cpu {
    instructions: Instructions,
    pool: Pool,
}

impl Cpu {
    /// Uses the caller's thread and `threads - 1` more.
    ///
    /// # Errors
    ///
    /// When the system starts no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        Ok(Self { instructions: Instructions::detect(), pool: Pool::new(threads)? })
    }

    /// The same, without the instructions that were detected.
    ///
    /// # Errors
    ///
    /// When the system starts no more threads.
    pub fn portable(threads: usize) -> std::io::Result<Self> {
        Ok(Self { instructions: Instructions::Portable, pool: Pool::new(threads)? })
    }

    /// Works on chunks of so many floats, which threads share; the last may be shorter.
    pub(crate) fn chunks(&self, out: &mut [f32], size: usize, work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let (target, length, size) = (&Target(out.as_mut_ptr()), out.len(), size.max(1));
        self.pool.run(length.div_ceil(size), &|part, _scratch| {
            let from = part * size;
            // SAFETY: chunks are disjoint ranges inside `out`, which is borrowed for as long as they are worked on.
            work(part, unsafe { std::slice::from_raw_parts_mut(target.0.add(from), size.min(length - from)) });
        });
    }

    /// Runs a kernel on this thread.
    fn run<K: Kernel>(&self, kernel: K) {
        match self.instructions {
            Instructions::Portable => kernel.run::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => avx2::run(kernel),
        }
    }
}
