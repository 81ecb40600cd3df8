//! What a configuration makes of an image processor.
//!
//! The steps and their order are the same for all: pad to a square, resize, crop, scale, normalise, pad, cut into patches.
//! Follows `image_processing_*.py` of each model, and `get_size_dict` of `image_processing_utils.py`, in `transformers`.

use serde_json::Value;

use crate::error::PipelineError;
use crate::preprocessor::{Settings, whole_number};

use super::canvas::{Patches, center_crop, pad_to_square};
use super::processors::{CLIP, Moments, PROCESSORS, Padding, Processor, exact};
use super::resample::{Filter, resize};
use super::target::{Rule, Size};
use super::{CHANNELS, ImageSize, RgbImage};

/// The longest edge that a configuration may ask for, in pixels.
const EDGE_MAX: usize = 8192;
const TYPE_KEYS: [&str; 2] = ["image_processor_type", "feature_extractor_type"];

/// What a model's pictures go through.
#[derive(Debug)]
pub(super) struct Recipe {
    square: Option<[u8; 3]>,
    resize: Option<(Rule, Option<Size>, Filter)>,
    crop: Option<ImageSize>,
    rescale: Option<f64>,
    normalize: Option<Moments>,
    pub(super) flip_channels: bool,
    pub(super) pad: Pad,
    pub(super) pixel_mask: bool,
    pub(super) patches: Option<Patches>,
}

/// How the pictures of a batch get one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pad {
    None,
    ToLargest,
    To(ImageSize),
}

impl Recipe {
    /// Reads the steps from a configuration.
    ///
    /// # Errors
    ///
    /// When the processor or a step is not known, or a key has a value that the processor cannot use.
    pub(super) fn read(settings: &Settings) -> Result<Self, PipelineError> {
        let processor = Processor::find(settings)?;
        let moments = processor.moments(settings)?;
        let patches = Patches::read(settings, processor)?;
        let rule = processor.rule(settings, patches)?;
        let size = processor.size(settings, rule)?;
        let resize = settings.truth("do_resize", true)?.then_some((rule, size, processor.filter(settings)?));
        let mut crop = if resize.is_some() { rule.crop(size) } else { None };
        if let Some((edge, usual)) = processor.crop
            && settings.truth("do_center_crop", usual)?
        {
            crop = Some(exact_size(settings, "crop_size")?.unwrap_or(ImageSize::square(edge)));
        }
        let rescale = settings.number("rescale_factor")?.unwrap_or(1.0 / 255.0);
        let recipe = Self {
            square: processor.square(settings, moments.as_ref())?,
            resize,
            crop,
            rescale: settings.truth("do_rescale", true)?.then_some(rescale),
            normalize: moments,
            flip_channels: processor.name == "MobileViT" && settings.truth("do_flip_channel_order", true)?,
            pad: processor.padding(settings)?,
            pixel_mask: matches!(processor.pad, Padding::Largest { mask: true, .. }),
            patches,
        };
        recipe.without_unknown_steps(settings, processor)
    }

    /// The steps on pixels.
    ///
    /// # Errors
    ///
    /// When they leave no pixels, or too many.
    pub(super) fn resized(&self, image: &RgbImage) -> Result<RgbImage, PipelineError> {
        let squared = self.square.map(|colour| pad_to_square(image, colour)).transpose()?;
        let image = squared.as_ref().unwrap_or(image);
        let resized = match self.resize {
            Some((rule, size, filter)) => resize(image, rule.target(size, image.size)?, filter)?,
            None => image.clone(),
        };
        match self.crop {
            Some(size) if size != resized.size => center_crop(&resized, size),
            _ => Ok(resized),
        }
    }

    /// The value for each of the 256 levels of each channel: scaled in f64 and normalised in f32, as NumPy does it.
    pub(super) fn levels(&self) -> [[f32; 256]; CHANNELS] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|level| {
                let value = self.rescale.map_or(level as f32, |factor| (level as f64 * factor) as f32);
                self.normalize
                    .map_or(value, |moments| (value - moments.mean[channel] as f32) / moments.deviation[channel] as f32)
            })
        })
    }

    /// Steps that a processor has and that are not written here must not be passed over.
    fn without_unknown_steps(self, settings: &Settings, processor: &Processor) -> Result<Self, PipelineError> {
        const KNOWN: [&str; 9] = [
            "do_resize",
            "do_center_crop",
            "do_rescale",
            "do_normalize",
            "do_convert_rgb",
            "do_flip_channel_order",
            "do_pad",
            // They are about annotations, which people's pictures have none of.
            "do_convert_annotations",
            "do_reduce_labels",
        ];
        for key in settings.keys().filter(|key| key.starts_with("do_") && !KNOWN.contains(key)) {
            if settings.truth(key, false)? {
                return Err(unsupported(key, processor));
            }
        }
        let pads = matches!(processor.pad, Padding::Never) && settings.truth("do_pad", false)?;
        // Some files have do_pad beside processors that have no such step, and Hugging Face passes over it there.
        if pads && matches!(processor.rule, Rule::Depth { .. }) {
            return Err(unsupported("do_pad", processor));
        }
        Ok(self)
    }
}

fn unsupported(step: &str, processor: &Processor) -> PipelineError {
    PipelineError::Unsupported {
        what: "the image processor's step",
        found: format!("{step} of {}ImageProcessor", processor.name),
        supported: "resizing, cropping, scaling, normalising, padding, patches".into(),
    }
}

impl Processor {
    fn find(settings: &Settings) -> Result<&'static Self, PipelineError> {
        let mut class = None;
        for key in TYPE_KEYS {
            class = class.or(settings.text(key)?);
        }
        let class = class.ok_or_else(|| settings.wrong(TYPE_KEYS[0], "the class of an image processor"))?;
        let name = ["ImageProcessorFast", "ImageProcessor", "FeatureExtractor"]
            .iter()
            .find_map(|ending| class.strip_suffix(ending));
        let row = PROCESSORS.iter().find(|row| Some(row.name) == name);
        row.ok_or_else(|| {
            let names: Vec<_> = PROCESSORS.iter().map(|row| row.name).collect();
            PipelineError::Unsupported {
                what: "the image processor",
                found: class.chars().take(80).collect(),
                supported: names.join(", "),
            }
        })
    }

    fn moments(&self, settings: &Settings) -> Result<Option<Moments>, PipelineError> {
        let Some((usual, normalizes)) = self.moments else { return Ok(None) };
        let mean = settings.channels("image_mean")?.unwrap_or(usual.mean);
        let deviation = settings.channels("image_std")?.unwrap_or(usual.deviation);
        if deviation.iter().any(|deviation| *deviation as f32 == 0.0) {
            return Err(settings.wrong("image_std", "numbers other than zero"));
        }
        Ok(settings.truth("do_normalize", normalizes)?.then_some(Moments { mean, deviation }))
    }

    fn rule(&self, settings: &Settings, patches: Option<Patches>) -> Result<Rule, PipelineError> {
        let multiple = |key: &str, usual: usize| Ok::<_, PipelineError>(settings.size(key, EDGE_MAX)?.unwrap_or(usual));
        Ok(match (self.rule, patches) {
            (Rule::Crop { part }, _) => {
                let part = settings.number("crop_pct")?.unwrap_or(part);
                if !(0.01..=1.0).contains(&part) {
                    return Err(settings.wrong("crop_pct", "a number from 0.01 to 1"));
                }
                Rule::Crop { part }
            }
            (Rule::Segmentation { multiple: usual }, _) => {
                // Files from before 4.27 call it so.
                let usual = multiple("size_divisibility", usual)?;
                Rule::Segmentation { multiple: multiple("size_divisor", usual)? }
            }
            (Rule::Vilt { multiple: usual }, _) => Rule::Vilt { multiple: multiple("size_divisor", usual)? },
            (Rule::Multiple(usual), _) => Rule::Multiple(multiple("size_divisor", usual)?),
            (Rule::Depth { keep_ratio, multiple: usual }, _) => Rule::Depth {
                keep_ratio: settings.truth("keep_aspect_ratio", keep_ratio)?,
                multiple: multiple("ensure_multiple_of", usual)?,
            },
            (Rule::Area { .. }, Some(patches)) => Rule::Area { multiple: patches.edge * patches.merge },
            (rule, _) => rule,
        })
    }

    fn size(&self, settings: &Settings, rule: Rule) -> Result<Option<Size>, PipelineError> {
        if matches!(rule, Rule::Multiple(_)) {
            return Ok(None);
        }
        let given = match self.rule {
            Rule::Exact | Rule::Depth { .. } => read_size(settings, "size", Lone::Square)?,
            Rule::Detection { .. } | Rule::Segmentation { .. } => {
                let longest = settings.size("max_size", EDGE_MAX)?.unwrap_or(1333);
                read_size(settings, "size", Lone::Shortest(Some(longest)))?
            }
            Rule::Area { .. } => return area_size(settings, self.size).map(Some),
            _ => read_size(settings, "size", Lone::Shortest(None))?,
        };
        if given.is_some()
            && let Some(expected) = rule.expected(given)
        {
            return Err(settings.wrong("size", expected));
        }
        Ok(given.or(Some(self.size)))
    }

    fn filter(&self, settings: &Settings) -> Result<Filter, PipelineError> {
        let Some(value) = settings.value("resample") else { return Ok(self.filter) };
        let filter = whole_number(value).and_then(Filter::from_number);
        filter.ok_or_else(|| settings.wrong("resample", "the number of a filter of Pillow, 0 to 5"))
    }

    fn square(&self, settings: &Settings, moments: Option<&Moments>) -> Result<Option<[u8; 3]>, PipelineError> {
        if self.pad != Padding::Square || !settings.truth("do_pad", false)? {
            return Ok(None);
        }
        // The colour is the mean even where nothing is normalised by it.
        let usual = self.moments.map_or(CLIP.mean, |(usual, _)| usual.mean);
        let mean = moments.map_or(settings.channels("image_mean")?.unwrap_or(usual), |moments| moments.mean);
        Ok(Some(mean.map(|value| (value * 255.0) as u8)))
    }

    fn padding(&self, settings: &Settings) -> Result<Pad, PipelineError> {
        // Files from before 4.27 have the older name.
        let pads = |usual| settings.truth("pad_and_return_pixel_mask", settings.truth("do_pad", usual)?);
        let size = exact_size(settings, "pad_size")?;
        Ok(match self.pad {
            Padding::Largest { usual, .. } if pads(usual)? => size.map_or(Pad::ToLargest, Pad::To),
            Padding::Fixed(edge) if pads(true)? => Pad::To(size.unwrap_or(ImageSize::square(edge))),
            _ => Pad::None,
        })
    }
}

/// What a number alone means where a size is expected.
#[derive(Clone, Copy)]
enum Lone {
    Square,
    Shortest(Option<usize>),
}

/// A size as any of the forms that `get_size_dict` takes.
fn read_size(settings: &Settings, key: &str, lone: Lone) -> Result<Option<Size>, PipelineError> {
    let Some(value) = settings.value(key) else { return Ok(None) };
    if let Some(section) = settings.section(key) {
        let edge = |name: &str| section.size(name, EDGE_MAX);
        let pair = |height: &str, width: &str| {
            Ok::<_, PipelineError>(edge(height)?.zip(edge(width)?).map(|(height, width)| ImageSize { height, width }))
        };
        let size = match (edge("shortest_edge")?, edge("longest_edge")?) {
            (Some(shortest), Some(longest)) => Some(Size::Between { shortest, longest }),
            (Some(shortest), None) => Some(Size::Shortest(shortest)),
            (None, Some(longest)) => Some(Size::Longest(longest)),
            (None, None) => match pair("height", "width")? {
                Some(size) => Some(Size::Exact(size)),
                None => pair("max_height", "max_width")?.map(Size::Within),
            },
        };
        let expected = "height and width, shortest_edge, longest_edge, or max_height and max_width";
        return size.map(Some).ok_or_else(|| settings.wrong(key, expected));
    }
    let edge = |value: &Value| whole_number(value).filter(|edge| (1..=EDGE_MAX).contains(edge));
    let size = match (value.as_array().map(Vec::as_slice), lone) {
        (Some([height, width]), _) => {
            edge(height).zip(edge(width)).map(|(height, width)| Size::Exact(ImageSize { height, width }))
        }
        (Some(_), _) => None,
        (None, Lone::Square) => edge(value).map(exact),
        (None, Lone::Shortest(None)) => edge(value).map(Size::Shortest),
        (None, Lone::Shortest(Some(longest))) => edge(value).map(|shortest| Size::Between { shortest, longest }),
    };
    size.map(Some).ok_or_else(|| settings.wrong(key, format!("edges of 1 to {EDGE_MAX} pixels")))
}

fn exact_size(settings: &Settings, key: &str) -> Result<Option<ImageSize>, PipelineError> {
    match read_size(settings, key, Lone::Square)? {
        Some(Size::Exact(size)) => Ok(Some(size)),
        // Some files of CLIP's kin have the crop's edge so.
        Some(Size::Shortest(edge)) => Ok(Some(ImageSize::square(edge))),
        Some(_) => Err(settings.wrong(key, "height and width")),
        None => Ok(None),
    }
}

/// The fewest and most pixels, as `size` or as the keys that came before it.
fn area_size(settings: &Settings, usual: Size) -> Result<Size, PipelineError> {
    let Size::Between { mut shortest, mut longest } = usual else { return Ok(usual) };
    const AREA_MAX: usize = super::PREPARED_PIXELS_MAX;
    if let Some(section) = settings.section("size") {
        shortest = section.size("shortest_edge", AREA_MAX)?.ok_or_else(|| section.wrong("shortest_edge", "pixels"))?;
        longest = section.size("longest_edge", AREA_MAX)?.ok_or_else(|| section.wrong("longest_edge", "pixels"))?;
    }
    shortest = settings.size("min_pixels", AREA_MAX)?.unwrap_or(shortest);
    longest = settings.size("max_pixels", AREA_MAX)?.unwrap_or(longest);
    Ok(Size::Between { shortest, longest })
}

impl Patches {
    fn read(settings: &Settings, processor: &Processor) -> Result<Option<Self>, PipelineError> {
        if !matches!(processor.rule, Rule::Area { .. }) {
            return Ok(None);
        }
        if !settings.truth("do_resize", true)? {
            return Err(settings.wrong("do_resize", "true, for patches need a size that they divide"));
        }
        Ok(Some(Self {
            edge: settings.size("patch_size", 256)?.unwrap_or(14),
            merge: settings.size("merge_size", 16)?.unwrap_or(2),
            frames: settings.size("temporal_patch_size", 16)?.unwrap_or(2),
        }))
    }
}
