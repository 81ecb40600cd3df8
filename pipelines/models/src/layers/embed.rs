//! What makes states of tokens.

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::{EmbedSpec, PositionSpec, ProjectionSpec, SinusoidLayout, TypeSpec};

/// Tables of embeddings with their weights.
#[derive(Debug)]
pub struct Embed {
    spec: EmbedSpec,
    table: Tensor,
    positions: Option<Tensor>,
    types: Option<Tensor>,
    norm: Option<Norm>,
    projection: Option<Linear>,
}

/// The tokens of a pass, one row after the other.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Whole `[tokens]`.
    pub ids: &'a Tensor,
    /// Their values, which are known even while `ids` are recorded.
    pub known: &'a [i64],
    /// Whole `[tokens]`: the type of each, where not all are of the first.
    pub types: Option<&'a Tensor>,
}

/// States that stand in place of some tokens' embeddings.
#[derive(Clone, Debug)]
pub struct Spliced {
    /// `[places, width]`
    pub states: Tensor,
    /// Which tokens of the pass they stand for, in their order.
    pub places: Vec<usize>,
}

impl Spliced {
    /// x: `[tokens, width]` to the same shape.
    fn into(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let tokens = x.dim(0)?;
        let mut rows: Vec<usize> = (0..tokens).collect();
        for (state, &place) in self.places.iter().enumerate() {
            let found = place as i64;
            let row = rows.get_mut(place);
            *row.ok_or(TensorError::Index { operation: "splice", found, rows: tokens })? = tokens + state;
        }
        Tensor::concat(&[x.clone(), self.states.clone()], 0)?.pick(0, &rows)
    }
}

impl Embed {
    /// Reads the tables; that of tokens may be another part's.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        spec: &EmbedSpec,
        hidden: usize,
        shared: Option<&Tensor>,
    ) -> Result<Self, ModelError> {
        let table = match (shared, spec.vocabulary) {
            (Some(table), _) => table.clone(),
            (None, 0) => Tensor::new(loader.engine, Vec::new(), &[0, spec.width]).map_err(ModelError::at("embed"))?,
            (None, vocabulary) => loader.weight("embed", &[vocabulary, spec.width])?,
        };
        let positions = match spec.positions {
            PositionSpec::Learned { rows, .. } => Some(loader.weight("positions", &[rows, spec.width])?),
            PositionSpec::None | PositionSpec::Sinusoids { .. } => None,
        };
        let types = match spec.types {
            TypeSpec::Table(types) => Some(loader.weight("types", &[types, spec.width])?),
            TypeSpec::None | TypeSpec::Tokens => None,
        };
        let after = spec.projection == ProjectionSpec::AfterNorm;
        let norm_width = if after { spec.width } else { hidden };
        let norm = Norm::load_optional(loader, "embed_norm", spec.norm.as_ref(), norm_width)?;
        let projection =
            (spec.width != hidden).then(|| loader.linear("embed_projection", hidden, spec.width, after)).transpose()?;
        Ok(Self { spec: spec.clone(), table, positions, types, norm, projection })
    }

    /// The table of tokens: `[vocabulary, width]`.
    pub fn table(&self) -> &Tensor {
        &self.table
    }

    /// The states of tokens, `[tokens, hidden]`, but for those that others stand in place of.
    ///
    /// # Errors
    ///
    /// When a token or a position is in no table.
    pub fn forward(&self, tokens: Tokens<'_>, rows: &[Row], spliced: Option<&Spliced>) -> Result<Tensor, ModelError> {
        let embed = || {
            let x = self.table.embedding(tokens.ids)?;
            self.scaled(spliced.map_or(Ok(x.clone()), |spliced| spliced.into(&x))?)
        };
        self.with_positions(embed().map_err(ModelError::at("embed"))?, tokens, rows)
    }

    /// The embeddings of tokens, without anything that is added: `[tokens, width]`.
    ///
    /// # Errors
    ///
    /// When a token is not in the table.
    pub fn of_tokens(&self, ids: &Tensor) -> Result<Tensor, TensorError> {
        self.scaled(self.table.embedding(ids)?)
    }

    fn scaled(&self, x: Tensor) -> Result<Tensor, TensorError> {
        if self.spec.scale == 1.0 { Ok(x) } else { x.scale(self.spec.scale) }
    }

    /// The states of embeddings `[tokens, width]`.
    ///
    /// # Errors
    ///
    /// When a position is in no table.
    pub fn with_positions(&self, x: Tensor, tokens: Tokens<'_>, rows: &[Row]) -> Result<Tensor, ModelError> {
        let add = || {
            let mut x = x;
            if let Some(positions) = self.positions(&x, tokens.known, rows)? {
                x = x.add(&positions)?;
            }
            if let (TypeSpec::Tokens, Some(of)) = (self.spec.types, tokens.types) {
                x = x.add(&self.of_tokens(of)?)?;
            }
            if let Some(types) = &self.types {
                x = x.add(&match tokens.types {
                    Some(of) => types.embedding(of)?,
                    None => types.narrow(0, 0, 1)?,
                })?;
            }
            Ok::<_, TensorError>(x)
        };
        let x = add().map_err(ModelError::at("embed"))?;
        let normed = |x: Tensor| self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x));
        let projected = |x: Tensor| match &self.projection {
            Some(projection) => x.linear(projection).map_err(ModelError::at("embed_projection")),
            None => Ok(x),
        };
        match self.spec.projection {
            ProjectionSpec::AfterNorm => projected(normed(x)?),
            ProjectionSpec::BeforeNorm => normed(projected(x)?),
        }
    }

    /// What is added for positions: `[tokens, width]`.
    fn positions(&self, x: &Tensor, known: &[i64], rows: &[Row]) -> Result<Option<Tensor>, TensorError> {
        let counted = || rows.iter().flat_map(|row| row.past..row.past + row.len);
        let engine = x.engine();
        let places = |first: usize, padding: Option<i64>| -> Vec<i64> {
            match padding {
                None => counted().map(|position| (position + first) as i64).collect(),
                Some(padding) => places_without_padding(known, rows, first as i64, padding),
            }
        };
        match (&self.spec.positions, &self.positions) {
            (PositionSpec::Learned { first, padding, .. }, Some(table)) => {
                let places = places(*first, *padding);
                let dims = [places.len()];
                table.embedding(&Tensor::whole(engine, places, &dims)?).map(Some)
            }
            (PositionSpec::Sinusoids { first, padding, layout }, _) => {
                let width = self.spec.width;
                let wave = |place: i64| match usize::try_from(place) {
                    Ok(place) if place >= *first => sinusoids(place, width, *layout),
                    _ => vec![0.0; width],
                };
                let waves: Vec<f32> = places(*first, *padding).into_iter().flat_map(wave).collect();
                Tensor::new(engine, waves, &[known.len(), width]).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Positions that count tokens which are no padding, from after the padding's own row on; padding has its own row
/// (`create_position_ids_from_input_ids`).
fn places_without_padding(known: &[i64], rows: &[Row], first: i64, padding: i64) -> Vec<i64> {
    let mut known = known.iter();
    let mut places = Vec::with_capacity(known.len());
    for row in rows {
        // What came before is read anew with the row, or holds no padding.
        let mut count = row.past as i64;
        for &id in known.by_ref().take(row.len) {
            places.push(if id == padding { first - 1 } else { count + first });
            count += i64::from(id != padding);
        }
    }
    places
}

/// Sines and cosines of one position.
pub fn sinusoids(position: usize, width: usize, layout: SinusoidLayout) -> Vec<f32> {
    let half = width / 2;
    let angle = |place: usize| {
        let exponent = match layout {
            SinusoidLayout::Halves => place as f64 / (half as f64 - 1.0),
            SinusoidLayout::HalvesEven | SinusoidLayout::Pairs => 2.0 * place as f64 / width as f64,
        };
        position as f64 * libm::pow(10_000.0, -exponent)
    };
    match layout {
        SinusoidLayout::Pairs => {
            let pair = |place| [libm::sin(angle(place)) as f32, libm::cos(angle(place)) as f32];
            (0..half).flat_map(pair).chain(std::iter::repeat_n(0.0, width % 2)).collect()
        }
        _ => {
            let sines = (0..half).map(|place| libm::sin(angle(place)) as f32);
            let cosines = (0..half).map(|place| libm::cos(angle(place)) as f32);
            sines.chain(cosines).chain(std::iter::repeat_n(0.0, width % 2)).collect()
        }
    }
}
