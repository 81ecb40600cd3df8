//! Decoders of text that read images and videos among their tokens (<https://arxiv.org/abs/2310.03744>,
//! <https://arxiv.org/abs/2409.12191>).
//!
//! What is seen becomes embeddings, which stand in place of those of one token that means an image. Where these tokens
//! are follows from the values of the input, which are known even while it is recorded.

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::backbone::Backbone;
use crate::backbone::grid::{Grid, Size};
use crate::backbone::patches::Patches;
use crate::cache::{Places, State};
use crate::family::decoder::{Batch, Decoder};
use crate::layers::connector::Connector;
use crate::layers::embed::Spliced;
use crate::layers::patch::Asked;
use crate::layers::rope::Place;
use crate::model::{Begun, Extent, Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::multimodal::{ImagesSpec, MultimodalSpec};
use crate::spec::vision::{BackboneSpec, PatchSpec};
use crate::stack::Stack;

/// A decoder that reads images, with its weights.
#[derive(Debug)]
pub struct Multimodal {
    decoder: Decoder,
    images: Images,
    connector: Connector,
    image: i64,
    video: Option<i64>,
    start: Option<i64>,
}

#[derive(Debug)]
enum Images {
    Tower { tower: Box<Patches>, embed: PatchSpec, layers: Vec<usize>, skipped: usize },
    Grid(Box<Grid>),
}

/// What is asked, as the decoder reads it.
struct Asking {
    batch: Batch,
    state: State,
    spliced: Option<Spliced>,
}

impl Multimodal {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: MultimodalSpec) -> Result<Self, ModelError> {
        let decoder = Decoder::load(&loader.within(&spec.decoder.rules), spec.decoder.spec)?;
        let images = match spec.images {
            ImagesSpec::Grid(grid) => Images::Grid(Box::new(Grid::load(&loader.within(&grid.rules), grid.spec)?)),
            ImagesSpec::Tower { tower, part, layers, skipped } => {
                let whole = loader.within(&tower.rules);
                let own = part.map_or_else(|| whole.clone(), |part| whole.part(part));
                let (Backbone::Patches(loaded), BackboneSpec::Patches(spec)) =
                    (Backbone::load(&own, &tower.spec)?, tower.spec)
                else {
                    return Err(ModelError::Unsupported {
                        what: "images among tokens, seen by".into(),
                        found: "a backbone of maps".into(),
                        supported: "backbones of patches".into(),
                    });
                };
                Images::Tower { tower: loaded, embed: spec.embed, layers, skipped }
            }
        };
        let connector = Connector::load(loader, &spec.connector, decoder.hidden())?;
        Ok(Self { decoder, images, connector, image: spec.image, video: spec.video, start: spec.start })
    }

    /// What the texts that it writes take.
    pub fn extent(&self) -> Extent {
        Extent {
            contexts: [self.decoder.context(); 2],
            vocabulary: self.decoder.vocabulary(),
            position_bytes: self.decoder.position_bytes(),
            sequence_bytes: self.decoder.sequence_bytes(),
            image_positions: None,
        }
    }

    /// The token that an image's embeddings stand in place of.
    pub fn image_token(&self) -> i64 {
        self.image
    }

    /// How many embeddings an image becomes that is prepared: `[channels, height, width]`, or patches of that grid in
    /// time, height and width.
    ///
    /// # Errors
    ///
    /// When the model takes images prepared another way.
    pub fn embeddings(&self, shape: &[usize], grid: Option<[usize; 3]>) -> Result<usize, ModelError> {
        match (&self.images, shape, grid) {
            (Images::Tower { embed, skipped, .. }, &[_, height, width], None) => {
                Ok(embed.tokens([height, width]).saturating_sub(*skipped))
            }
            (Images::Grid(own), _, Some(grid)) => Ok(grid.iter().product::<usize>() / own.merged().pow(2).max(1)),
            (Images::Tower { .. }, ..) => Err(ModelError::input("pixel_values", "[channels, height, width]", shape)),
            (Images::Grid(_), ..) => Err(ModelError::MissingInput { name: "image_grid_thw".into() }),
        }
    }

    /// The stacks of layers in it: what sees, and what reads and writes.
    pub fn stacks(&self) -> [&Stack; 2] {
        let images = match &self.images {
            Images::Tower { tower, .. } => tower.stack(),
            Images::Grid(grid) => grid.stack(),
        };
        [images, self.decoder.stack()]
    }

    /// Answers all that the model's class answers: of `input_ids` and perhaps `attention_mask`, and perhaps of images or
    /// videos. Images of one size are `pixel_values` `[images, channels, height, width]`; those of any size are
    /// `pixel_values` or `pixel_values_videos` `[patches, elements]`, with `image_grid_thw` or `video_grid_thw`
    /// `[images, 3]`.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let known = ["input_ids", "attention_mask", "pixel_values"];
        match &self.images {
            Images::Tower { .. } => inputs.only(&known)?,
            Images::Grid(_) => {
                inputs.only(&[&known[..], &["image_grid_thw", "pixel_values_videos", "video_grid_thw"]].concat())?;
            }
        }
        let (mut asking, seen) = self.asking(inputs)?;
        let mut outputs = self.decoder.answer_batch(&asking.batch, &mut asking.state, asking.spliced.as_ref())?;
        if let (Images::Tower { .. }, Some(seen)) = (&self.images, seen) {
            outputs.push(("image_hidden_states".into(), seen));
        }
        Ok(outputs)
    }

    /// Reads prompts of one length with their images.
    ///
    /// # Errors
    ///
    /// When the model does not generate, or an input is missing.
    pub fn begin(&self, inputs: &Inputs) -> Result<Begun, ModelError> {
        let (asking, _) = self.asking(inputs)?;
        self.decoder.begin_batch(&asking.batch, asking.state, asking.spliced.as_ref())
    }

    /// Reads one token of each sequence, and answers logits of the next.
    ///
    /// # Errors
    ///
    /// When the state is another's.
    pub fn next(&self, tokens: &[i64], state: &mut State) -> Result<Tensor, ModelError> {
        self.decoder.next(tokens, state)
    }

    /// The tokens with what stands in place of some, and the embeddings of images alone.
    fn asking(&self, inputs: &Inputs) -> Result<(Asking, Option<Tensor>), ModelError> {
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?;
        let mut state = self.decoder.state();
        let (images, videos) = match &self.images {
            Images::Tower { tower, layers, skipped, .. } => {
                let images = inputs.optional("pixel_values");
                let seen = images.map(|pixels| self.towered(tower, pixels, layers, *skipped)).transpose()?;
                (seen, None)
            }
            Images::Grid(grid) => self.gridded(grid, inputs, &batch, &mut state)?,
        };
        let spliced = spliced(&batch, [(&images, Some(self.image)), (&videos, self.video)])?;
        Ok((Asking { batch, state, spliced }, images))
    }

    /// Embeddings of images and of videos of any size, `[squares, hidden]` each; tells the state where tokens are.
    fn gridded(
        &self,
        grid: &Grid,
        inputs: &Inputs,
        batch: &Batch,
        state: &mut State,
    ) -> Result<(Option<Tensor>, Option<Tensor>), ModelError> {
        let sized = |name: &str| inputs.optional_whole(name)?.map(|given| grid.sizes(name, given)).transpose();
        let (images, videos) = (sized("image_grid_thw")?, sized("video_grid_thw")?);
        if let Some(start) = self.start {
            // Without anything to see these tokens are as any others.
            let some = images.is_some() || videos.is_some();
            let tokens = if some { [Some(self.image), self.video] } else { [None; 2] };
            let mut places =
                Placing { grid, start, tokens, sizes: [&images, &videos].map(|sizes| sizes.iter().flatten()) };
            for (slot, ids) in batch.known.chunks(batch.length.max(1)).enumerate() {
                let absent = batch.absent.get(slot).map_or(&[][..], Vec::as_slice);
                state.set_places(slot, places.of(ids, absent)?);
            }
        }
        let seen = |pixels: &str, name: &str, sizes: Option<Vec<Size>>| match (inputs.optional(pixels), sizes) {
            (None, _) => Ok(None),
            (Some(_), None) => Err(ModelError::MissingInput { name: name.to_owned() }),
            (Some(pixels), Some(sizes)) => self.connector.forward(&grid.see(pixels, &sizes)?).map(Some),
        };
        let images = seen("pixel_values", "image_grid_thw", images)?;
        Ok((images, seen("pixel_values_videos", "video_grid_thw", videos)?))
    }

    /// Embeddings of images of one size: `[images * states, hidden]`.
    fn towered(
        &self,
        tower: &Patches,
        pixels: &Tensor,
        layers: &[usize],
        skipped: usize,
    ) -> Result<Tensor, ModelError> {
        let seen = tower.states(&Asked { pixels, hidden: None, stretched: false }, layers)?;
        let kept = seen.iter().map(|tokens| {
            let count = tokens.states.dim(1)?.saturating_sub(skipped);
            tokens.states.narrow(1, skipped, count)
        });
        let joined = kept.collect::<Result<Vec<_>, _>>().and_then(|kept| Tensor::concat(&kept, 2)?.flatten(0, 1));
        self.connector.forward(&joined.map_err(ModelError::at("images"))?)
    }
}

/// What stands in place of tokens: of each token that means something seen, the embeddings of that in their order.
fn spliced(batch: &Batch, seen: [(&Option<Tensor>, Option<i64>); 2]) -> Result<Option<Spliced>, ModelError> {
    let (mut states, mut places) = (Vec::new(), Vec::new());
    for (seen, token) in seen {
        let Some(seen) = seen else { continue };
        let of_token = |&(_, &id): &(usize, &i64)| Some(id) == token;
        let own: Vec<usize> = batch.known.iter().enumerate().filter(of_token).map(|(place, _)| place).collect();
        let count = seen.dim(0).map_err(ModelError::at("images"))?;
        if own.len() != count {
            let expected = format!("{count} tokens {} in input_ids, one for each embedding", token.unwrap_or_default());
            return Err(ModelError::State { place: "images", expected, found: own.len().to_string() });
        }
        states.push(seen.clone());
        places.extend(own);
    }
    if states.is_empty() {
        return Ok(None);
    }
    let states = Tensor::concat(&states, 0).map_err(ModelError::at("images"))?;
    Ok(Some(Spliced { states, places }))
}

/// Gives tokens places in time, height and width (`get_rope_index`): those of an image or video in its grid, the others
/// one after the other, from beyond what came before.
struct Placing<'a, I: Iterator<Item = &'a Size>> {
    grid: &'a Grid,
    /// The token before each image and video.
    start: i64,
    /// The token that an image is, and that a video is.
    tokens: [Option<i64>; 2],
    /// Of images and of videos, in the order of the whole batch.
    sizes: [I; 2],
}

impl<'a, I: Iterator<Item = &'a Size>> Placing<'a, I> {
    /// The places of one sequence, padding's all 1.
    fn of(&mut self, ids: &[i64], absent: &[bool]) -> Result<Places, ModelError> {
        let hidden = |place: usize| absent.get(place) == Some(&true);
        let seen: Vec<i64> = ids.iter().enumerate().filter(|(place, _)| !hidden(*place)).map(|(_, &id)| id).collect();
        // Of images and of videos those that the start's token comes before are placed.
        let begins = |token: Option<i64>| {
            let begins = |pair: &&[i64]| matches!(**pair, [start, next] if start == self.start && Some(next) == token);
            seen.windows(2).filter(begins).count()
        };
        let mut left = self.tokens.map(begins);
        let mut placed: Vec<Place> = Vec::with_capacity(seen.len());
        let mut largest = -1;
        while left.iter().any(|&left| left > 0) {
            let first = |kind: usize| {
                let rest = seen.get(placed.len()..).unwrap_or_default();
                let found = rest.iter().position(|&id| Some(id) == self.tokens[kind]);
                found.filter(|_| left[kind] > 0).map(|at| (at, kind))
            };
            let (text, kind) = [first(0), first(1)].into_iter().flatten().min().ok_or_else(no_grid)?;
            let &[frames, height, width] = self.sizes[kind].next().ok_or_else(no_grid)?;
            left[kind] -= 1;
            placed.extend((0..text as i64).map(|at| [largest + 1 + at; 3]));
            largest += text as i64;
            let side = self.grid.merged();
            let [height, width] = [height / side, width / side];
            if frames.saturating_mul(height).saturating_mul(width) > seen.len().saturating_sub(placed.len()) {
                return Err(no_grid());
            }
            let offset = largest + 1;
            let at = |frame: usize, row: usize, column: usize| [frame, row, column].map(|axis| offset + axis as i64);
            placed.extend((0..frames).flat_map(|frame| {
                (0..height).flat_map(move |row| (0..width).map(move |column| at(frame, row, column)))
            }));
            largest += frames.max(height).max(width) as i64;
        }
        let rest = seen.len() - placed.len();
        placed.extend((0..rest as i64).map(|at| [largest + 1 + at; 3]));
        largest += rest as i64;
        let mut placed = placed.into_iter();
        let place = |place: usize| if hidden(place) { Some([1; 3]) } else { placed.next() };
        let first = (0..ids.len()).map_while(place).collect();
        Ok(Places { first, further: largest + 1 - ids.len() as i64 })
    }
}

fn no_grid() -> ModelError {
    ModelError::State {
        place: "images",
        expected: "as many images and videos, of their sizes, as input_ids have places for".into(),
        found: "others".into(),
    }
}
