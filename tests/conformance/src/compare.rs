//! Answers against references, element by element.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::case::{Case, Expected, Generated, Stored};

/// The relative part of the bound of generated logits.
const GENERATED_RTOL: f64 = 2e-3;
/// A token may be another one where the reference's margin is below so many bounds of its logits.
const TIE: f64 = 4.0;

/// How answers compare.
#[derive(Debug, Default)]
pub struct Comparison {
    /// The largest error in parts of its bound.
    pub worst: f64,
    /// What is wrong.
    pub faults: Vec<String>,
}

impl Comparison {
    /// Compares everything that the case has, generation too where it was asked for.
    ///
    /// # Errors
    ///
    /// When the case or an answer has a tensor of another kind than it should.
    pub fn of(case: &Case, answers: &BTreeMap<String, Stored>, generation: bool) -> Result<Self> {
        let mut comparison = Self::default();
        for expected in &case.outputs {
            match answers.get(&expected.name) {
                Some(answer) => comparison.output(expected, answer, case.stored(&format!("out.{}", expected.name))?)?,
                None if expected.primary => {
                    comparison.faults.push(format!("{}: expected, not answered", expected.name))
                }
                None => {}
            }
        }
        if let (true, Some(generated), Ok(sequences)) = (generation, &case.generate, case.stored("gen.sequences")) {
            match (answers.get("gen.sequences"), answers.get("gen.logits")) {
                (Some(tokens), Some(logits)) => {
                    let steps = comparison.tokens(generated, tokens, sequences)?;
                    // Classes with a `generate` of their own keep none.
                    if let Ok(reference) = case.stored("gen.logits") {
                        comparison.logits(generated, &steps, logits, reference)?;
                    }
                }
                _ => comparison.faults.push("gen.sequences: expected, not answered".into()),
            }
        }
        Ok(comparison)
    }

    fn output(&mut self, expected: &Expected, answer: &Stored, reference: &Stored) -> Result<()> {
        let Expected { name, shape, atol, rtol, .. } = expected;
        if answer.dims() != shape {
            self.faults.push(format!("{name}: expected {shape:?}, found {:?}", answer.dims()));
            return Ok(());
        }
        if let Ok(reference) = reference.to_integers() {
            let Ok(answer) = answer.to_integers() else {
                self.faults.push(format!("{name}: expected whole numbers, found floats"));
                return Ok(());
            };
            let sampled = answer.iter().step_by(expected.sample_step.unwrap_or(1));
            if let Some((got, want)) = sampled.zip(&reference).find(|(got, want)| got != want) {
                self.faults.push(format!("{name}: expected {want}, found {got}"));
            }
            return Ok(());
        }
        let (answer, reference) = (answer.to_floats()?, reference.to_floats()?);
        let sampled = answer.iter().step_by(expected.sample_step.unwrap_or(1)).copied();
        self.elements(name, sampled.zip(reference), *atol, *rtol);
        if let Some(want) = expected.absmean {
            let finite = answer.iter().map(|value| f64::from(value.abs())).filter(|value| value.is_finite());
            let (count, sum) = finite.fold((0_usize, 0.0), |(count, sum), value| (count + 1, sum + value));
            let error = (sum / count as f64 - want).abs();
            if error.is_nan() || error > atol + rtol * want {
                self.faults.push(format!("{name}: mean magnitude: expected {want}, found {}", sum / count as f64));
            }
        }
        Ok(())
    }

    /// Compares `(got, want)` pairs, and reports the worst of those out of bounds.
    fn elements(&mut self, name: &str, pairs: impl Iterator<Item = (f32, f32)>, atol: f64, rtol: f64) {
        let ratio = |(got, want): (f32, f32)| {
            let ratio = if !want.is_finite() || want.abs() > 1e30 {
                // A mask value: any number of that side will do that is far away.
                let far = if want.is_infinite() && want < 0.0 { got < -1e3 } else { got.abs() > 1e3 };
                if far || !got.is_finite() { 0.0 } else { f64::INFINITY }
            } else {
                (f64::from(got) - f64::from(want)).abs() / (atol + rtol * f64::from(want.abs()))
            };
            if ratio.is_nan() { (f64::INFINITY, got, want) } else { (ratio, got, want) }
        };
        let Some((ratio, got, want)) = pairs.map(ratio).max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
        self.worst = self.worst.max(ratio);
        if ratio > 1.0 {
            self.faults.push(format!("{name}: expected {want}, found {got}, {ratio:.3} of the bound"));
        }
    }

    /// Compares the new tokens; answers how many steps of each sequence have the reference's input.
    fn tokens(&mut self, generated: &Generated, answer: &Stored, reference: &Stored) -> Result<Vec<usize>> {
        let new = generated.max_new_tokens;
        if answer.dims() != reference.dims() {
            self.faults.push(format!("gen.sequences: expected {:?}, found {:?}", reference.dims(), answer.dims()));
            return Ok(Vec::new());
        }
        let width = reference.dims().last().copied().unwrap_or(0);
        let (answer, reference) = (answer.to_integers()?, reference.to_integers()?);
        let mut steps = Vec::new();
        for (row, (got, want)) in answer.chunks_exact(width).zip(reference.chunks_exact(width)).enumerate() {
            let prompt = width.saturating_sub(new);
            let different = got.iter().zip(want).skip(prompt).position(|(got, want)| got != want);
            steps.push(different.map_or(new, |step| step + 1));
            let Some(step) = different else { continue };
            let margin = generated.margins.as_ref().and_then(|margins| margins.get(row)?.get(step));
            if margin.is_none_or(|&margin| margin >= TIE * generated.atol) {
                let (got, want) = (got[prompt + step], want[prompt + step]);
                self.faults.push(format!(
                    "gen.sequences: row {row}, step {step}: expected {want}, found {got}; margin {margin:?}"
                ));
            }
        }
        Ok(steps)
    }

    fn logits(&mut self, generated: &Generated, steps: &[usize], answer: &Stored, reference: &Stored) -> Result<()> {
        let (shape, sample) = (&generated.logits_shape, generated.logits_step.unwrap_or(1));
        let &[_, count, vocabulary] = &shape[..] else { return Ok(()) };
        if answer.dims() != shape {
            self.faults.push(format!("gen.logits: expected {shape:?}, found {:?}", answer.dims()));
            return Ok(());
        }
        let (answer, reference) = (answer.to_floats()?, reference.to_floats()?);
        let comparable = |place: &usize| {
            let (row, step) = (place / vocabulary / count, place / vocabulary % count);
            steps.get(row).is_some_and(|&steps| step < steps)
        };
        let places = (0..answer.len()).step_by(sample).zip(reference).filter(|(place, _)| comparable(place));
        self.elements("gen.logits", places.map(|(place, want)| (answer[place], want)), generated.atol, GENERATED_RTOL);
        Ok(())
    }
}
