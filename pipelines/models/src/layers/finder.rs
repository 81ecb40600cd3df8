//! Layers in which objects, or places of an image, see each other and the image (<https://arxiv.org/abs/2005.12872>).

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::layers::attention::Attention;
use crate::layers::deformable::{DeformableAttention, Points};
use crate::layers::mlp::Mlp;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::NormSpec;
use crate::spec::detection::{FinderSpec, LooksSpec};

/// A layer with its weights: attention, in those of objects attention to the image too, and what each state goes through.
#[derive(Debug)]
pub struct Finder {
    attention: Looks,
    norm: Norm,
    cross: Option<(Looks, Norm)>,
    mlp: Mlp,
    mlp_norm: Norm,
}

/// Where states look.
#[derive(Debug)]
enum Looks {
    Everywhere(Box<Attention>),
    AtPoints(Box<DeformableAttention>),
}

/// What states look at.
#[derive(Clone, Copy, Debug)]
pub struct Looked<'a> {
    /// `[batch, places, hidden]`
    pub states: &'a Tensor,
    /// The same, with what says where they are.
    pub placed: &'a Tensor,
    /// Of each image which places are padding, or nothing.
    pub absent: &'a [Vec<bool>],
    /// The points that states look around, where they do not look everywhere.
    pub points: Option<Points<'a>>,
}

impl Finder {
    /// Reads a layer of places, or of objects where it looks at the image.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        spec: &FinderSpec,
        norm: &NormSpec,
        hidden: usize,
        objects: bool,
    ) -> Result<Self, ModelError> {
        let everywhere = |name: &str| {
            let attention = Attention::load(loader, name, &spec.attention, hidden)?;
            Ok::<_, ModelError>(Looks::Everywhere(Box::new(attention)))
        };
        let image = |name: &str| match spec.looks {
            LooksSpec::Everywhere => everywhere(name),
            LooksSpec::AtPoints { levels, points } => {
                let attention =
                    DeformableAttention::load(loader, name, hidden, [spec.attention.heads, levels, points])?;
                Ok(Looks::AtPoints(Box::new(attention)))
            }
        };
        let norm = |name: &str| Norm::load(loader, name, norm, hidden);
        Ok(Self {
            attention: if objects { everywhere("attn")? } else { image("attn")? },
            norm: norm("attn_norm")?,
            cross: if objects { Some((image("cross")?, norm("cross_norm")?)) } else { None },
            mlp: Mlp::load(loader, "mlp", &spec.mlp, hidden)?,
            mlp_norm: norm("mlp_norm")?,
        })
    }

    /// A layer of places. x: `[batch, places, hidden]`, to the same shape; places, which say where these are, are added to
    /// what looks and is looked for; `absent` and `points` as in [`Looked`].
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn of_places(
        &self,
        x: &Tensor,
        places: &Tensor,
        absent: &[Vec<bool>],
        points: Option<Points<'_>>,
    ) -> Result<Tensor, ModelError> {
        let placed = sum(x, places)?;
        let seen = self.attention.look(&placed, &Looked { states: x, placed: &placed, absent, points })?;
        self.fed(&self.norm.forward(&sum(x, &seen)?)?)
    }

    /// A layer of objects. x: `[batch, objects, hidden]`, to the same shape; queries, what each looks for, are added to
    /// what looks and is looked for.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn of_objects(&self, x: &Tensor, queries: &Tensor, looked: &Looked<'_>) -> Result<Tensor, ModelError> {
        let placed = sum(x, queries)?;
        let own = Looked { states: x, placed: &placed, absent: &[], points: None };
        let mut x = self.norm.forward(&sum(x, &self.attention.look(&placed, &own)?)?)?;
        if let Some((cross, norm)) = &self.cross {
            x = norm.forward(&sum(&x, &cross.look(&sum(&x, queries)?, looked)?)?)?;
        }
        self.fed(&x)
    }

    fn fed(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.mlp_norm.forward(&sum(x, &self.mlp.forward(x)?)?)
    }
}

impl Looks {
    /// queries: `[batch, n, hidden]`, to the same shape.
    fn look(&self, queries: &Tensor, at: &Looked<'_>) -> Result<Tensor, ModelError> {
        match self {
            Self::Everywhere(attention) => attention.between(queries, at.placed, at.states, at.absent),
            Self::AtPoints(attention) => {
                let points = at.points.ok_or_else(|| ModelError::MissingInput { name: "points to look at".into() })?;
                attention.forward(queries, at.states, points)
            }
        }
    }
}

fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor, ModelError> {
    a.add(b).map_err(ModelError::at("residual"))
}
