//! How large a picture becomes: the rules of the image processors, with their roundings.
//!
//! The rules differ in single pixels, so each is written as its processor writes it. Follows
//! `transformers/image_transforms.py` and the `resize` of each processor.

use crate::error::PipelineError;

use super::ImageSize;

/// What `size` of a configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// `height` and `width`.
    Exact(ImageSize),
    /// `shortest_edge`.
    Shortest(usize),
    /// `shortest_edge`, unless the other edge would be over `longest_edge`.
    Between { shortest: usize, longest: usize },
    /// `longest_edge`.
    Longest(usize),
    /// `max_height` and `max_width`.
    Within(ImageSize),
}

/// How a processor finds the size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule {
    /// The size itself.
    Exact,
    /// The shortest edge, by the ratio of both. CLIP and most others.
    Shortest,
    /// The same with the edge made longer by 256 / 224. LeViT.
    Levit,
    /// Below 384 as with a crop of so much of it, from there on a square. ConvNeXT.
    Crop { part: f64 },
    /// The shortest edge, unless the longest would be too long, cut down to a multiple. DETR and its kin, YOLOS.
    Detection { multiple: usize },
    /// The same, rounded up to a multiple. MaskFormer.
    Segmentation { multiple: usize },
    /// The same with a longest edge of 1333 to 800, cut down to a multiple. ViLT.
    Vilt { multiple: usize },
    /// The size, or what keeps the picture's ratio and changes it least, to the nearest multiple. DPT.
    Depth { keep_ratio: bool, multiple: usize },
    /// The picture's own size, cut down to a multiple. GLPN.
    Multiple(usize),
    /// The longest edge. SAM.
    Longest,
    /// As many pixels as allowed, to the nearest multiple: `size` counts pixels here. Qwen2-VL.
    Area { multiple: usize },
}

impl Rule {
    /// Which sizes the rule can use, for errors; none when it uses none.
    pub(super) fn expected(self, size: Option<Size>) -> Option<&'static str> {
        use Size::{Between, Exact, Longest, Shortest, Within};
        let (expected, usable) = match self {
            Self::Exact | Self::Depth { .. } => ("height and width", matches!(size, Some(Exact(_)))),
            Self::Shortest | Self::Levit => {
                // CLIP's processor takes the shortest edge and passes over the longest.
                ("shortest_edge, or height and width", matches!(size, Some(Shortest(_) | Exact(_) | Between { .. })))
            }
            Self::Crop { .. } => ("shortest_edge", matches!(size, Some(Shortest(_)))),
            Self::Vilt { .. } => ("shortest_edge", matches!(size, Some(Shortest(_) | Between { .. }))),
            Self::Detection { .. } => (
                "shortest_edge and longest_edge, max_height and max_width, or height and width",
                matches!(size, Some(Between { .. } | Within(_) | Exact(_))),
            ),
            Self::Segmentation { .. } => (
                "shortest_edge and a longer longest_edge, or height and width",
                match size {
                    Some(Between { shortest, longest }) => shortest < longest,
                    other => matches!(other, Some(Exact(_))),
                },
            ),
            Self::Longest => ("longest_edge", matches!(size, Some(Longest(_)))),
            Self::Area { .. } => ("shortest_edge and longest_edge", matches!(size, Some(Between { .. }))),
            Self::Multiple(_) => return None,
        };
        (!usable).then_some(expected)
    }

    /// The size that a picture gets.
    ///
    /// # Errors
    ///
    /// When the picture is too narrow for the model.
    pub(super) fn target(self, size: Option<Size>, image: ImageSize) -> Result<ImageSize, PipelineError> {
        let up = |edge: usize, multiple: usize| edge.div_ceil(multiple) * multiple;
        let cut = |edge: usize, multiple: usize| edge / multiple * multiple;
        Ok(match (self, size) {
            (Self::Multiple(multiple), _) => both(image, |edge| cut(edge, multiple)),
            (Self::Area { multiple }, Some(Size::Between { shortest, longest })) => {
                area(image, multiple, shortest, longest)?
            }
            (Self::Depth { keep_ratio, multiple }, Some(Size::Exact(size))) => depth(image, size, keep_ratio, multiple),
            (Self::Segmentation { multiple }, Some(Size::Exact(size))) => both(size, |edge| up(edge, multiple)),
            (Self::Segmentation { multiple }, Some(Size::Between { shortest, longest })) => {
                let size = shortest_edge(image, shortest, Some(longest));
                both(size, |edge| up(edge, multiple))
            }
            (Self::Detection { multiple }, Some(Size::Between { shortest, longest })) => {
                both(detection(image, shortest, longest, multiple == 1), |edge| cut(edge, multiple))
            }
            (Self::Vilt { multiple }, Some(Size::Shortest(shortest) | Size::Between { shortest, .. })) => {
                both(vilt(image, shortest), |edge| cut(edge, multiple))
            }
            (Self::Levit, Some(Size::Shortest(edge) | Size::Between { shortest: edge, .. })) => {
                shortest_edge(image, (256.0 / 224.0 * edge as f64) as usize, None)
            }
            (Self::Crop { part }, Some(Size::Shortest(edge))) if edge < CROP_EDGE => {
                shortest_edge(image, (edge as f64 / part) as usize, None)
            }
            (Self::Crop { .. }, Some(Size::Shortest(edge))) => ImageSize::square(edge),
            (_, Some(Size::Exact(size))) => size,
            (_, Some(Size::Shortest(edge) | Size::Between { shortest: edge, .. })) => shortest_edge(image, edge, None),
            (_, Some(Size::Longest(edge))) => {
                let scale = edge as f64 / longest(image) as f64;
                both(image, |edge| (edge as f64 * scale + 0.5) as usize)
            }
            (_, Some(Size::Within(size))) => {
                let scale = (size.height as f64 / image.height as f64).min(size.width as f64 / image.width as f64);
                both(image, |edge| (edge as f64 * scale) as usize)
            }
            (_, None) => image,
        })
    }

    /// What is cropped after resizing, where the rule itself asks for it.
    pub(super) fn crop(self, size: Option<Size>) -> Option<ImageSize> {
        match (self, size) {
            (Self::Crop { .. }, Some(Size::Shortest(edge))) if edge < CROP_EDGE => Some(ImageSize::square(edge)),
            _ => None,
        }
    }
}

/// From this edge on ConvNeXT takes the whole picture.
const CROP_EDGE: usize = 384;

fn both(size: ImageSize, change: impl Fn(usize) -> usize) -> ImageSize {
    ImageSize { height: change(size.height), width: change(size.width) }
}

fn shortest(size: ImageSize) -> usize {
    size.height.min(size.width)
}

fn longest(size: ImageSize) -> usize {
    size.height.max(size.width)
}

/// `get_resize_output_image_size` of `image_transforms.py`.
fn shortest_edge(image: ImageSize, edge: usize, longest_allowed: Option<usize>) -> ImageSize {
    let long = (edge as f64 * longest(image) as f64 / shortest(image) as f64) as usize;
    let (short, long) = match longest_allowed {
        Some(allowed) if long > allowed => ((allowed as f64 * edge as f64 / long as f64) as usize, allowed),
        _ => (edge, long),
    };
    if image.width <= image.height {
        ImageSize { height: long, width: short }
    } else {
        ImageSize { height: short, width: long }
    }
}

/// `get_size_with_aspect_ratio`. DETR keeps every picture whose shortest edge is right; YOLOS only those not upright.
fn detection(image: ImageSize, edge: usize, longest_allowed: usize, keep_upright: bool) -> ImageSize {
    let (height, width) = (image.height as f64, image.width as f64);
    let (short, long) = (height.min(width), height.max(width));
    let allowed = longest_allowed as f64;
    let mut edge = edge as f64;
    let mut exact_edge = edge;
    if long / short * edge > allowed {
        exact_edge = allowed * short / long;
        edge = exact_edge.round_ties_even();
    }
    if short == edge && (keep_upright || image.height <= image.width) {
        return image;
    }
    if image.width < image.height {
        ImageSize { height: (exact_edge * height / width) as usize, width: edge as usize }
    } else {
        ImageSize { height: edge as usize, width: (exact_edge * width / height) as usize }
    }
}

fn vilt(image: ImageSize, edge: usize) -> ImageSize {
    let longest_allowed = (1333.0 / 800.0 * edge as f64).trunc();
    let edge = edge as f64;
    let scale = edge / shortest(image) as f64;
    let (mut height, mut width) = (scale * image.height as f64, scale * image.width as f64);
    if image.height < image.width {
        height = edge;
    } else {
        width = edge;
    }
    let long = height.max(width);
    if long > longest_allowed {
        let scale = longest_allowed / long;
        (height, width) = (scale * height, scale * width);
    }
    ImageSize { height: (height + 0.5) as usize, width: (width + 0.5) as usize }
}

fn depth(image: ImageSize, size: ImageSize, keep_ratio: bool, multiple: usize) -> ImageSize {
    let mut down = size.height as f64 / image.height as f64;
    let mut across = size.width as f64 / image.width as f64;
    if keep_ratio {
        let least = if (1.0 - across).abs() < (1.0 - down).abs() { across } else { down };
        (down, across) = (least, least);
    }
    let nearest = |edge: f64| (edge / multiple as f64).round_ties_even() as usize * multiple;
    ImageSize { height: nearest(down * image.height as f64), width: nearest(across * image.width as f64) }
}

/// `smart_resize`.
fn area(image: ImageSize, multiple: usize, least: usize, most: usize) -> Result<ImageSize, PipelineError> {
    const RATIO_MAX: f64 = 200.0;
    let ratio = longest(image) as f64 / shortest(image) as f64;
    if ratio > RATIO_MAX {
        let reason = format!("expected at most {RATIO_MAX} times as long as wide, found {image}");
        return Err(PipelineError::input("the image", reason));
    }
    let factor = multiple as f64;
    let (height, width) = (image.height as f64, image.width as f64);
    let nearest = both(image, |edge| (edge as f64 / factor).round_ties_even() as usize * multiple);
    if nearest.pixels() > most {
        let shrink = (height * width / most as f64).sqrt();
        return Ok(both(image, |edge| ((edge as f64 / shrink / factor).floor() as usize * multiple).max(multiple)));
    }
    if nearest.pixels() < least {
        let grow = (least as f64 / (height * width)).sqrt();
        return Ok(both(image, |edge| (edge as f64 * grow / factor).ceil() as usize * multiple));
    }
    Ok(nearest)
}
