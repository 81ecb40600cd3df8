//! What stands for a whole sequence of a decoder, beside what its head makes of tokens (`GPT2SequenceSummary`).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::{SummaryOf, SummarySpec};

/// The layer of a summary with its weights.
#[derive(Debug)]
pub struct Summary {
    spec: SummarySpec,
    layer: Option<Linear>,
}

impl Summary {
    /// Reads the part `head.summary`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &SummarySpec, hidden: usize) -> Result<Self, ModelError> {
        let layer = spec.outputs.map(|outputs| loader.linear("head.summary", outputs, hidden, true));
        Ok(Self { spec: *spec, layer: layer.transpose()? })
    }

    /// x: `[sequences, length, hidden]` to `[sequences, outputs]`, without a dimension of 1 at the end. `places` are the
    /// tokens that stand for their sequences, where they are given.
    ///
    /// # Errors
    ///
    /// When a place is not there.
    pub fn forward(&self, x: &Tensor, places: Option<&[i64]>) -> Result<Tensor, TensorError> {
        let [sequences, length, _] = x.sizes()?;
        let of = match (self.spec.of, places) {
            (SummaryOf::First, _) => x.at(1, 0)?,
            (SummaryOf::Mean, _) => x.mean(&[1])?.squeeze(1)?,
            (SummaryOf::Last, _) | (SummaryOf::Place, None) => x.at(1, length.saturating_sub(1))?,
            (SummaryOf::Place, Some(places)) => {
                let flat = |(row, &found): (usize, &i64)| {
                    let place = usize::try_from(found).ok().filter(|&place| place < length);
                    let outside = TensorError::Index { operation: "summary", found, rows: length };
                    place.map(|place| row * length + place).ok_or(outside)
                };
                let places = places.iter().take(sequences).enumerate().map(flat).collect::<Result<Vec<_>, _>>()?;
                x.flatten(0, 1)?.pick(0, &places)?
            }
        };
        let made = self.layer.as_ref().map_or(Ok(of.clone()), |layer| of.linear(layer))?;
        let made = made.activate(self.spec.activation)?;
        if made.dim(-1)? == 1 { made.squeeze(-1) } else { Ok(made) }
    }
}
