//! How fast this machine goes through weights: what a plan for several machines is made of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::tensor::{Engine, Linear, Tensor, TensorError, Weight};
use crate::weights::Dtype;

/// Rows and columns of a matrix that is measured: whole blocks of every format, and what experts look like.
const SIDE: usize = 1024;
/// Bytes of all matrices together: more than the caches of most processors, so that they come from memory.
const BYTES: usize = 96 << 20;
/// Tokens of a prompt's step.
const TOKENS: usize = 64;
/// Of many short looks the fastest counts: others at work make this machine slower, and nothing makes it faster. A look is
/// shorter than what a busy system gives a thread at once.
const LOOKS: usize = 40;
const TIME: Duration = Duration::from_millis(3);
/// A byte that is a small number in every format, so that none is a special case; and memory that is written is memory.
const FILL: u8 = 0x3c;

/// How fast weights of one format are gone through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// 10^9 bytes of weights a second for one token.
    pub gbytes_per_second: f64,
    /// 10^9 floating-point operations a second for many tokens.
    pub gflops: f64,
}

impl Pace {
    /// The faster of both in each: what was measured while others were at work says too little.
    #[must_use]
    pub fn fastest(self, other: Self) -> Self {
        Self {
            gbytes_per_second: self.gbytes_per_second.max(other.gbytes_per_second),
            gflops: self.gflops.max(other.gflops),
        }
    }
}

/// Measures it, in about a third of a second.
///
/// # Errors
///
/// When no kernel computes with weights of that format.
pub fn measure(engine: &Engine, dtype: Dtype) -> Result<Pace, TensorError> {
    let row_bytes = dtype.row_bytes(SIDE).ok_or_else(|| TensorError::Dtype { tensor: "weights".into(), dtype })?;
    let matrix_bytes = row_bytes * SIDE;
    let matrix = |_| {
        let weight = Weight::new("weights", dtype, &[SIDE, SIDE], vec![FILL; matrix_bytes])?;
        Ok(Linear { weight: Tensor::stored(engine, Arc::new(weight)), bias: None })
    };
    let matrices = (0..BYTES.div_ceil(matrix_bytes)).map(matrix).collect::<Result<Vec<_>, TensorError>>()?;
    let rate = |tokens: usize| -> Result<f64, TensorError> {
        let x = Tensor::new(engine, vec![0.5; tokens * SIDE], &[tokens, SIDE])?;
        // The first goes through memory that was never read.
        for matrix in &matrices[..1] {
            x.linear(matrix)?;
        }
        let mut matrices = matrices.iter().cycle();
        let mut fastest = 0.0_f64;
        for _ in 0..LOOKS {
            let (start, mut products) = (Instant::now(), 0_u32);
            while start.elapsed() < TIME
                && let Some(matrix) = matrices.next()
            {
                x.linear(matrix)?;
                products += 1;
            }
            fastest = fastest.max(f64::from(products) / start.elapsed().as_secs_f64());
        }
        Ok(fastest)
    };
    let flops = (2 * SIDE * SIDE * TOKENS) as f64;
    Ok(Pace { gbytes_per_second: rate(1)? * matrix_bytes as f64 / 1e9, gflops: rate(TOKENS)? * flops / 1e9 })
}
