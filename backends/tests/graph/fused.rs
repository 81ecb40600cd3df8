//! Cases of fused operations.

use accel_backends::tensor::{
    Activation, Angles, Attention, AttentionInputs, AttentionShape, Convolution, Engine, Experts, Linear, NormKind,
    RopeStyle, Segment,
};
use accel_backends::weights::Dtype;

use super::{Case, Result, case, floats, noise, some, stored, weight, wholes};

pub(super) fn all() -> Vec<Case> {
    let groups = [
        linear,
        norms,
        activations,
        softmax,
        rope,
        attention,
        attention_parts,
        convolutions,
        convolutions_transposed,
        experts,
        together,
    ];
    groups.into_iter().flat_map(|group| group()).collect()
}

fn linear() -> Vec<Case> {
    let layer = |engine: &Engine, seed: u64, n: usize, k: usize, bias: bool| -> Result<Linear> {
        let bias = bias.then(|| weight(engine, seed + 100, &[n])).transpose()?;
        Ok(Linear { weight: weight(engine, seed, &[n, k])?, bias })
    };
    let one = |name: &str, dims: &[usize], n: usize, bias: bool| {
        let k = dims[dims.len() - 1];
        case(format!("linear {name}"), vec![some(dims)], move |x| x[0].linear(&layer(x[0].engine(), 4, n, k, bias)?))
    };
    let of = |dtype: Dtype| {
        case(format!("linear {dtype}"), vec![some(&[3, 64])], move |x| {
            let weight = stored(x[0].engine(), 8, dtype, &[5, 64])?;
            x[0].linear(&Linear { weight, bias: None })
        })
    };
    vec![
        one("plain", &[4, 6], 5, false),
        one("with bias", &[4, 6], 5, true),
        one("of one number", &[1, 1], 1, true),
        one("of a vector", &[6], 3, true),
        one("of a batch", &[2, 1, 3, 7], 4, true),
        one("of a batch without bias", &[2, 3, 7], 1, false),
        of(Dtype::F32),
        of(Dtype::F16),
        of(Dtype::BF16),
        of(Dtype::Q8_0),
        Case {
            name: "three layers of one input".into(),
            inputs: vec![some(&[2, 3, 4])],
            run: Box::new(move |x| {
                let engine = x[0].engine();
                let layers =
                    [layer(engine, 1, 3, 4, true)?, layer(engine, 2, 1, 4, false)?, layer(engine, 3, 5, 4, true)?];
                Ok(x[0].linears([&layers[0], &layers[1], &layers[2]])?.to_vec())
            }),
        },
        case("linear with computed weights", vec![some(&[2, 4]), some(&[3, 4]), some(&[3])], |x| {
            x[0].linear(&Linear { weight: x[1].exp()?, bias: Some(x[2].neg()?) })
        }),
    ]
}

fn norms() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [NormKind::RootMeanSquare, NormKind::Layer] {
        for (weighted, biased) in [(false, false), (true, false), (false, true), (true, true)] {
            let name = format!("{kind:?} norm, weight {weighted}, bias {biased}");
            cases.push(case(name, vec![some(&[2, 3, 10])], move |x| {
                let scale = weight(x[0].engine(), 1, &[10])?;
                let offset = weight(x[0].engine(), 2, &[10])?;
                x[0].norm(kind, weighted.then_some(&scale), biased.then_some(&offset), 1e-5)
            }));
        }
        cases.push(case(format!("{kind:?} norm of a vector"), vec![some(&[33])], move |x| {
            x[0].norm(kind, None, None, 1e-3)
        }));
    }
    for (groups, dims) in [(1, &[2, 4][..]), (2, &[2, 4, 3]), (3, &[1, 6, 3, 2]), (6, &[2, 6, 2, 1, 2])] {
        let channels = dims[1];
        cases.push(case(format!("group norm {groups} {dims:?}"), vec![some(dims)], move |x| {
            x[0].group_norm(groups, None, 1e-2)
        }));
        cases.push(case(format!("group norm {groups} {dims:?} with weights"), vec![some(dims)], move |x| {
            let scale = weight(x[0].engine(), 1, &[channels])?;
            let offset = weight(x[0].engine(), 2, &[channels])?;
            x[0].group_norm(groups, Some((&scale, &offset)), 1e-2)
        }));
    }
    cases
}

/// Every activation.
const ACTIVATIONS: [Activation; 18] = [
    Activation::Identity,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluClipped,
    Activation::GeluTanh,
    Activation::GeluQuick,
    Activation::Relu,
    Activation::Relu2,
    Activation::Relu6,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::HardSigmoid,
    Activation::HardSwish,
    Activation::Laplace,
    Activation::Softplus,
    Activation::Mish,
    Activation::Elu,
    Activation::LeakyRelu { hundredths: 20 },
];

fn activations() -> Vec<Case> {
    let line = [-30.0, -5.0, -3.0, -1.5, -0.5, -1e-3, 0.0, 1e-3, 0.25, 1.0, 2.9, 3.1, 6.5, 30.0];
    let mut cases = Vec::new();
    for activation in ACTIVATIONS {
        cases.push(case(format!("{activation:?}"), vec![floats(&[2, 7], &line)], move |x| x[0].activate(activation)));
        let inputs = vec![floats(&[2, 7], &line), some(&[2, 7])];
        cases.push(case(format!("gated {activation:?}"), inputs, move |x| x[0].gated(activation, &x[1])));
    }
    cases
}

fn softmax() -> Vec<Case> {
    let mut cases: Vec<Case> = [0, 1, -1]
        .into_iter()
        .map(|axis| case(format!("softmax {axis}"), vec![some(&[2, 3, 4])], move |x| x[0].softmax(axis)))
        .collect();
    let far = floats(&[2, 3], &[1e4, -1e30, 0.0, 5.0, 5.0, 5.0]);
    cases.push(case("softmax far apart", vec![far], |x| x[0].softmax(1)));
    cases
}

fn rope() -> Vec<Case> {
    let mut cases = Vec::new();
    for style in [RopeStyle::Halves, RopeStyle::Pairs] {
        for (tokens, heads, head, half) in [(3, 2, 8, 4), (1, 1, 2, 1), (2, 3, 10, 3)] {
            let inputs = vec![
                some(&[tokens, heads * head]),
                some(&[tokens, half]),
                floats(&[tokens, half], &noise(5, tokens * half)),
            ];
            cases.push(case(format!("rope {style:?} {half} of {head}"), inputs, move |x| {
                x[0].rope(&Angles { cos: x[1].clone(), sin: x[2].clone() }, head, style)
            }));
        }
    }
    cases
}

/// What an attention is like; the rest follows.
struct Attended {
    name: &'static str,
    shape: AttentionShape,
    causal: bool,
    segments: Vec<Segment>,
    query_positions: Vec<i64>,
    key_positions: Vec<i64>,
    sinks: bool,
    /// Heads of the bias.
    bias: Option<usize>,
}

impl Attended {
    fn new(name: &'static str, query_positions: &[i64], key_positions: &[i64]) -> Self {
        let shape =
            AttentionShape { heads: 4, kv_heads: 2, head: 3, value_head: 5, scale: 0.7, softcap: None, window: None };
        Self {
            name,
            shape,
            causal: true,
            segments: vec![Segment { queries: query_positions.len(), keys: key_positions.len() }],
            query_positions: query_positions.to_vec(),
            key_positions: key_positions.to_vec(),
            sinks: false,
            bias: None,
        }
    }

    fn case(self) -> Case {
        let (queries, keys) = (self.query_positions.len(), self.key_positions.len());
        let AttentionShape { heads, kv_heads, head, value_head, .. } = self.shape;
        let mut inputs = vec![
            some(&[queries, heads * head]),
            some(&[keys, kv_heads * head]),
            some(&[keys, kv_heads * value_head]),
            wholes(&[queries], &self.query_positions),
            wholes(&[keys], &self.key_positions),
        ];
        if self.sinks {
            inputs.push(some(&[heads]));
        }
        if let Some(heads) = self.bias {
            inputs.extend(self.segments.iter().map(|segment| some(&[heads, segment.queries, segment.keys])));
        }
        let (shape, causal, segments, sinks) = (self.shape, self.causal, self.segments, self.sinks);
        case(format!("attention {}", self.name), inputs, move |x| {
            let to = AttentionInputs {
                keys: &x[1],
                values: &x[2],
                query_positions: &x[3],
                key_positions: &x[4],
                sinks: sinks.then(|| &x[5]),
                bias: &x[5 + usize::from(sinks)..],
            };
            let segments = segments.clone();
            x[0].attention(Attention { shape, causal, segments, sinks: false, bias: false }, &to)
        })
    }
}

fn attention() -> Vec<Case> {
    let plain = |name| Attended::new(name, &[1, 2, 3], &[0, 1, 2, 3]);
    let sized = |name, heads, kv_heads, window, softcap| {
        let attended = plain(name);
        Attended { shape: AttentionShape { heads, kv_heads, window, softcap, ..attended.shape }, ..attended }
    };
    vec![
        plain("causal").case(),
        Attended { causal: false, ..plain("of all") }.case(),
        sized("of one head", 1, 1, None, None).case(),
        sized("of equal heads", 3, 3, None, None).case(),
        sized("of one group", 6, 1, None, None).case(),
        sized("in a window", 4, 2, Some(2), None).case(),
        sized("to itself", 4, 2, Some(1), None).case(),
        Attended { causal: false, ..sized("in a window of both sides", 4, 2, Some(2), None) }.case(),
        sized("softly capped", 4, 2, None, Some(0.4)).case(),
        Attended { sinks: true, ..plain("with sinks") }.case(),
        Attended { bias: Some(4), ..plain("with a bias") }.case(),
        Attended { bias: Some(1), ..plain("with a bias for all heads") }.case(),
        Attended { bias: Some(4), sinks: true, causal: false, ..sized("with all of it", 4, 2, Some(3), Some(0.9)) }
            .case(),
        Attended::new("of one", &[0], &[0]).case(),
        Attended::new("of no query", &[], &[0, 1]).case(),
        Attended::new("over many keys", &[150, 151], &(0..152).collect::<Vec<_>>()).case(),
    ]
}

fn attention_parts() -> Vec<Case> {
    let segments = |lengths: &[(usize, usize)]| {
        lengths.iter().map(|&(queries, keys)| Segment { queries, keys }).collect::<Vec<_>>()
    };
    let two =
        |name| Attended { segments: segments(&[(2, 3), (1, 2)]), ..Attended::new(name, &[1, 2, 1], &[0, 1, 2, 0, 1]) };
    let windowed = |attended: Attended| {
        let shape = AttentionShape { window: Some(2), ..attended.shape };
        Attended { shape, ..attended }
    };
    vec![
        two("of two sequences").case(),
        Attended { causal: false, ..two("of two sequences to all") }.case(),
        Attended { bias: Some(4), sinks: true, ..two("of two sequences with a bias and sinks") }.case(),
        Attended { bias: Some(1), ..windowed(two("of two sequences in a window")) }.case(),
        Attended {
            segments: segments(&[(2, 0), (1, 2)]),
            ..Attended::new("of a sequence without keys", &[0, 1, 1], &[0, 1])
        }
        .case(),
        Attended::new("with absent keys", &[2, 4], &[-1, 1, -1, 3, 4]).case(),
        Attended { causal: false, ..Attended::new("of all with absent keys", &[2, 4], &[-1, 1, 2, -1]) }.case(),
        Attended::new("of a query that sees nothing", &[0, 2], &[-1, -1, 2]).case(),
        Attended { sinks: true, ..Attended::new("of a query that sees a sink only", &[0, 2], &[-1, -1, 2]) }.case(),
        Attended { causal: false, ..Attended::new("to absent keys only", &[0, 1], &[-1, -1, -1]) }.case(),
        Attended::new("of keys in another order", &[3, 1], &[2, 0, 3, 1]).case(),
        windowed(Attended::new("of keys in another order in a window", &[3, 1], &[2, 0, 3, 1])).case(),
        Attended { causal: false, ..Attended::new("of all keys in any order", &[3, 1], &[7, 0, -1, 7]) }.case(),
        Attended::new("of keys from a later position", &[12, 13], &[10, 11, 12, 13]).case(),
        Attended::new("of queries in another order", &[3, 0, 2], &[0, 1, 2, 3]).case(),
        Attended::new("of an absent query", &[-1, 1], &[0, 1]).case(),
        Attended { causal: false, ..windowed(Attended::new("of an absent query in a window", &[-1, 1], &[0, 1, 2])) }
            .case(),
    ]
}

/// A convolution of noise by noise.
fn convolved(name: &str, conv: Convolution, x: &[usize], weights: &[usize], transposed: bool) -> Case {
    let weights = weights.to_vec();
    case(format!("convolution {name}"), vec![some(x)], move |x| {
        let engine = x[0].engine();
        let outputs = if transposed { weights[1] * conv.groups } else { weights[0] };
        let bias = conv.bias.then(|| weight(engine, 6, &[outputs])).transpose()?;
        let layer = Linear { weight: weight(engine, 5, &weights)?, bias };
        if transposed { x[0].convolution_transposed(&conv, &layer) } else { x[0].convolution(&conv, &layer) }
    })
}

fn uneven() -> Convolution {
    Convolution {
        stride: vec![1, 2, 3],
        padding: vec![(0, 1), (2, 0), (1, 2)],
        dilation: vec![2, 1, 2],
        groups: 2,
        bias: true,
    }
}

fn convolutions() -> Vec<Case> {
    let biased = |conv: Convolution| Convolution { bias: true, ..conv };
    let [one, two, three] = [1, 2, 3].map(Convolution::new);
    let causal = Convolution { padding: vec![(3, 0)], ..one.clone() };
    let conv = |name, conv, x: &[usize], weight: &[usize]| convolved(name, conv, x, weight, false);
    vec![
        conv("1-D", one.clone(), &[2, 3, 7], &[4, 3, 3]),
        conv("1-D with bias", biased(one.clone().stride(2).padding(1)), &[1, 3, 8], &[2, 3, 3]),
        conv("1-D causal by channels", causal.groups(4), &[2, 4, 5], &[4, 1, 4]),
        conv("1-D of one place", one.dilation(3), &[1, 1, 4], &[1, 1, 2]),
        conv("2-D", two.clone(), &[2, 3, 5, 6], &[4, 3, 3, 2]),
        conv("2-D patches", biased(two.clone().stride(2)), &[1, 3, 4, 6], &[5, 3, 2, 2]),
        conv("2-D of a point", two.clone(), &[2, 3, 2, 2], &[4, 3, 1, 1]),
        conv("2-D in groups", two.groups(3).padding(1).dilation(2), &[1, 6, 5, 5], &[3, 2, 3, 3]),
        conv("3-D", three.clone(), &[1, 2, 3, 4, 5], &[3, 2, 2, 3, 2]),
        conv("3-D padded", biased(three.padding(1)), &[2, 1, 2, 3, 2], &[2, 1, 3, 3, 3]),
        conv("3-D uneven", uneven(), &[2, 4, 5, 4, 6], &[6, 2, 2, 3, 2]),
    ]
}

fn convolutions_transposed() -> Vec<Case> {
    let biased = |conv: Convolution| Convolution { bias: true, ..conv };
    let [one, two, three] = [1, 2, 3].map(Convolution::new);
    let conv = |name, conv, x: &[usize], weight: &[usize]| convolved(name, conv, x, weight, true);
    vec![
        conv("transposed 1-D", one.clone(), &[2, 3, 4], &[3, 2, 3]),
        conv("transposed 1-D wide", biased(one.clone().stride(4)), &[1, 2, 3], &[2, 3, 2]),
        conv("transposed 1-D cut", Convolution { padding: vec![(1, 2)], ..one.stride(2) }, &[1, 2, 5], &[2, 1, 4]),
        conv("transposed 2-D", biased(two.clone().stride(2).padding(1)), &[2, 4, 3, 3], &[4, 2, 4, 4]),
        conv("transposed 2-D in groups", two.groups(2).dilation(2), &[1, 4, 3, 2], &[4, 3, 2, 3]),
        conv("transposed 3-D", three, &[1, 2, 2, 1, 3], &[2, 2, 2, 2, 2]),
        conv("transposed 3-D uneven", uneven(), &[2, 4, 3, 4, 3], &[4, 3, 2, 3, 2]),
    ]
}

fn experts() -> Vec<Case> {
    let mut cases = Vec::new();
    let kinds = [(true, false), (true, true), (false, false), (false, true)].map(|(gated, bias)| (gated, bias, None));
    for (gated, bias, limit) in kinds.into_iter().chain([(true, true, Some(0.25))]) {
        let experts = Experts { count: 3, activation: Activation::Silu, gated, bias, limit };
        // The one in the middle is not chosen.
        let inputs = vec![some(&[4, 6]), wholes(&[4, 2], &[0, 2, 2, 0, 2, 2, 0, 0])];
        cases.push(case(format!("experts, gated {gated}, bias {bias}, limit {limit:?}"), inputs, move |x| {
            let engine = x[0].engine();
            let mut weights = Vec::new();
            for expert in 0..3 {
                let sizes = if gated { &[(5, 6), (5, 6), (6, 5)][..] } else { &[(5, 6), (6, 5)] };
                for (layer, &(n, k)) in sizes.iter().enumerate() {
                    let seed = 10 * expert + layer as u64;
                    weights.push(weight(engine, seed, &[n, k])?);
                    if bias {
                        weights.push(weight(engine, seed + 5, &[n])?);
                    }
                }
            }
            x[0].experts(experts, &x[1], &weights)
        }));
    }
    cases
}

/// Several operations, as a model would use them.
fn together() -> Vec<Case> {
    vec![case("a router and its experts' weights", vec![some(&[3, 8])], |x| {
        let gate = Linear { weight: stored(x[0].engine(), 2, Dtype::F16, &[6, 8])?, bias: None };
        let scores = x[0].rms_norm(None, 1e-6)?.linear(&gate)?.softmax(-1)?;
        let (_, places) = scores.top_k(2)?;
        let chosen = scores.take_along(1, &places)?;
        chosen.div(&chosen.sum(&[-1])?)
    })]
}
