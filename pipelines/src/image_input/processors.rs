//! The image processors that are known: a row for each.
//!
//! A row is a rule for sizes and what holds where the configuration says nothing; the steps are the same for all. Follows
//! the `__init__` of `image_processing_*.py` of each model in `transformers`.

use super::ImageSize;
use super::resample::Filter;
use super::target::{Rule, Size};

/// Mean and standard deviation of each channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) mean: [f64; 3],
    pub(super) deviation: [f64; 3],
}

pub(super) const CLIP: Moments =
    Moments { mean: [0.48145466, 0.4578275, 0.40821073], deviation: [0.26862954, 0.26130258, 0.27577711] };
const IMAGENET: Moments = Moments { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
const HALVES: Moments = Moments { mean: [0.5; 3], deviation: [0.5; 3] };

/// What a processor does where the configuration does not say.
pub(super) struct Processor {
    /// Its class, without `ImageProcessor` at the end.
    pub(super) name: &'static str,
    pub(super) rule: Rule,
    pub(super) size: Size,
    pub(super) filter: Filter,
    /// The edge of its crop, and whether it crops.
    pub(super) crop: Option<(usize, bool)>,
    /// What it normalises with, and whether it does.
    pub(super) moments: Option<(Moments, bool)>,
    pub(super) pad: Padding,
}

/// What a processor knows of padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Padding {
    /// Nothing.
    Never,
    /// To a square before resizing, in the colour of the mean, where `do_pad` says so. LLaVA.
    Square,
    /// To the largest of a batch or to `pad_size`, with or without a mask, unless `do_pad` says no.
    Largest { mask: bool, usual: bool },
    /// To `pad_size`, of this edge where it is not given, unless `do_pad` says no. SAM.
    Fixed(usize),
}

pub(super) const fn exact(edge: usize) -> Size {
    Size::Exact(ImageSize::square(edge))
}

const DETECTION_SIZE: Size = Size::Between { shortest: 800, longest: 1333 };
const DETECTION: Rule = Rule::Detection { multiple: 1 };
const MASKED: Padding = Padding::Largest { mask: true, usual: true };
const NEVER: Padding = Padding::Never;

/// Multiples and parts are those that hold where the configuration does not say.
#[rustfmt::skip]
pub(super) const PROCESSORS: &[Processor] = &[
    processor("Beit", Rule::Exact, exact(256), Filter::Bicubic, Some((224, true)), Some((HALVES, true)), NEVER),
    processor("Bit", Rule::Shortest, Size::Shortest(224), Filter::Bicubic, Some((224, true)), Some((CLIP, true)), NEVER),
    processor("Blip", Rule::Exact, exact(384), Filter::Bicubic, None, Some((CLIP, true)), NEVER),
    processor("ChineseCLIP", Rule::Shortest, Size::Shortest(224), Filter::Bicubic, Some((224, true)), Some((CLIP, true)), NEVER),
    processor("CLIP", Rule::Shortest, Size::Shortest(224), Filter::Bicubic, Some((224, true)), Some((CLIP, true)), NEVER),
    processor("ConditionalDetr", DETECTION, DETECTION_SIZE, Filter::Bilinear, None, Some((IMAGENET, true)), MASKED),
    processor("ConvNext", Rule::Crop { part: 0.875 }, Size::Shortest(384), Filter::Bilinear, None, Some((HALVES, true)), NEVER),
    processor("DeformableDetr", DETECTION, DETECTION_SIZE, Filter::Bilinear, None, Some((IMAGENET, true)), MASKED),
    processor("DeiT", Rule::Exact, exact(256), Filter::Bicubic, Some((224, true)), Some((HALVES, true)), NEVER),
    processor("Deta", DETECTION, DETECTION_SIZE, Filter::Bilinear, None, Some((IMAGENET, true)), MASKED),
    processor("Detr", DETECTION, DETECTION_SIZE, Filter::Bilinear, None, Some((IMAGENET, true)), MASKED),
    processor("DPT", Rule::Depth { keep_ratio: false, multiple: 1 }, exact(384), Filter::Bicubic, None, Some((HALVES, true)), NEVER),
    processor("GLPN", Rule::Multiple(32), exact(1), Filter::Bilinear, None, None, NEVER),
    processor("GroundingDino", DETECTION, DETECTION_SIZE, Filter::Bilinear, None, Some((IMAGENET, true)), MASKED),
    processor("Levit", Rule::Levit, Size::Shortest(224), Filter::Bicubic, Some((224, true)), Some((IMAGENET, true)), NEVER),
    processor("Llava", Rule::Shortest, Size::Shortest(224), Filter::Bicubic, Some((224, true)), Some((CLIP, true)), Padding::Square),
    processor("Mask2Former", Rule::Segmentation { multiple: 32 }, DETECTION_SIZE, Filter::Bilinear, None, Some((IMAGENET, true)), MASKED),
    processor("MaskFormer", Rule::Segmentation { multiple: 32 }, DETECTION_SIZE, Filter::Bilinear, None, Some((IMAGENET, true)), MASKED),
    processor("MobileNetV1", Rule::Shortest, Size::Shortest(256), Filter::Bilinear, Some((224, true)), Some((HALVES, true)), NEVER),
    processor("MobileNetV2", Rule::Shortest, Size::Shortest(256), Filter::Bilinear, Some((224, true)), Some((HALVES, true)), NEVER),
    processor("MobileViT", Rule::Shortest, Size::Shortest(224), Filter::Bilinear, Some((256, true)), None, NEVER),
    processor("OwlViT", Rule::Exact, exact(768), Filter::Bicubic, Some((768, false)), Some((CLIP, true)), NEVER),
    processor("Pvt", Rule::Exact, exact(224), Filter::Bilinear, None, Some((IMAGENET, true)), NEVER),
    processor("Qwen2VL", Rule::Area { multiple: 28 }, Size::Between { shortest: 3136, longest: 1_003_520 }, Filter::Bicubic, None, Some((CLIP, true)), NEVER),
    processor("RTDetr", DETECTION, exact(640), Filter::Bilinear, None, Some((IMAGENET, false)), Padding::Largest { mask: true, usual: false }),
    processor("Sam", Rule::Longest, Size::Longest(1024), Filter::Bilinear, None, Some((IMAGENET, true)), Padding::Fixed(1024)),
    processor("Segformer", Rule::Exact, exact(512), Filter::Bilinear, None, Some((IMAGENET, true)), NEVER),
    processor("Siglip", Rule::Exact, exact(224), Filter::Bicubic, None, Some((HALVES, true)), NEVER),
    processor("ViT", Rule::Exact, exact(224), Filter::Bilinear, None, Some((HALVES, true)), NEVER),
    processor("ViTHybrid", Rule::Shortest, Size::Shortest(224), Filter::Bicubic, Some((224, true)), Some((CLIP, true)), NEVER),
    processor("Vilt", Rule::Vilt { multiple: 32 }, Size::Shortest(384), Filter::Bicubic, None, Some((HALVES, true)), MASKED),
    processor("Yolos", Rule::Detection { multiple: 16 }, DETECTION_SIZE, Filter::Bilinear, None, Some((IMAGENET, true)), Padding::Largest { mask: false, usual: true }),
];

const fn processor(
    name: &'static str,
    rule: Rule,
    size: Size,
    filter: Filter,
    crop: Option<(usize, bool)>,
    moments: Option<(Moments, bool)>,
    pad: Padding,
) -> Processor {
    Processor { name, rule, size, filter, crop, moments, pad }
}
