//! Attention to few points of maps of several sizes, around one that each query names
//! (<https://arxiv.org/abs/2010.04159>).

use accel_backends::tensor::{Kind, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;

/// Attention to points, with its weights.
#[derive(Debug)]
pub struct DeformableAttention {
    name: String,
    heads: usize,
    levels: usize,
    points: usize,
    /// How far the points lie from that of the query.
    offsets: Linear,
    /// What each weighs.
    weights: Linear,
    values: Linear,
    out: Linear,
}

/// Maps of an image in several sizes, whose places lie one after the other.
#[derive(Debug)]
pub struct Levels {
    /// Height and width of each.
    pub sizes: Vec<[usize; 2]>,
    /// 1 for places of the image and 0 for padding, where there is some: `[batch, places, 1]`.
    pub shown: Option<Tensor>,
}

/// The points that queries look around.
#[derive(Clone, Copy, Debug)]
pub struct Points<'a> {
    /// Of each query in each map, in parts of its width and height: `[batch, n, levels, 2]`; with the width and height that
    /// it looks around in, `[batch, n, levels, 4]`.
    pub at: &'a Tensor,
    /// The maps.
    pub levels: &'a Levels,
}

impl Levels {
    /// Places of all maps.
    pub fn places(&self) -> usize {
        self.sizes.iter().map(|[height, width]| height * width).sum()
    }
}

impl DeformableAttention {
    /// Reads the attention of that name, of so many heads, maps and points of each.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        name: &str,
        hidden: usize,
        [heads, levels, points]: [usize; 3],
    ) -> Result<Self, ModelError> {
        let layer = |part: &str, outputs| loader.linear(&format!("{name}.{part}"), outputs, hidden, true);
        let all = heads.saturating_mul(levels).saturating_mul(points);
        Ok(Self {
            name: loader.name(name),
            heads,
            levels,
            points,
            offsets: layer("offsets", all.saturating_mul(2))?,
            weights: layer("weights", all)?,
            values: layer("v", hidden)?,
            out: layer("out", hidden)?,
        })
    }

    /// queries: `[batch, n, hidden]`, to the same shape; states: `[batch, places, hidden]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, queries: &Tensor, states: &Tensor, points: Points<'_>) -> Result<Tensor, ModelError> {
        self.look(queries, states, points).map_err(ModelError::at(&self.name))
    }

    fn look(&self, queries: &Tensor, states: &Tensor, points: Points<'_>) -> Result<Tensor, TensorError> {
        let ([batch, n, hidden], [_, places, _]) = (queries.sizes()?, states.sizes()?);
        let (heads, levels, around) = (self.heads, self.levels, self.points);
        if points.levels.sizes.len() != levels || points.levels.places() != places {
            let expected = format!("{levels} maps of {places} places");
            let found = format!("{:?}", points.levels.sizes);
            return Err(TensorError::Shape { operation: "points", expected, found });
        }
        let mut values = states.linear(&self.values)?;
        if let Some(shown) = &points.levels.shown {
            values = values.mul(shown)?;
        }
        let values = values.reshape(&[batch, places, heads, hidden / heads])?.permute(&[0, 2, 1, 3])?.flatten(0, 2)?;
        let weights = queries.linear(&self.weights)?.reshape(&[batch, n, heads, levels * around])?.softmax(-1)?;
        let weights = weights.reshape(&[batch, n, heads, levels, around])?;
        let [x, y] = self.places(queries, points)?;
        let mut sum = None;
        for corner in corners(&x, &y, &points.levels.sizes)? {
            // The places of each image's heads begin where those of the one before end.
            let first = (0..batch * heads).map(|head| (head * places) as i64).collect();
            let first = Tensor::whole(queries.engine(), first, &[batch, 1, heads, 1, 1])?;
            let found = values.gather(0, &corner.place.add(&first)?)?;
            let found = found.reshape(&[batch, n, heads, levels * around, hidden / heads])?;
            let weights = weights.mul(&corner.weight)?.reshape(&[batch, n, heads, 1, levels * around])?;
            let part = weights.matmul(&found)?;
            sum = Some(match sum {
                None => part,
                Some(sum) => part.add(&sum)?,
            });
        }
        let sum =
            sum.ok_or(TensorError::Shape { operation: "points", expected: "corners".into(), found: "none".into() })?;
        sum.reshape(&[batch, n, hidden])?.linear(&self.out)
    }

    /// Columns and rows of all points, in parts of their maps: `[batch, n, heads, levels, points]` each.
    fn places(&self, queries: &Tensor, points: Points<'_>) -> Result<[Tensor; 2], TensorError> {
        let [batch, n, _] = queries.sizes()?;
        let (heads, levels, around) = (self.heads, self.levels, self.points);
        let offsets = queries.linear(&self.offsets)?.reshape(&[batch, n, heads, levels, around, 2])?;
        let width = points.at.dim(-1)?;
        let at = points.at.reshape(&[batch, n, 1, levels, 1, width])?;
        let offsets = if width == 4 {
            offsets.scale(0.5 / around as f32)?.mul(&at.narrow(-1, 2, 2)?)?
        } else {
            let sizes = points.levels.sizes.iter().flat_map(|&[height, width]| [width as f32, height as f32]).collect();
            offsets.div(&Tensor::new(queries.engine(), sizes, &[levels, 1, 2])?)?
        };
        let places = at.narrow(-1, 0, 2)?.add(&offsets)?;
        Ok([places.at(-1, 0)?, places.at(-1, 1)?])
    }
}

/// One of four places that a point lies between.
struct Corner {
    /// Its number among the places of all maps.
    place: Tensor,
    /// How near the point is, or 0 where the place lies outside its map.
    weight: Tensor,
}

/// The four places around each point. x, y: `[.., levels, points]`, in parts of maps, whose pixels are squares with their
/// edges at 0 and 1.
fn corners(x: &Tensor, y: &Tensor, sizes: &[[usize; 2]]) -> Result<Vec<Corner>, TensorError> {
    let each = |of: &dyn Fn(usize) -> usize| {
        let values = (0..sizes.len()).map(|level| of(level) as f32).collect();
        Tensor::new(x.engine(), values, &[sizes.len(), 1])
    };
    let (height, width) = (each(&|level| sizes[level][0])?, each(&|level| sizes[level][1])?);
    let first = each(&|level| sizes[..level].iter().map(|[height, width]| height * width).sum())?;
    let (x, y) = (x.mul(&width)?.shift(-0.5)?, y.mul(&height)?.shift(-0.5)?);
    let (left, top) = (x.floor()?, y.floor()?);
    let (from_left, from_top) = (x.sub(&left)?, y.sub(&top)?);
    let mut corners = Vec::with_capacity(4);
    for [down, right] in [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]] {
        let (column, row) = (left.shift(right)?, top.shift(down)?);
        let near = |from: &Tensor, far: f32| if far == 0.0 { from.affine(-1.0, 1.0) } else { Ok(from.clone()) };
        // A place is within its map where it stays the same when kept there.
        let kept = |at: &Tensor, size: &Tensor| at.max(&at.like(0.0)?)?.min(&size.shift(-1.0)?);
        let (kept_column, kept_row) = (kept(&column, &width)?, kept(&row, &height)?);
        let within = kept_column.equal(&column)?.mul(&kept_row.equal(&row)?)?.to_kind(Kind::Float)?;
        let weight = near(&from_left, right)?.mul(&near(&from_top, down)?)?.mul(&within)?;
        let place = kept_row.mul(&width)?.add(&kept_column)?.add(&first)?.to_kind(Kind::Whole)?;
        corners.push(Corner { place, weight });
    }
    Ok(corners)
}
