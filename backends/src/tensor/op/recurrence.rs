//! Operations that go through the tokens of one sequence in their order, and carry something from token to token.
//!
//! What they carry is an argument and a result, so that a sequence may be read in pieces. They are of one sequence each:
//! its results cannot depend on which others are read beside it.

use super::{Kind, Op, Signature, Tensor};

/// A state space whose steps are chosen by the tokens.
///
/// Channels lie in heads, and heads in groups. x: `[tokens, heads * head]`; step: `[tokens, heads]`; rate: `[heads,
/// places]`, or `[heads, 1]` where all places of a head have one; input and output: `[tokens, groups * places]`; skip:
/// `[heads]`; state: `[heads * head, places]`. The results: `[tokens, heads * head]`, and the state after the last token.
///
/// Of each token, `state = exp(step * rate) * state + step * x * input`, and the result is the sum over places of `state *
/// output`, plus `skip * x`. With one channel to a head it is Mamba's scan (<https://arxiv.org/abs/2312.00752>), with one
/// rate to a head Mamba-2's (<https://arxiv.org/abs/2405.21060>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Channels of a head.
    pub head: usize,
    /// How many groups of heads share inputs and outputs.
    pub groups: usize,
}

impl Scan {
    /// Heads, and places of a channel's state, where the arguments fit.
    pub(crate) fn sizes(&self, args: &[&Tensor]) -> Option<(usize, usize)> {
        let &[x, step, rate, input, output, skip, state] = args else { return None };
        let (&[tokens, width], &[channels, places]) = (x.dims(), state.dims()) else { return None };
        let heads = width.checked_div(self.head)?;
        let rates = rate.dims().get(1).copied()?;
        let fits = channels == width
            && heads * self.head == width
            && self.groups > 0
            && heads.is_multiple_of(self.groups)
            && step.dims() == [tokens, heads]
            && rate.dims() == [heads, rates]
            && (rates == places || rates == 1)
            && input.dims() == [tokens, self.groups * places]
            && output.dims() == input.dims()
            && skip.dims() == [heads];
        (fits && tokens * width * places > 0 && args.iter().all(|arg| arg.kind() == Kind::Float))
            .then_some((heads, places))
    }
}

/// What the results of a recurrence are, or what its arguments should have been.
pub(super) fn infer(op: &Op, args: &[&Tensor]) -> Result<Vec<Signature>, String> {
    let dims = |place: usize| args.get(place).map_or(&[][..], |arg| arg.dims());
    let fits = match op {
        Op::CausalConvolution { .. } => match (dims(0), dims(2)) {
            (&[tokens, channels], &[taps, columns]) => {
                tokens * channels * taps > 0
                    && columns == channels
                    && dims(1) == [taps - 1, channels]
                    && args.get(3).is_none_or(|bias| bias.dims() == [channels])
            }
            _ => false,
        },
        Op::Scan(scan) => scan.sizes(args).is_some(),
        _ => match dims(0) {
            &[tokens, width] => {
                tokens * width > 0
                    && dims(1) == [tokens, width]
                    && dims(2) == [width]
                    && dims(3) == [width]
                    && dims(4) == [3, width]
            }
            _ => false,
        },
    };
    if !fits || args.iter().any(|arg| arg.kind() != Kind::Float) {
        return Err(match op {
            Op::CausalConvolution { .. } => {
                "[tokens, channels], [taps - 1, channels], [taps, channels] and perhaps [channels]".into()
            }
            Op::Scan(scan) => format!("shapes that fit {scan:?}"),
            _ => "twice [tokens, width], twice [width], and [3, width]".into(),
        });
    }
    // The last argument but for a convolution's weights is what is carried.
    let carried = if matches!(op, Op::CausalConvolution { .. }) { dims(1) } else { dims(args.len() - 1) };
    Ok(vec![(Kind::Float, dims(0).to_vec()), (Kind::Float, carried.to_vec())])
}
