//! Attention within windows of a map (<https://arxiv.org/abs/2103.14030>).

use accel_backends::tensor::{Engine, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::vision::{DistanceSpec, WindowAttentionSpec};

/// Attention within windows, with its weights.
#[derive(Debug)]
pub struct WindowAttention {
    name: String,
    heads: usize,
    window: usize,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    distance: Distance,
}

/// What the distance of two places adds to their score.
#[derive(Debug)]
enum Distance {
    None,
    /// A number of each head: `[(2 * window - 1)^2, heads]`.
    Numbers(Tensor),
    /// The product of the query with a vector of the distance in rows and one of that in columns, `[2 * window - 1, head]`
    /// each (<https://arxiv.org/abs/2112.01526>).
    Vectors {
        rows: Tensor,
        columns: Tensor,
    },
}

impl WindowAttention {
    /// Reads the attention of that name; `width` are the elements of a state.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &WindowAttentionSpec, width: usize) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let distances = (2 * spec.window).saturating_sub(1);
        let [q, k, v] = if spec.joined {
            let part = |first: usize| {
                loader.rows(&at("qkv"), [3 * width, width], first * width..(first + 1) * width, spec.qkv_bias)
            };
            [part(0)?, part(1)?, part(2)?]
        } else {
            let part = |part: &str| loader.linear(&at(part), width, width, spec.qkv_bias);
            [part("q")?, part("k")?, part("v")?]
        };
        let vectors = |part: &str| loader.tensor(&at(part), &[distances, width / spec.heads.max(1)]);
        Ok(Self {
            name: loader.name(name),
            heads: spec.heads,
            window: spec.window,
            q,
            k,
            v,
            out: loader.linear(&at("out"), width, width, true)?,
            distance: match spec.distance {
                DistanceSpec::None => Distance::None,
                DistanceSpec::Numbers => {
                    Distance::Numbers(loader.tensor(&at("distance"), &[distances * distances, spec.heads])?)
                }
                DistanceSpec::Vectors => Distance::Vectors { rows: vectors("rows")?, columns: vectors("columns")? },
            },
        })
    }

    /// x: `[batch, height, width, channels]` to the same shape. Windows begin `moved` places down and to the right.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor, moved: usize) -> Result<Tensor, ModelError> {
        self.run(x, moved).map_err(ModelError::at(&self.name))
    }

    fn run(&self, x: &Tensor, moved: usize) -> Result<Tensor, TensorError> {
        let [batch, height, width, channels] = x.sizes()?;
        let window = self.window;
        let [rows, columns] = [height, width].map(|size| size.div_ceil(window));
        let x = x.pad(1, 0, rows * window - height, 0.0)?.pad(2, 0, columns * window - width, 0.0)?;
        let x = roll(&roll(&x, 1, moved)?, 2, moved)?;
        let x = x.reshape(&[batch, rows, window, columns, window, channels])?.permute(&[0, 1, 3, 2, 4, 5])?;
        let x = x.reshape(&[batch, rows * columns, window * window, channels])?;
        let x = self.attend(&x, rows, columns, moved)?;
        let x = x.reshape(&[batch, rows, columns, window, window, channels])?.permute(&[0, 1, 3, 2, 4, 5])?;
        let x = x.reshape(&[batch, rows * window, columns * window, channels])?;
        let x = roll(&roll(&x, 1, rows * window - moved)?, 2, columns * window - moved)?;
        x.narrow(1, 0, height)?.narrow(2, 0, width)
    }

    /// x: `[batch, windows, places, channels]`
    fn attend(&self, x: &Tensor, rows: usize, columns: usize, moved: usize) -> Result<Tensor, TensorError> {
        let [batch, windows, places, channels] = x.sizes()?;
        let head = channels / self.heads;
        let apart = |x: Tensor, order: &[usize]| -> Result<Tensor, TensorError> {
            x.reshape(&[batch, windows, places, self.heads, head])?.permute(order)
        };
        let [q, k, v] = x.linears([&self.q, &self.k, &self.v])?;
        let (q, k) = (apart(q, &[0, 1, 3, 2, 4])?, apart(k, &[0, 1, 3, 4, 2])?);
        let mut scores = q.matmul(&k)?.scale(1.0 / (head as f32).sqrt())?;
        scores = match &self.distance {
            Distance::None => scores,
            Distance::Numbers(numbers) => scores.add(&self.numbers(numbers)?)?,
            Distance::Vectors { rows, columns } => scores.add(&self.products(&q, rows, columns)?)?,
        };
        if moved > 0 {
            scores = scores.add(&apart_regions(x.engine(), rows, columns, self.window, moved)?)?;
        }
        let attended = scores.softmax(-1)?.matmul(&apart(v, &[0, 1, 3, 2, 4])?)?;
        attended.permute(&[0, 1, 3, 2, 4])?.reshape(&[batch, windows, places, channels])?.linear(&self.out)
    }

    /// What distances add to the scores: `[heads, places, places]`.
    fn numbers(&self, numbers: &Tensor) -> Result<Tensor, TensorError> {
        let (window, across) = (self.window as i64, 2 * self.window as i64 - 1);
        let places = || (0..window).flat_map(move |row| (0..window).map(move |column| (row, column)));
        let pairs = places().flat_map(|query| places().map(move |key| (query, key)));
        let distances =
            pairs.map(|(query, key)| (query.0 - key.0 + window - 1) * across + query.1 - key.1 + window - 1);
        let count = self.window * self.window;
        let distances = Tensor::whole(numbers.engine(), distances.collect(), &[count, count])?;
        numbers.gather(0, &distances)?.permute(&[2, 0, 1])
    }

    /// The same, of queries `[batch, windows, heads, places, head]`: `[batch, windows, heads, places, places]`.
    fn products(&self, q: &Tensor, rows: &Tensor, columns: &Tensor) -> Result<Tensor, TensorError> {
        let ([batch, windows, heads, places, head], window) = (q.sizes()?, self.window);
        let distances = (0..window).flat_map(|query| (0..window).map(move |key| (query + window - 1 - key) as i64));
        let distances = Tensor::whole(q.engine(), distances.collect(), &[window, window])?;
        // Of each line of queries and each line of keys: [window, head, window].
        let vectors = |of: &Tensor| of.gather(0, &distances)?.transpose(1, 2);
        let q = q.reshape(&[batch * windows, heads, window, window, head])?;
        let of_rows = q.matmul(&vectors(rows)?)?;
        let of_columns = q.transpose(2, 3)?.matmul(&vectors(columns)?)?.transpose(2, 3)?;
        let sums = of_rows.unsqueeze(-1)?.add(&of_columns.unsqueeze(-2)?)?;
        sums.reshape(&[batch, windows, heads, places, places])
    }
}

/// What is added to the score of two places that only lie beside each other because the map was rolled.
const APART: f32 = -100.0;

/// Of each window `[1, places, places]`, after the map was rolled: `[windows, 1, places, places]`.
fn apart_regions(
    engine: &Engine,
    rows: usize,
    columns: usize,
    window: usize,
    moved: usize,
) -> Result<Tensor, TensorError> {
    let region = |at: usize, size: usize| usize::from(at + window >= size) + usize::from(at + moved >= size);
    let (height, width) = (rows * window, columns * window);
    let regions = |row: usize, column: usize| -> Vec<(usize, usize)> {
        let place = |place: usize| (row * window + place / window, column * window + place % window);
        (0..window * window).map(place).map(|(y, x)| (region(y, height), region(x, width))).collect()
    };
    let mut values = Vec::with_capacity(rows * columns * window.pow(4));
    for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
        let regions = regions(row, column);
        values.extend(regions.iter().flat_map(|a| regions.iter().map(move |b| if a == b { 0.0 } else { APART })));
    }
    Tensor::new(engine, values, &[rows * columns, 1, window * window, window * window])
}

/// The first `places` of a dimension go to its end.
fn roll(x: &Tensor, axis: isize, places: usize) -> Result<Tensor, TensorError> {
    let size = x.dim(axis)?;
    if places == 0 || places == size {
        return Ok(x.clone());
    }
    Tensor::concat(&[x.narrow(axis, places, size - places)?, x.narrow(axis, 0, places)?], axis)
}
