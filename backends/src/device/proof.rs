//! The run that proves a device: two chained products checked against f64, then the two rates that predict speed.
//!
//! The executor is generic and not a trait object because a device knows its executor when it is probed. It has no way
//! to hand work to another device, so a result that passes was computed where the proof says.

use std::time::{Duration, Instant};

use super::{Proof, Unavailable};

/// The difference from f64 that rounding in f32 explains for the sizes used here, with a wide margin. Reduced
/// precision (TF32, bf16) exceeds it, so that a device in such a mode is not taken for an f32 device.
pub(super) const TOLERANCE: f64 = 1e-4;

/// Rows, inner size, second inner size and columns of the checked graph: primes, so that every tail loop runs.
const CHECKED: [usize; 4] = [7, 67, 31, 41];
/// Side of the square product that is timed: large enough to fill a processor, small enough to repeat within the time.
const TIMED_SIDE: usize = 384;
/// Rows of the timed product that are compared too.
const TIMED_ROWS: [usize; 4] = [0, 101, 250, TIMED_SIDE - 1];
/// Time for repeating the timed product.
const MULTIPLY_TIME: Duration = Duration::from_millis(80);
/// Time for reading memory.
const READ_TIME: Duration = Duration::from_millis(80);

/// What a device must be able to do to be proven.
pub(super) trait Executor {
    /// A matrix in the device's memory.
    type Matrix;

    /// Bring a matrix to the device. `values`: `[rows, columns]`, row-major.
    fn upload(&self, rows: usize, columns: usize, values: Vec<f32>) -> Result<Self::Matrix, String>;

    /// The product of `left`: `[m, k]` and `right`: `[k, n]`, finished when this returns.
    fn multiply(&self, left: &Self::Matrix, right: &Self::Matrix) -> Result<Self::Matrix, String>;

    /// A matrix's values, row-major.
    fn download(&self, matrix: Self::Matrix) -> Result<Vec<f32>, String>;

    /// Bytes a second when reading more memory than the caches hold, measured for about `time`.
    fn read_rate(&self, time: Duration) -> Result<f64, String>;
}

/// Run the graph on a device, compare, and measure.
pub(super) fn prove<E: Executor>(executor: &E) -> Result<Proof, Unavailable> {
    let failed = |message| Unavailable::Failed { message };
    let checked_error = check_graph(executor)?;
    let (gflops, timed_error) = time_product(executor)?;
    let bytes_per_second = executor.read_rate(READ_TIME).map_err(failed)?;
    Ok(Proof { gflops, gbytes_per_second: bytes_per_second / 1e9, max_error: checked_error.max(timed_error) })
}

/// The largest error of `(a b) c`.
fn check_graph<E: Executor>(executor: &E) -> Result<f64, Unavailable> {
    let failed = |message| Unavailable::Failed { message };
    let [m, k, l, n] = CHECKED;
    let (a, b, c) = (values(m * k, 1), values(k * l, 2), values(l * n, 3));
    let expected = multiply_f64(&multiply_f64(&widen(&a), &widen(&b), k, l), &widen(&c), l, n);

    let a = executor.upload(m, k, a).map_err(failed)?;
    let b = executor.upload(k, l, b).map_err(failed)?;
    let c = executor.upload(l, n, c).map_err(failed)?;
    let product = executor.multiply(&a, &b).and_then(|ab| executor.multiply(&ab, &c)).map_err(failed)?;
    compare(&expected, &executor.download(product).map_err(failed)?)
}

/// The rate of a square product in 10^9 operations a second, and the largest error in the rows that are compared.
fn time_product<E: Executor>(executor: &E) -> Result<(f64, f64), Unavailable> {
    let failed = |message| Unavailable::Failed { message };
    let side = TIMED_SIDE;
    let (a, b) = (values(side * side, 4), values(side * side, 5));
    let rows: Vec<f64> = TIMED_ROWS.iter().flat_map(|row| widen(&a[row * side..(row + 1) * side])).collect();
    let expected = multiply_f64(&rows, &widen(&b), side, side);

    let a = executor.upload(side, side, a).map_err(failed)?;
    let b = executor.upload(side, side, b).map_err(failed)?;
    // The first product pays for starting threads and compiling kernels, and is the one compared.
    let found = executor.multiply(&a, &b).and_then(|product| executor.download(product)).map_err(failed)?;
    if found.len() != side * side {
        return Err(Unavailable::WrongCount { expected: side * side, found: found.len() });
    }
    let found: Vec<f32> = TIMED_ROWS.iter().flat_map(|row| found[row * side..(row + 1) * side].to_vec()).collect();
    let error = compare(&expected, &found)?;

    let (mut products, start) = (0u32, Instant::now());
    while products == 0 || start.elapsed() < MULTIPLY_TIME {
        executor.multiply(&a, &b).map_err(failed)?;
        products += 1;
    }
    let operations = 2.0 * (side as f64).powi(3) * f64::from(products);
    Ok((operations / start.elapsed().as_secs_f64() / 1e9, error))
}

/// The largest difference, or an error that names the worst value when it is not within [`TOLERANCE`].
fn compare(expected: &[f64], found: &[f32]) -> Result<f64, Unavailable> {
    if expected.len() != found.len() {
        return Err(Unavailable::WrongCount { expected: expected.len(), found: found.len() });
    }
    let mut worst = 0.0;
    for (index, (&expected, &found)) in expected.iter().zip(found).enumerate() {
        let found = f64::from(found);
        let error = (expected - found).abs();
        // A NaN compares with nothing, so it has to be asked for.
        if error.is_nan() || error > TOLERANCE {
            return Err(Unavailable::WrongResult { index, expected, found, tolerance: TOLERANCE });
        }
        worst = error.max(worst);
    }
    Ok(worst)
}

/// `left`: `[_, inner]` times `right`: `[inner, columns]`.
fn multiply_f64(left: &[f64], right: &[f64], inner: usize, columns: usize) -> Vec<f64> {
    let mut product = Vec::with_capacity(left.len() / inner * columns);
    for row in left.chunks_exact(inner) {
        let mut sums = vec![0.0; columns];
        for (factor, weights) in row.iter().zip(right.chunks_exact(columns)) {
            sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += factor * weight);
        }
        product.extend(sums);
    }
    product
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// `count` values in [-1, 1) that depend on `seed` alone (splitmix64).
fn values(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64)
        .map(|index| {
            let mut z = (seed << 32).wrapping_add(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            // 24 bits, so that the conversion is exact.
            ((z >> 40) as f32) / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplies correctly on the host, then applies a fault to what is read back.
    struct Faulty(fn(&mut Vec<f32>) -> Result<(), String>);

    impl Executor for Faulty {
        type Matrix = (usize, Vec<f64>);

        fn upload(&self, _rows: usize, columns: usize, values: Vec<f32>) -> Result<Self::Matrix, String> {
            Ok((columns, widen(&values)))
        }

        fn multiply(&self, left: &Self::Matrix, right: &Self::Matrix) -> Result<Self::Matrix, String> {
            Ok((right.0, multiply_f64(&left.1, &right.1, left.0, right.0)))
        }

        fn download(&self, matrix: Self::Matrix) -> Result<Vec<f32>, String> {
            let mut values = matrix.1.into_iter().map(|value| value as f32).collect();
            (self.0)(&mut values)?;
            Ok(values)
        }

        fn read_rate(&self, _time: Duration) -> Result<f64, String> {
            Ok(1e9)
        }
    }

    #[test]
    fn a_correct_device_is_proven() {
        let proof = prove(&Faulty(|_| Ok(()))).unwrap();
        assert!(proof.gflops > 0.0 && proof.max_error < TOLERANCE && proof.max_error > 0.0, "{proof:?}");
        assert_eq!(proof.gbytes_per_second, 1.0);
    }

    #[test]
    fn wrong_numbers_are_refused_and_named() {
        let off_by_one_value = prove(&Faulty(|values| {
            values[5] += 0.01;
            Ok(())
        }));
        let Err(Unavailable::WrongResult { index: 5, expected, found, .. }) = off_by_one_value else {
            panic!("{off_by_one_value:?}");
        };
        assert!((found - expected - 0.01).abs() < 1e-4);

        let rounded_to_bf16 = prove(&Faulty(|values| {
            values.iter_mut().for_each(|value| *value = half::bf16::from_f32(*value).to_f32());
            Ok(())
        }));
        assert!(matches!(rounded_to_bf16, Err(Unavailable::WrongResult { .. })), "{rounded_to_bf16:?}");

        let nan = prove(&Faulty(|values| {
            values[0] = f32::NAN;
            Ok(())
        }));
        assert!(nan.unwrap_err().to_string().starts_with("the proof run gave NaN at 0 where"));
    }

    #[test]
    fn a_wrong_count_and_a_failure_are_refused() {
        let short = prove(&Faulty(|values| {
            values.pop();
            Ok(())
        }));
        assert_eq!(short, Err(Unavailable::WrongCount { expected: 7 * 41, found: 7 * 41 - 1 }));
        let failing = prove(&Faulty(|_| Err("the device fell off the bus".into())));
        assert_eq!(failing.unwrap_err().to_string(), "the proof run failed: the device fell off the bus");
    }

    #[test]
    fn a_large_product_is_checked_too() {
        // Correct for the small graph, wrong in the last row of the large one.
        let wrong_when_large = prove(&Faulty(|values| {
            if values.len() == TIMED_SIDE * TIMED_SIDE {
                values[TIMED_SIDE * TIMED_SIDE - 1] += 1.0;
            }
            Ok(())
        }));
        assert!(matches!(wrong_when_large, Err(Unavailable::WrongResult { .. })), "{wrong_when_large:?}");
    }
}
