//! Tokens of the patches of an image (<https://arxiv.org/abs/2010.11929>).

use accel_backends::tensor::{Convolution, Kind, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::norm::Norm;
use crate::layers::resize::{Filter, resize};
use crate::rules::Loader;
use crate::spec::vision::{ImageSize, PatchSpec};

/// What makes tokens of patches, with its weights.
#[derive(Debug)]
pub struct Patches {
    spec: PatchSpec,
    projection: Linear,
    patch_norm: Option<Norm>,
    mask: Option<Tensor>,
    class: Option<Tensor>,
    /// A row for each token, and the height and width in patches that they were made for.
    positions: Option<(Tensor, [usize; 2])>,
    norm: Option<Norm>,
}

/// What an image is cut up into.
#[derive(Debug)]
pub struct Asked<'a> {
    /// `[batch, channels, height, width]`
    pub pixels: &'a Tensor,
    /// `[batch, patches]`: 1 where a patch is hidden.
    pub hidden: Option<&'a Tensor>,
    /// Whether the embeddings of places are stretched to the image.
    pub stretched: bool,
}

/// Tokens of an image.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// `[batch, prefix + height * width, width]`
    pub states: Tensor,
    /// How many tokens stand for no place.
    pub prefix: usize,
    /// Height and width in patches.
    pub grid: [usize; 2],
}

impl Tokens {
    /// Those that stand for places, as a map: `[batch, width, height, width]`.
    ///
    /// # Errors
    ///
    /// When the states are of another shape.
    pub fn map(&self) -> Result<Tensor, TensorError> {
        let ([batch, _, width], [rows, columns]) = (self.states.sizes()?, self.grid);
        let places = self.states.narrow(1, self.prefix, rows * columns)?;
        places.transpose(1, 2)?.reshape(&[batch, width, rows, columns])
    }

    /// The tokens of a map `[batch, width, height, width]`.
    ///
    /// # Errors
    ///
    /// When it is of another shape.
    pub fn of_map(map: &Tensor) -> Result<Self, TensorError> {
        let [batch, width, rows, columns] = map.sizes()?;
        let states = map.reshape(&[batch, width, rows * columns])?.transpose(1, 2)?;
        Ok(Self { states, prefix: 0, grid: [rows, columns] })
    }
}

impl Patches {
    /// Reads what makes tokens.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &PatchSpec) -> Result<Self, ModelError> {
        let (width, [height, across]) = (spec.width, spec.patch);
        let norm = |name: &str, norm: &Option<_>| Norm::load_optional(loader, name, norm.as_ref(), width);
        // Files have these with leading dimensions of 1, or without.
        let table = |name: &str, rows: usize| {
            loader.any_tensor(name)?.reshape(&[rows, width]).map_err(ModelError::at(loader.name(name)))
        };
        let positions = match (spec.positions, spec.image) {
            (false, _) => None,
            (true, ImageSize::Fixed(image)) => {
                let [rows, columns] = [image[0] / spec.patch[0].max(1), image[1] / spec.patch[1].max(1)];
                Some((table("positions", rows * columns + usize::from(spec.class))?, [rows, columns]))
            }
            (true, _) => return Err(no_places(spec.image)),
        };
        Ok(Self {
            projection: loader.layer("patches", &[width, spec.channels, height, across], spec.bias)?,
            patch_norm: norm("patch_norm", &spec.patch_norm)?,
            mask: spec.mask.then(|| table("mask_token", 1)).transpose()?,
            class: spec.class.then(|| table("class", 1)).transpose()?,
            positions,
            norm: norm("embed_norm", &spec.norm)?,
            spec: spec.clone(),
        })
    }

    /// The tokens of an image.
    ///
    /// # Errors
    ///
    /// When the image is of another shape than the model takes.
    pub fn forward(&self, asked: &Asked<'_>) -> Result<Tokens, ModelError> {
        let at = || ModelError::at("patches");
        let pixels = self.fitted(asked)?;
        let conv = Convolution { stride: self.spec.patch.to_vec(), ..Convolution::new(2) };
        let map = pixels.convolution(&conv, &self.projection).map_err(at())?;
        let Tokens { states: mut x, grid, .. } = Tokens::of_map(&map).map_err(at())?;
        if let Some(norm) = &self.patch_norm {
            x = norm.forward(&x)?;
        }
        if let Some(hidden) = asked.hidden {
            x = self.hide(&x, hidden)?;
        }
        let run = || -> Result<Tensor, TensorError> {
            if let Some(class) = &self.class {
                let class = class.broadcast(&[x.dim(0)?, 1, self.spec.width])?;
                x = Tensor::concat(&[class, x], 1)?;
            }
            match &self.positions {
                Some((table, known)) => x.add(&self.places(table, *known, grid)?),
                None => Ok(x),
            }
        };
        let mut x = run().map_err(at())?;
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        Ok(Tokens { states: x, prefix: usize::from(self.spec.class), grid })
    }

    /// Pixels of whole patches, where the model takes images of their size.
    fn fitted(&self, asked: &Asked<'_>) -> Result<Tensor, ModelError> {
        let (pixels, PatchSpec { channels, patch, image, .. }) = (asked.pixels, &self.spec);
        let &[_, found, height, width] = pixels.dims() else {
            return Err(ModelError::input("pixel_values", "[batch, channels, height, width]", pixels.dims()));
        };
        let fits = match image {
            ImageSize::Fixed(size) => asked.stretched || *size == [height, width],
            ImageSize::Padded | ImageSize::Cut => true,
        };
        if !fits || found != *channels || height < patch[0] || width < patch[1] {
            let expected = format!("{channels} channels of {image:?}, at least {patch:?}");
            return Err(ModelError::input("pixel_values", &expected, pixels.dims()));
        }
        if *image != ImageSize::Padded {
            return Ok(pixels.clone());
        }
        let lacking = |size: usize, patch: usize| size.next_multiple_of(patch) - size;
        let padded = pixels.pad(2, 0, lacking(height, patch[0]), 0.0);
        padded
            .and_then(|pixels| pixels.pad(3, 0, lacking(width, patch[1]), 0.0))
            .map_err(ModelError::at("pixel_values"))
    }

    /// Hidden patches have one token for all. hidden: `[batch, patches]`
    fn hide(&self, x: &Tensor, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let Some(mask) = &self.mask else {
            let found = "hidden patches".into();
            let supported = "classes with a token for them".into();
            return Err(ModelError::Unsupported { what: "the input".into(), found, supported });
        };
        let run = || -> Result<Tensor, TensorError> {
            let hidden = hidden.reshape(&[x.dim(0)?, x.dim(1)?, 1])?.to_kind(Kind::Whole)?;
            hidden.select(&mask.unsqueeze(0)?, x)
        };
        run().map_err(ModelError::at("hidden patches"))
    }

    /// The embeddings of places, stretched where the map has another size: `[prefix + places, width]`.
    fn places(&self, table: &Tensor, known: [usize; 2], grid: [usize; 2]) -> Result<Tensor, TensorError> {
        if known == grid {
            return Ok(table.clone());
        }
        let (prefix, width) = (usize::from(self.spec.class), self.spec.width);
        let places = table.narrow(0, prefix, known[0] * known[1])?;
        let map = places.transpose(0, 1)?.reshape(&[width, known[0], known[1]])?;
        let stretched = resize(&map, grid, Filter::Cubic)?.reshape(&[width, grid[0] * grid[1]])?.transpose(0, 1)?;
        if prefix == 0 { Ok(stretched) } else { Tensor::concat(&[table.narrow(0, 0, prefix)?, stretched], 0) }
    }
}

fn no_places(image: ImageSize) -> ModelError {
    ModelError::Unsupported {
        what: "embeddings of places for images of".into(),
        found: format!("{image:?}"),
        supported: "images of one size".into(),
    }
}
