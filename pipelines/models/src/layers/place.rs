//! What says where the places of a map are, of maps of any size, parts of which may be padding
//! (<https://arxiv.org/abs/2005.12872>).

use accel_backends::tensor::{Engine, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::detection::PlaceSpec;

/// Which pixels of some images are no padding.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Of each image its pixels, row by row.
    pub images: Vec<Vec<bool>>,
    /// Height and width.
    pub size: [usize; 2],
}

impl Shown {
    /// The same of a map of another size, of each place the nearest pixel.
    pub fn of_map(&self, size: [usize; 2]) -> Self {
        let at = |axis: usize, place: usize| {
            // In f32, as the reference has it.
            let step = self.size[axis] as f32 / size[axis] as f32;
            ((place as f32 * step) as usize).min(self.size[axis].saturating_sub(1))
        };
        let places = || (0..size[0]).flat_map(|row| (0..size[1]).map(move |column| (row, column)));
        let map = |image: &Vec<bool>| {
            places().map(|(row, column)| image[at(0, row) * self.size[1] + at(1, column)]).collect()
        };
        Self { images: self.images.iter().map(map).collect(), size }
    }

    /// Of each image which places are padding.
    pub fn absent(&self) -> Vec<Vec<bool>> {
        self.images.iter().map(|image| image.iter().map(|shown| !shown).collect()).collect()
    }

    /// Of each image its height and width without padding, in parts of the whole.
    pub fn ratios(&self) -> Vec<[f32; 2]> {
        let [height, width] = self.size;
        let ratios = |image: &Vec<bool>| {
            let rows = image.iter().step_by(width.max(1)).filter(|&&shown| shown).count();
            let columns = image.iter().take(width).filter(|&&shown| shown).count();
            [rows as f32 / height as f32, columns as f32 / width as f32]
        };
        self.images.iter().map(ratios).collect()
    }
}

/// What says where places are, with its weights.
#[derive(Debug)]
pub enum Places {
    /// Waves of the places' rows and columns.
    Waves {
        /// Half of a place's elements: those of its row, or of its column.
        half: usize,
        /// What is added to the number of a row, from 1 on.
        shift: f32,
    },
    /// Rows and columns have embeddings: `[numbers, half]` each.
    Learned {
        /// Of rows.
        rows: Tensor,
        /// Of columns.
        columns: Tensor,
    },
}

/// Rows and columns that have embeddings.
const NUMBERS: usize = 50;

impl Places {
    /// Reads the parts `rows` and `columns`, where they are learned.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: PlaceSpec, hidden: usize) -> Result<Self, ModelError> {
        let half = hidden / 2;
        Ok(match spec {
            PlaceSpec::Waves { shift } => Self::Waves { half, shift },
            PlaceSpec::Learned => Self::Learned {
                rows: loader.weight("rows", &[NUMBERS, half])?,
                columns: loader.weight("columns", &[NUMBERS, half])?,
            },
        })
    }

    /// Of each place of a map: `[batch, height * width, 2 * half]`.
    ///
    /// # Errors
    ///
    /// When the map has more rows or columns than there are embeddings.
    pub fn of(&self, engine: &Engine, shown: &Shown) -> Result<Tensor, TensorError> {
        let ([height, width], batch) = (shown.size, shown.images.len());
        match self {
            Self::Waves { half, shift } => {
                let values = shown.images.iter().flat_map(|image| waves_of(image, width, *half, *shift)).collect();
                Tensor::new(engine, values, &[batch, height * width, 2 * half])
            }
            Self::Learned { rows, columns } => {
                if height.max(width) > NUMBERS {
                    let expected = format!("a map of at most {NUMBERS} rows and columns");
                    return Err(TensorError::Shape {
                        operation: "places",
                        expected,
                        found: format!("{:?}", shown.size),
                    });
                }
                let numbers =
                    |of: fn(usize, usize) -> usize| (0..height * width).map(|at| of(at, width)).collect::<Vec<_>>();
                let rows = rows.pick(0, &numbers(|at, width| at / width))?;
                let both = Tensor::concat(&[columns.pick(0, &numbers(|at, width| at % width))?, rows], 1)?;
                let dims = [batch, height * width, both.dim(1)?];
                both.unsqueeze(0)?.broadcast(&dims)
            }
        }
    }
}

/// Waves of an image's places: rows and columns are counted over what is shown, and a turn is the whole of it.
fn waves_of(image: &[bool], width: usize, half: usize, shift: f32) -> Vec<f32> {
    let height = image.len() / width.max(1);
    let counted = |line: Vec<bool>| {
        let counts: Vec<f32> = line
            .iter()
            .scan(0.0, |sum, &shown| {
                *sum += f32::from(u8::from(shown));
                Some(*sum)
            })
            .collect();
        let whole = counts.last().copied().unwrap_or(0.0) + 1e-6;
        counts.into_iter().map(|count| (count + shift) / whole * std::f32::consts::TAU).collect::<Vec<_>>()
    };
    let columns: Vec<_> = (0..width).map(|x| counted((0..height).map(|y| image[y * width + x]).collect())).collect();
    let rows: Vec<_> = image.chunks(width.max(1)).map(|row| counted(row.to_vec())).collect();
    let place = |at: usize| {
        let (y, x) = (at / width, at % width);
        [wave(columns[x][y], half), wave(rows[y][x], half)].concat()
    };
    (0..image.len()).flat_map(place).collect()
}

/// Sine and cosine in turn, of falling frequencies.
fn wave(at: f32, half: usize) -> Vec<f32> {
    let angle = |place: usize| at / libm::pow(10_000.0, 2.0 * (place / 2) as f64 / half as f64) as f32;
    let value = |place: usize| match place % 2 {
        0 => libm::sin(f64::from(angle(place))) as f32,
        _ => libm::cos(f64::from(angle(place))) as f32,
    };
    (0..half).map(value).collect()
}
