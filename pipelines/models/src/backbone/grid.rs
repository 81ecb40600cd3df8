//! Patches of images and videos of any size as tokens of one stack, which turn by their height and width
//! (<https://arxiv.org/abs/2409.12191>; `Qwen2VisionTransformerPretrainedModel`).

use accel_backends::tensor::{Linear, Tensor};

use crate::ModelError;
use crate::cache::Row;
use crate::layers::rope::Place;
use crate::rules::Loader;
use crate::spec::multimodal::GridSpec;
use crate::stack::{Reading, Stack};

/// Frames, height and width of an image or a video, in patches.
pub type Size = [usize; 3];

/// A stack that reads patches, with its weights.
#[derive(Debug)]
pub struct Grid {
    patches: Linear,
    inputs: usize,
    merged: usize,
    stack: Stack,
}

impl Grid {
    /// Reads the stack.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: GridSpec) -> Result<Self, ModelError> {
        Ok(Self {
            patches: loader.flattened("patches", spec.stack.hidden, &spec.patch)?,
            inputs: spec.patch.iter().product(),
            merged: spec.merged,
            stack: Stack::load(loader, spec.stack)?,
        })
    }

    /// Its layers.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Patches along a side of the square that becomes one embedding.
    pub fn merged(&self) -> usize {
        self.merged
    }

    /// Sizes of images or videos `[count, 3]`, by the name of the input that they came in.
    ///
    /// # Errors
    ///
    /// When they are no sizes, or no whole squares of patches that become one.
    pub fn sizes(&self, name: &str, (sizes, dims): (Vec<i64>, &[usize])) -> Result<Vec<Size>, ModelError> {
        let wrong = || ModelError::State {
            place: "images",
            expected: format!("{name} of frames, height and width, these two multiples of {}", self.merged),
            found: format!("{sizes:?}"),
        };
        if !matches!(dims, [_, 3]) {
            return Err(ModelError::input(name, "[images, 3]", dims));
        }
        let size = |size: &[i64]| {
            let size: Size =
                size.iter().map(|&length| usize::try_from(length).ok()).collect::<Option<Vec<_>>>()?.try_into().ok()?;
            let fits = size[1..].iter().all(|side| side.is_multiple_of(self.merged));
            (fits && size.iter().all(|&length| (1..=SIDE_MAX).contains(&length))).then_some(size)
        };
        sizes.chunks(3).map(size).collect::<Option<_>>().ok_or_else(wrong)
    }

    /// pixels: `[patches, elements]`, those of one square after those of another; to `[patches, hidden]`.
    ///
    /// # Errors
    ///
    /// When there are not as many patches as the sizes say.
    pub fn see(&self, pixels: &Tensor, sizes: &[Size]) -> Result<Tensor, ModelError> {
        let patches: usize = sizes.iter().map(|size| size.iter().product::<usize>()).sum();
        if *pixels.dims() != [patches, self.inputs] {
            return Err(ModelError::input("pixels", &format!("[{patches}, {}]", self.inputs), pixels.dims()));
        }
        let rows = Row::whole(sizes.iter().flat_map(|&[frames, height, width]| vec![height * width; frames]));
        let places: Vec<Place> = sizes.iter().flat_map(|&size| self.places(size)).collect();
        let x = pixels.linear(&self.patches).map_err(ModelError::at("patches"))?;
        let reading = Reading { rows: &rows, absent: &[], source: None };
        self.stack.placed_layers(0..self.stack.spec().layers.len(), x, &reading, Some(&places), None)
    }

    /// The height and width of each patch, square by square.
    fn places(&self, [frames, height, width]: Size) -> Vec<Place> {
        let side = self.merged;
        let square = |top: usize, left: usize| {
            (0..side).flat_map(move |row| (0..side).map(move |column| [(top + row) as i64, (left + column) as i64, 0]))
        };
        let frame = (0..height).step_by(side).flat_map(|top| (0..width).step_by(side).map(move |left| (top, left)));
        let frame: Vec<Place> = frame.flat_map(|(top, left)| square(top, left)).collect();
        frame.repeat(frames)
    }
}

/// Frames, and patches along a side: what is larger would take more memory than there is.
const SIDE_MAX: usize = 1 << 16;
