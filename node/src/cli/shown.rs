//! Results as people read them.

use accel_protocol::TaskResult;
use accel_protocol::result::{Entity, Filling, Mask, Span, Thing};

use super::output::table;

/// A result as people read it.
pub(super) fn shown(result: &TaskResult) -> String {
    let score = |score: f32| format!("{score:.4}");
    match result {
        TaskResult::Labels(labels) => {
            table(&["SCORE", "LABEL"], labels.iter().map(|label| vec![score(label.score), label.label.clone()]))
        }
        TaskResult::Fillings(masks) => {
            let rows = masks.iter().flatten();
            let row = |found: &Filling| vec![score(found.score), found.token_str.clone(), found.sequence.clone()];
            table(&["SCORE", "TOKEN", "TEXT"], rows.map(row))
        }
        TaskResult::Entities(entities) => {
            let at = |entity: &Entity| format!("{}..{}", entity.start, entity.end);
            let row =
                |entity: &Entity| vec![score(entity.score), entity.entity.clone(), entity.word.clone(), at(entity)];
            table(&["SCORE", "LABEL", "WORD", "CHARACTERS"], entities.iter().map(row))
        }
        TaskResult::Answers(spans) => {
            let at = |span: &Span| format!("{}..{}", span.start, span.end);
            let row = |span: &Span| vec![score(span.score), span.answer.clone(), at(span)];
            table(&["SCORE", "ANSWER", "CHARACTERS"], spans.iter().map(row))
        }
        TaskResult::Features { shape, values } => {
            let width = shape.last().map_or(1, |&width| width as usize).max(1);
            let line = |row: &[f32]| row.iter().map(f32::to_string).collect::<Vec<_>>().join(" ");
            values.chunks(width).map(line).collect::<Vec<_>>().join("\n")
        }
        TaskResult::Things(things) => {
            let at = |Thing { bounds, .. }: &Thing| {
                format!("{},{} {},{}", bounds.xmin, bounds.ymin, bounds.xmax, bounds.ymax)
            };
            let row = |thing: &Thing| vec![score(thing.score), thing.label.clone(), at(thing)];
            table(&["SCORE", "LABEL", "FROM, TO"], things.iter().map(row))
        }
        TaskResult::Masks(masks) => {
            let row = |mask: &Mask| {
                let inside: u64 = mask.counts.iter().skip(1).step_by(2).map(|&count| u64::from(count)).sum();
                vec![score(mask.score), inside.to_string(), format!("{} x {}", mask.size[1], mask.size[0])]
            };
            table(&["SCORE", "PIXELS", "OF"], masks.iter().map(row))
        }
        TaskResult::Picture(file) => format!("a picture of {} bytes", file.0.len()),
    }
}
