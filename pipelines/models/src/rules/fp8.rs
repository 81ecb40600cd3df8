//! Weights of 8-bit floats (<https://arxiv.org/abs/2209.05433>), whose scales are tensors of their own: one for each block
//! of 128 by 128, as DeepSeek-V3 has them (`integrations/finegrained_fp8.py` in `transformers`), one for each row, or one
//! for all.
//!
//! Weights become f32 when they are read, and what they are multiplied with stays as it is: this is `dequantize=True`
//! there.

use accel_backends::weights::Dtype;

use crate::ModelError;

/// Rows and columns of a block.
pub const BLOCK: usize = 128;
/// What the names of scales have after those of their weights.
pub const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// Whether weights are stored so.
pub fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// The values of a tensor.
pub fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let value = if dtype == Dtype::F8_E5M2 { e5m2 } else { e4m3 };
    let table: Vec<f32> = (0..=u8::MAX).map(value).collect();
    bytes.iter().map(|&byte| table[usize::from(byte)]).collect()
}

/// Multiplies a tensor by its scales.
///
/// # Errors
///
/// When there are not as many scales as the tensor has blocks or rows, nor one.
pub fn scale(name: &str, dims: &[usize], values: &mut [f32], scales: (&[usize], &[f32])) -> Result<(), ModelError> {
    let rows = dims.first().copied().unwrap_or(1).max(1);
    let columns = (values.len() / rows).max(1);
    let lines = values.chunks_mut(columns);
    let times = |values: &mut [f32], scale: f32| values.iter_mut().for_each(|value| *value *= scale);
    match scales {
        (_, &[one]) => lines.for_each(|line| times(line, one)),
        (&[count] | &[count, 1], each) if count == rows => {
            lines.zip(each).for_each(|(line, &scale)| times(line, scale))
        }
        (&[down, across], blocks)
            if dims.len() == 2 && (down, across) == (rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)) =>
        {
            for (row, line) in lines.enumerate() {
                let blocks = blocks.iter().skip(row / BLOCK * across);
                line.chunks_mut(BLOCK).zip(blocks).for_each(|(part, &scale)| times(part, scale));
            }
        }
        (found, _) => {
            let expected = vec![rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)];
            return Err(ModelError::TensorShape { name: name.to_owned(), expected, found: found.to_vec() });
        }
    }
    Ok(())
}

/// Four bits of exponent, without infinities.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if byte & 128 == 0 { size } else { -size }
}

/// Five bits of exponent: the upper half of a 16-bit float.
fn e5m2(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 2 & 31), f32::from(byte & 3));
    let size = match (exponent, byte & 3) {
        (31, 0) => f32::INFINITY,
        (31, _) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-16),
        _ => (4.0 + mantissa) * 2f32.powi(exponent - 17),
    };
    if byte & 128 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use accel_backends::weights::Dtype;

    use super::{floats, scale};

    #[test]
    fn scales_are_those_of_blocks_rows_or_all() {
        let (dims, mut blocks) = ([130, 300], vec![1.0; 130 * 300]);
        let mut rows = blocks.clone();
        scale("w", &dims, &mut blocks, (&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).unwrap();
        let at = |row: usize, column: usize| blocks[row * 300 + column];
        let found = [at(0, 127), at(127, 128), at(0, 256), at(128, 0), at(129, 255), at(129, 299)];
        assert_eq!(found, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let each: Vec<f32> = (0..130u8).map(f32::from).collect();
        scale("w", &dims, &mut rows, (&[130, 1], &each)).unwrap();
        assert!(rows.chunks(300).zip(&each).all(|(row, scale)| row.iter().all(|value| value == scale)));
        assert!(scale("w", &dims, &mut rows, (&[3, 2], &[1.0; 6])).is_err());
    }

    #[test]
    fn values_are_those_of_the_formats() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let [four, five] = [Dtype::F8_E4M3, Dtype::F8_E5M2].map(|dtype| floats(dtype, &all));
        // The largest, the least normal, the least, one and its negative.
        let of = |values: &[f32], places: [usize; 5]| places.map(|place| values[place]);
        assert_eq!(of(&four, [0x7e, 0x08, 0x01, 0x38, 0xb8]), [448.0, 2f32.powi(-6), 2f32.powi(-9), 1.0, -1.0]);
        assert_eq!(of(&five, [0x7b, 0x04, 0x01, 0x3c, 0xbc]), [57344.0, 2f32.powi(-14), 2f32.powi(-16), 1.0, -1.0]);
        assert!(four[0x7f].is_nan() && five[0x7d].is_nan() && five[0x7c] == f32::INFINITY);
        // Numbers that are larger by their bits are larger.
        assert!(four[..0x7f].is_sorted() && five[..0x7d].is_sorted());
    }
}
