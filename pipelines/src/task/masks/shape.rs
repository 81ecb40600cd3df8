//! From what a model draws to shapes in a picture (`post_process_masks`, `filter_masks` and `_mask_to_rle_pytorch` of
//! `models/sam/image_processing_sam.py` in `transformers`).

use crate::image_input::ImageSize;

/// What is above it is inside.
const INSIDE: f32 = 0.0;
/// How far it is moved to see whether a shape stays the same.
const MOVED: f32 = 1.0;

/// A shape in a picture.
#[derive(Debug)]
pub struct Shape {
    /// Pixels outside, inside, outside, and so on, column by column.
    pub counts: Vec<u32>,
    /// Which part of it stays when it is drawn a little larger or smaller.
    pub stability: f32,
    /// Its first column and row, and its last.
    bounds: [f32; 4],
}

impl Shape {
    /// Which part of what two boxes cover together both cover; not a number where they cover nothing.
    pub fn overlap(&self, other: &Self) -> f32 {
        let area = |[left, top, right, bottom]: [f32; 4]| (right - left) * (bottom - top);
        let (a, b) = (self.bounds, other.bounds);
        let both = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0) * (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
        both / (area(a) + area(b) - both)
    }
}

/// What masks are drawn on: first the picture as the model is given it, then the picture itself.
pub struct Canvas {
    given: [usize; 2],
    shown: ImageSize,
    original: ImageSize,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Canvas {
    /// For a picture of that height and width, which shows at the left and the top what was made of the original.
    pub fn new(given: [usize; 2], shown: ImageSize, original: ImageSize) -> Self {
        Self { given, shown, original, first: Vec::new(), second: Vec::new() }
    }

    /// Draws a mask `[height, width]`; none where nothing of it is inside.
    pub fn draw(&mut self, mask: &[f32], size: [usize; 2]) -> Option<Shape> {
        let ImageSize { height, width } = self.original;
        let whole = Part { values: mask, row: size[1], size };
        resize(&whole, self.given, &mut self.first);
        let shown = [self.shown.height.min(self.given[0]), self.shown.width.min(self.given[1])];
        let shown = Part { values: &self.first, row: self.given[1], size: shown };
        resize(&shown, [height, width], &mut self.second);
        let above = |level: f32| self.second.iter().filter(|value| **value > level).count() as f32;
        let stability = above(INSIDE + MOVED) / above(INSIDE - MOVED);
        let mut counts = vec![0];
        let (mut inside, mut bounds) = (false, None);
        for column in 0..width {
            for (row, value) in self.second.iter().skip(column).step_by(width).enumerate() {
                let now = *value > INSIDE;
                if now != inside {
                    counts.push(0);
                    inside = now;
                }
                if let Some(last) = counts.last_mut() {
                    *last += 1;
                }
                if now {
                    let [_, top, _, bottom] = *bounds.get_or_insert([column, row, column, row]);
                    bounds = bounds.map(|[left, ..]| [left, top.min(row), column, bottom.max(row)]);
                }
            }
        }
        bounds.map(|bounds| Shape { counts, stability, bounds: bounds.map(|edge| edge as f32) })
    }
}

/// The left upper part of rows of values.
struct Part<'a> {
    values: &'a [f32],
    /// Values of a whole row.
    row: usize,
    /// Height and width of the part.
    size: [usize; 2],
}

/// Makes a part as large as `to`, by lines between the middles of its pixels, with each step in f32 (`interpolate` with
/// `mode="bilinear"` of torch).
fn resize(part: &Part<'_>, to: [usize; 2], out: &mut Vec<f32>) {
    let taps = |axis: usize| -> Vec<(usize, usize, f32)> {
        let step = part.size[axis] as f32 / to[axis] as f32;
        let last = part.size[axis].saturating_sub(1);
        let tap = |place: usize| {
            let at = ((place as f32 + 0.5) * step - 0.5).max(0.0);
            let first = (at as usize).min(last);
            (first, (first + 1).min(last), (at - first as f32).clamp(0.0, 1.0))
        };
        (0..to[axis]).map(tap).collect()
    };
    let columns = taps(1);
    let row = |number: usize| part.values.get(number * part.row..).unwrap_or_default();
    out.clear();
    out.reserve(to[0].saturating_mul(to[1]));
    for (first, second, down) in taps(0) {
        let (above, below) = (row(first), row(second));
        out.extend(columns.iter().map(|&(left, right, across)| {
            let line = |row: &[f32]| {
                let at = |place: usize| row.get(place).copied().unwrap_or(0.0);
                at(left) * (1.0 - across) + at(right) * across
            };
            line(above) * (1.0 - down) + line(below) * down
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::Canvas;
    use crate::image_input::ImageSize;

    #[test]
    fn a_shape_is_counted_column_by_column() {
        let size = ImageSize { height: 2, width: 3 };
        let mut canvas = Canvas::new([2, 3], size, size);
        let shape = canvas.draw(&[-5.0, 5.0, 5.0, -5.0, -5.0, 5.0], [2, 3]).unwrap();
        assert_eq!((shape.counts.as_slice(), shape.stability), ([2, 1, 1, 2].as_slice(), 1.0));
        let shape = canvas.draw(&[0.5, 5.0, 5.0, 5.0, 5.0, 5.0], [2, 3]).unwrap();
        assert_eq!((shape.counts.as_slice(), shape.stability), ([0, 6].as_slice(), 5.0 / 6.0));
        assert!(canvas.draw(&[-0.5; 6], [2, 3]).is_none());
    }
}
