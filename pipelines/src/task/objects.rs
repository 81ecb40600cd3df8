//! Objects in a picture, and where they are (`pipelines/object_detection.py`, and `post_process_object_detection` of the
//! image processors).

use accel_models::spec::Spec;
use accel_models::spec::detection::{DetectionHead, ScoresSpec};
use accel_protocol::result::{Bounds, Thing};

use super::labels::{Labels, likeliest, sigmoid, softmax};
use crate::image_input::ImageSize;

/// How likely an object has to be where nothing is said.
pub const THRESHOLD: f32 = 0.5;

/// What becomes of the logits of a model that finds objects; none of any other.
pub fn scores(spec: &Spec) -> Option<ScoresSpec> {
    match spec {
        Spec::Detection(spec) => match spec.head {
            DetectionHead::Objects { scores, .. } => Some(scores),
            DetectionHead::States | DetectionHead::Masks { .. } => None,
        },
        Spec::Deformable(spec) => spec.head.map(|head| head.scores),
        _ => None,
    }
}

/// The objects that are likelier than `threshold`.
///
/// logits: `[queries, labels]`; boxes: `[queries, 4]`, the middle, the width and the height as parts of the picture.
pub fn of(
    (logits, boxes): (Vec<f32>, &[f32]),
    scores: ScoresSpec,
    labels: &Labels,
    size: ImageSize,
    threshold: f32,
) -> Vec<Thing> {
    let count = (logits.len() / (boxes.len() / 4).max(1)).max(1);
    // The score, the query and the label of each.
    let found: Vec<(f32, usize, usize)> = match scores {
        ScoresSpec::OneOrNone => {
            let best = |(query, logits): (usize, &[f32])| {
                let mut chances = logits.to_vec();
                softmax(&mut chances);
                let label = *likeliest(&chances[..count - 1], 1).first()?;
                Some((chances[label], query, label))
            };
            logits.chunks_exact(count).enumerate().filter_map(best).collect()
        }
        ScoresSpec::Each { top } => {
            let mut chances = logits;
            sigmoid(&mut chances);
            likeliest(&chances, top).into_iter().map(|place| (chances[place], place / count, place % count)).collect()
        }
    };
    let (height, width) = (size.height as f32, size.width as f32);
    let thing = |(score, query, label): (f32, usize, usize)| {
        let &[x, y, across, down] = boxes.get(4 * query..4 * query + 4)? else { return None };
        let bounds = Bounds {
            xmin: ((x - 0.5 * across) * width) as i32,
            ymin: ((y - 0.5 * down) * height) as i32,
            xmax: ((x + 0.5 * across) * width) as i32,
            ymax: ((y + 0.5 * down) * height) as i32,
        };
        Some(Thing { score, label: labels.name(label), bounds })
    };
    found.into_iter().filter(|(score, ..)| *score > threshold).filter_map(thing).collect()
}
