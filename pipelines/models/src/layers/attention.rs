//! Attention with grouped queries (<https://arxiv.org/abs/1706.03762>, <https://arxiv.org/abs/2305.13245>).

use accel_backends::tensor::{
    Angles, Attention as Op, AttentionInputs, AttentionShape, KeysValues, Linear, QueryRow, RopeStyle, Segment, Tensor,
    TensorError,
};

use crate::ModelError;
use crate::cache::{Across, LayerState, Row};
use crate::layers::attend::attend;
use crate::layers::bias_gate::BiasGate;
use crate::layers::norm::Norm;
use crate::layers::relative::{Distances, Relative};
use crate::rules::Loader;
use crate::spec::{AttentionSpec, QkvLayout};

/// What attention does with queries, keys and values that are made.
#[derive(Debug)]
pub struct Core {
    /// Its name.
    pub name: String,
    /// Sizes.
    pub shape: AttentionShape,
    /// `[heads]`
    pub sinks: Option<Tensor>,
}

/// Attention with its weights.
#[derive(Debug)]
pub struct Attention {
    core: Core,
    rope: Option<usize>,
    clip: Option<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    norms_whole: bool,
    relative: Option<Relative>,
    blind_padding: bool,
    bias_gate: Option<BiasGate>,
}

/// What one pass tells its attentions.
#[derive(Debug)]
pub struct Pass<'a> {
    /// The rows, one after the other.
    pub rows: &'a [Row],
    /// Whether a token sees no later one.
    pub causal: bool,
    /// Which positions of each row's sequence no token sees.
    pub absent: &'a [Vec<bool>],
    /// The angles of each token, for each way of turning.
    pub angles: &'a [(Angles, RopeStyle)],
    /// Of each row what distance adds to the scores, `[heads or 1, len, past + len]`; or none.
    pub bias: &'a [Tensor],
    /// The vectors of distances.
    pub distances: Option<&'a Distances>,
    /// What the sequences are made from.
    pub source: Option<&'a Source>,
}

/// What sequences are made from: the states of an encoder, one sequence after the other.
#[derive(Clone, Debug)]
pub struct Source {
    /// `[positions, hidden]`
    pub states: Tensor,
    /// Positions of each sequence.
    pub lengths: Vec<usize>,
    /// Which of them no token sees.
    pub absent: Vec<Vec<bool>>,
}

impl Attention {
    /// Reads the attention of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &AttentionSpec, hidden: usize) -> Result<Self, ModelError> {
        let (wide, narrow) = (spec.heads * spec.head, spec.kv_heads * spec.head);
        let shape = AttentionShape {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head: spec.head,
            value_head: spec.head,
            scale: spec.scale,
            softcap: spec.softcap,
            window: spec.window,
        };
        let at = |part: &str| format!("{name}.{part}");
        let source = spec.source.unwrap_or(hidden);
        let [q, k, v] = match spec.layout {
            QkvLayout::Apart => [
                loader.linear(&at("q"), wide, hidden, spec.qkv_bias)?,
                loader.linear(&at("k"), narrow, source, spec.qkv_bias && spec.key_bias)?,
                loader.linear(&at("v"), narrow, source, spec.qkv_bias)?,
            ],
            layout => {
                let rows = wide + 2 * narrow;
                let part = |picked| loader.rows(&at("qkv"), [rows, hidden], picked, spec.qkv_bias);
                let [q, k, v] = qkv_rows(spec, layout == QkvLayout::Interleaved);
                [part(q)?, part(k)?, part(v)?]
            }
        };
        let norm = |part: &str, width: usize| {
            let norm = spec.qk_norm.as_ref();
            norm.map(|norm| Norm::load(loader, &at(part), &norm.norm, if norm.whole { width } else { spec.head }))
                .transpose()
        };
        let sinks = spec.sinks.then(|| loader.tensor(&at("sinks"), &[spec.heads])).transpose()?;
        let relative = spec.relative.map(|relative| Relative::load(loader, name, spec, relative, [&q, &k]));
        Ok(Self {
            relative: relative.transpose()?,
            bias_gate: spec.bias_gate.then(|| BiasGate::load(loader, name, spec.heads, spec.head)).transpose()?,
            core: Core { name: loader.name(name), shape, sinks },
            rope: spec.rope,
            clip: spec.clip,
            q,
            k,
            v,
            out: loader.linear(&at("out"), hidden, wide, spec.out_bias)?,
            q_norm: norm("q_norm", wide)?,
            k_norm: norm("k_norm", narrow)?,
            norms_whole: spec.qk_norm.is_some_and(|norm| norm.whole),
            blind_padding: spec.blind_padding,
        })
    }

    /// Tokens attend to those of their own sequence. x: `[tokens, hidden]` to the same shape; with a state, keys and
    /// values go into it and those before are seen.
    ///
    /// # Errors
    ///
    /// When the shape or the state does not fit.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>, state: Option<&mut LayerState>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.core.name);
        let [q, k, v] = x.linears([&self.q, &self.k, &self.v]).map_err(at())?;
        let q = self.prepared(&q, self.q_norm.as_ref(), pass)?;
        let k = self.prepared(&k, self.k_norm.as_ref(), pass)?;
        let v = self.clipped(v)?;
        let bias = match (&self.relative, &self.bias_gate) {
            (None, None) => pass.bias.to_vec(),
            (None, Some(gate)) => gate.gated(x, pass.bias, pass.rows)?,
            (Some(relative), _) => {
                let keys = match relative.wants_keys() {
                    true => all_keys(&k, pass.rows, state.as_deref())?,
                    false => Vec::new(),
                };
                relative.bias(&q, &keys, &self.core.shape, pass.rows, pass.distances).map_err(at())?
            }
        };
        let blind = if self.blind_padding { blind(&v, pass).map_err(at())? } else { None };
        let attended = self.core.forward(&q, k, v, pass, &bias, state)?;
        let attended = match blind {
            Some((padding, means)) => padding.select(&means, &attended).map_err(at())?,
            None => attended,
        };
        attended.linear(&self.out).map_err(at())
    }

    /// Tokens attend to what their sequence is made from, whose keys and values stay in the state.
    ///
    /// # Errors
    ///
    /// When the shape or the state does not fit.
    pub fn across(&self, x: &Tensor, pass: &Pass<'_>, state: Option<&mut LayerState>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.core.name);
        let source =
            || pass.source.ok_or_else(|| ModelError::MissingInput { name: format!("{}: source", self.core.name) });
        let made = |source: &Source| -> Result<Vec<Across>, TensorError> {
            let [k, v] = source.states.linears([&self.k, &self.v])?;
            let parts = k.split(0, &source.lengths)?.into_iter().zip(v.split(0, &source.lengths)?);
            let absent = source.absent.iter().cloned().chain(std::iter::repeat(Vec::new()));
            Ok(parts.zip(absent).map(|((keys, values), absent)| Across { keys, values, absent }).collect())
        };
        let q = x.linear(&self.q).map_err(at())?;
        let parts: Vec<Across> = match state {
            None => made(source()?).map_err(at())?,
            Some(state) => {
                if !pass.rows.iter().all(|row| state.across(row.slot).is_some()) {
                    for (row, part) in pass.rows.iter().zip(made(source()?).map_err(at())?) {
                        state.keep_across(row.slot, part);
                    }
                }
                pass.rows.iter().filter_map(|row| state.across(row.slot).cloned()).collect()
            }
        };
        let held: Vec<Held<'_>> = parts.iter().map(|part| (part.keys.dims()[0], part.absent.as_slice())).collect();
        let parts: Vec<_> = parts.iter().map(|part| (part.keys.clone(), part.values.clone())).collect();
        let attended = self.core.attend(&q, &parts, &held, pass, None).map_err(at())?;
        attended.linear(&self.out).map_err(at())
    }

    /// Queries attend to keys and values that are made of different things, each sequence to its own, but for those that
    /// are absent. queries: `[batch, n, hidden]`; keys and values: `[batch, m, ..]`; absent: of each sequence which keys
    /// no query sees, or nothing. To `[batch, n, hidden]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn between(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        absent: &[Vec<bool>],
    ) -> Result<Tensor, ModelError> {
        let run = || -> Result<Tensor, TensorError> {
            let (q, k, v) = (queries.linear(&self.q)?, keys.linear(&self.k)?, values.linear(&self.v)?);
            attend(&self.core.shape, &q, &k, &v, absent)?.linear(&self.out)
        };
        run().map_err(ModelError::at(&self.core.name))
    }

    fn clipped(&self, x: Tensor) -> Result<Tensor, ModelError> {
        match self.clip {
            Some(clip) => x.clamp(-clip, clip).map_err(ModelError::at(&self.core.name)),
            None => Ok(x),
        }
    }

    /// Queries or keys after their norm, bounds and turn: `[tokens, heads * head]`.
    fn prepared(&self, x: &Tensor, norm: Option<&Norm>, pass: &Pass<'_>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.core.name);
        let mut x = x.clone();
        if let Some(norm) = norm {
            let dims = x.dims().to_vec();
            let heads = dims[1] / self.core.shape.head;
            x = if self.norms_whole {
                norm.forward(&x)?
            } else {
                let apart = x.reshape(&[dims[0], heads, self.core.shape.head]).map_err(at())?;
                norm.forward(&apart)?.reshape(&dims).map_err(at())?
            };
        }
        x = self.clipped(x)?;
        match self.rope {
            Some(rope) => {
                let (angles, style) = &pass.angles[rope];
                x.rope(angles, self.core.shape.head, *style).map_err(at())
            }
            None => Ok(x),
        }
    }
}

impl Core {
    /// Attends among the tokens of each sequence: `[tokens, heads * head]` and so on to `[tokens, heads * value_head]`.
    ///
    /// # Errors
    ///
    /// When the shape or the state does not fit.
    pub fn forward(
        &self,
        q: &Tensor,
        k: Tensor,
        v: Tensor,
        pass: &Pass<'_>,
        bias: &[Tensor],
        state: Option<&mut LayerState>,
    ) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let held = pass.rows.iter().zip(pass.absent).map(|(row, absent)| (row.past + row.len, absent.as_slice()));
        let held: Vec<Held<'_>> = held.collect();
        match state {
            None => self.attend(q, &[(k, v)], &held, pass, Some(bias)).map_err(at()),
            Some(state) if q.is_recorded() => {
                let kept = state.keep_recorded(pass.rows, &k, &v)?;
                self.attend(q, &kept, &held, pass, Some(bias)).map_err(at())
            }
            Some(state) => {
                state.keep(pass.rows, &k, &v)?;
                self.attend_paged(q, pass, bias, state).map_err(at())
            }
        }
    }

    fn attend_paged(
        &self,
        q: &Tensor,
        pass: &Pass<'_>,
        bias: &[Tensor],
        state: &LayerState,
    ) -> Result<Tensor, TensorError> {
        let biases = bias.iter().map(Tensor::to_vec).collect::<Result<Vec<_>, _>>()?;
        let mut queries = Vec::with_capacity(q.dims()[0]);
        let mut sequences = Vec::with_capacity(pass.rows.len());
        for (sequence, row) in pass.rows.iter().enumerate() {
            let (keys, values) = state.kept(row.slot);
            let length = row.past + row.len;
            sequences.push(KeysValues {
                keys,
                values,
                absent: &pass.absent[sequence],
                bias: biases.get(sequence).map(Vec::as_slice),
                queries: row.len,
                length,
            });
            queries.extend((0..row.len).map(|place| {
                let position = row.past + place;
                let first = self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
                QueryRow { sequence, row: place, first, end: if pass.causal { position + 1 } else { length } }
            }));
        }
        q.attention_paged(&self.shape, &queries, &sequences, self.sinks.as_ref())
    }

    /// Attends to keys and values that are tensors, of each row, or of all rows together: to those of the tokens' own
    /// sequence with its bias, or to those of another.
    fn attend(
        &self,
        q: &Tensor,
        parts: &[(Tensor, Tensor)],
        held: &[Held<'_>],
        pass: &Pass<'_>,
        own: Option<&[Tensor]>,
    ) -> Result<Tensor, TensorError> {
        let of = |which: fn(&(Tensor, Tensor)) -> &Tensor| {
            Tensor::concat(&parts.iter().map(|part| which(part).clone()).collect::<Vec<_>>(), 0)
        };
        let (keys, values) = (of(|part| &part.0)?, of(|part| &part.1)?);
        let (mut segments, mut q_positions, mut k_positions) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (length, absent)) in pass.rows.iter().zip(held) {
            let hidden = |key: usize| absent.get(key).is_some_and(|&absent| absent);
            segments.push(Segment { queries: row.len, keys: *length });
            q_positions.extend((row.past..row.past + row.len).map(|position| position as i64));
            k_positions.extend((0..*length).map(|key| if hidden(key) { -1 } else { key as i64 }));
        }
        let count = [q_positions.len(), k_positions.len()];
        q.attention(
            Op { shape: self.shape, causal: pass.causal && own.is_some(), segments, sinks: false, bias: false },
            &AttentionInputs {
                keys: &keys,
                values: &values,
                query_positions: &Tensor::whole(q.engine(), q_positions, &count[..1])?,
                key_positions: &Tensor::whole(q.engine(), k_positions, &count[1..])?,
                sinks: self.sinks.as_ref(),
                bias: own.unwrap_or(&[]),
            },
        )
    }
}

/// The keys of each row, those that came before too: `[past + len, width]`. k: `[tokens, width]`.
fn all_keys(k: &Tensor, rows: &[Row], state: Option<&LayerState>) -> Result<Vec<Tensor>, ModelError> {
    let mut first = 0;
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        let own = k.narrow(0, first, row.len).map_err(ModelError::at("keys"))?;
        all.push(match state {
            Some(state) if row.past > 0 => {
                Tensor::concat(&[state.past_keys(row, &own)?, own], 0).map_err(ModelError::at("keys"))?
            }
            _ => own,
        });
        first += row.len;
    }
    Ok(all)
}

/// How many keys a sequence has, and which of them no token sees.
type Held<'a> = (usize, &'a [bool]);

/// Where tokens are padding, whole `[tokens, 1]`, and the mean of all values of their sequences, `[tokens, width]`: what a
/// token gives that sees no key, where its scores are made equal instead. v: `[tokens, width]`. None without padding.
fn blind(v: &Tensor, pass: &Pass<'_>) -> Result<Option<(Tensor, Tensor)>, TensorError> {
    if pass.absent.iter().all(|absent| !absent.contains(&true)) {
        return Ok(None);
    }
    let (mut first, mut padding, mut means) = (0, Vec::new(), Vec::new());
    for (row, absent) in pass.rows.iter().zip(pass.absent) {
        let positions = row.past..row.past + row.len;
        padding.extend(positions.map(|position| i64::from(absent.get(position) == Some(&true))));
        means.push(v.narrow(0, first, row.len)?.mean(&[0])?.broadcast(&[row.len, v.dim(1)?])?);
        first += row.len;
    }
    let padding = Tensor::whole(v.engine(), padding, &[first, 1])?;
    Ok(Some((padding, Tensor::concat(&means, 0)?)))
}

/// The rows of queries, keys and values in one matrix: those of one group after the other, or all in one.
fn qkv_rows(spec: &AttentionSpec, interleaved: bool) -> [impl Iterator<Item = usize>; 3] {
    let groups = if interleaved { spec.kv_heads } else { 1 };
    let (heads, kv_heads, head) = (spec.heads / groups, spec.kv_heads / groups, spec.head);
    let part = |first: usize, count: usize| {
        (0..groups).flat_map(move |group| {
            let from = (group * (heads + 2 * kv_heads) + first) * head;
            from..from + count * head
        })
    };
    [part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads)]
}
