//! Brings series to one size (`TimeSeriesStdScaler` and `TimeSeriesMeanScaler` of Hugging Face's time series models).

use accel_backends::tensor::{Tensor, TensorError};

use crate::spec::time_series::ScalingSpec;

/// A series of one size, and how it is brought back: `x * scale + location`.
#[derive(Debug)]
pub struct Scaled {
    /// `[batch, moments, channels]`
    pub x: Tensor,
    /// `[batch, 1, channels]`
    pub location: Tensor,
    /// `[batch, 1, channels]`
    pub scale: Tensor,
}

/// x: `[batch, moments, channels]`; `seen`, of each element whether it was observed, all where none is given.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn scaled(spec: ScalingSpec, x: &Tensor, seen: Option<&[bool]>) -> Result<Scaled, TensorError> {
    let ([batch, moments, channels], engine) = (x.sizes()?, x.engine());
    let all = |value| Tensor::new(engine, vec![value; batch * channels], &[batch, 1, channels]);
    let known = match seen {
        Some(seen) => {
            let seen = seen.iter().map(|&seen| if seen { 1.0 } else { 0.0 }).collect();
            Some(Tensor::new(engine, seen, &[batch, moments, channels])?)
        }
        None => None,
    };
    let only = |x: &Tensor| known.as_ref().map_or_else(|| Ok(x.clone()), |known| x.mul(known));
    let counts = match seen {
        Some(seen) => counts(seen, [batch, moments, channels]),
        None => vec![moments as f32; batch * channels],
    };
    let least_one = |counts: &[f32], dims: &[usize]| {
        Tensor::new(engine, counts.iter().map(|&count| count.max(1.0)).collect(), dims)
    };
    let divisor = least_one(&counts, &[batch, 1, channels])?;
    match spec {
        ScalingSpec::None => Ok(Scaled { x: x.clone(), location: all(0.0)?, scale: all(1.0)? }),
        ScalingSpec::Deviation { least } => {
            let location = only(x)?.sum(&[1])?.div(&divisor)?;
            let centred = x.sub(&location)?;
            let variance = only(&centred)?.square()?.sum(&[1])?.div(&divisor)?;
            let scale = variance.shift(least)?.sqrt()?;
            Ok(Scaled { x: centred.div(&scale)?, location, scale })
        }
        ScalingSpec::Mean { least, unseen } => {
            let sums = only(x)?.abs()?.sum(&[1])?;
            let other = match unseen {
                Some(unseen) => all(unseen)?,
                None => {
                    let totals: Vec<f32> =
                        (0..channels).map(|channel| counts.iter().skip(channel).step_by(channels).sum()).collect();
                    sums.sum(&[0])?.div(&least_one(&totals, &[1, 1, channels])?)?
                }
            };
            let some = counts.iter().map(|&count| i64::from(count > 0.0)).collect();
            let some = Tensor::whole(engine, some, &[batch, 1, channels])?;
            let scale = some.select(&sums.div(&divisor)?, &other)?;
            let scale = scale.max(&scale.like(least)?)?;
            Ok(Scaled { x: x.div(&scale)?, location: all(0.0)?, scale })
        }
    }
}

/// How many moments of each channel were observed: `[batch, channels]`.
fn counts(seen: &[bool], [batch, moments, channels]: [usize; 3]) -> Vec<f32> {
    let mut counts = vec![0.0; batch * channels];
    for (row, counts) in seen.chunks((moments * channels).max(1)).zip(counts.chunks_mut(channels.max(1))) {
        for moment in row.chunks(channels.max(1)) {
            counts.iter_mut().zip(moment).for_each(|(count, &seen)| *count += f32::from(u8::from(seen)));
        }
    }
    counts
}
