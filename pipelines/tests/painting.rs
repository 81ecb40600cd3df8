//! Noise against torch, and samplers against Diffusers 0.39's schedulers, asked about a network that tells
//! `0.3 * shown - 0.2 + moment / 2000`.

#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]

use accel_models::config::Config;
use accel_pipelines::painting::noise::normal;
use accel_pipelines::painting::sampler::{Flow, Overrides, Run, Sampler};
use serde::Deserialize;

/// What `set_timesteps(steps)` and then `step` at each moment gave for a sample of four numbers.
#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    steps: usize,
    /// Tokens of the image, where they count.
    #[serde(default)]
    tokens: usize,
    moments: Vec<f64>,
    noise: f32,
    middle: Vec<f32>,
    last: Vec<f32>,
}

fn sampler(config: &serde_json::Value, overrides: Overrides) -> Result<Sampler, String> {
    let config = Config::parse("scheduler_config.json", config.to_string().as_bytes()).unwrap();
    Sampler::read(&config, overrides).map_err(|error| error.to_string())
}

fn flow(config: &serde_json::Value) -> Result<Flow, String> {
    let config = Config::parse("scheduler_config.json", config.to_string().as_bytes()).unwrap();
    Flow::read(&config).map_err(|error| error.to_string())
}

fn near(found: &[f32], expected: &[f32], of: &str) {
    assert_eq!(found.len(), expected.len(), "{of}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 2e-5 * expected.abs().max(1.0), "{of}: {found} and {expected}");
    }
}

fn goes_as(case: &Case, mut run: Run) {
    let of = format!("{} in {} steps", case.config, case.steps);
    assert_eq!(run.moments.len(), case.moments.len(), "{of}");
    for (found, expected) in run.moments.iter().zip(&case.moments) {
        assert!((found - expected).abs() <= 1e-6 * expected, "{of}: {found} and {expected}");
    }
    near(&[run.noise], &[case.noise], &of);
    let mut sample: Vec<f32> = [1.5, -0.25, 0.0, 2.0].iter().map(|value| value * run.noise).collect();
    for at in 0..run.moments.len() {
        let moment = run.moments[at] as f32;
        let shown = run.shown(at, &sample);
        let told: Vec<f32> = shown.iter().map(|shown| shown * 0.3 - 0.2 + moment / 2000.0).collect();
        sample = run.step(at, &told, &sample).unwrap();
        if at == run.moments.len() / 2 {
            near(&sample, &case.middle, &format!("{of}, in the middle"));
        }
    }
    near(&sample, &case.last, &of);
}

#[test]
fn samplers_go_as_the_schedulers_of_diffusers() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("painting/samplers.json")).unwrap();
    for case in cases {
        goes_as(&case, sampler(&case.config, Overrides::default()).unwrap().begin(case.steps).unwrap());
    }
}

#[test]
fn flows_go_as_the_scheduler_of_diffusers() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("painting/flows.json")).unwrap();
    for case in cases {
        goes_as(&case, flow(&case.config).unwrap().begin(case.steps, case.tokens).unwrap());
    }
    let of = |key: &str, value: serde_json::Value| serde_json::json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", key: value });
    for (config, words) in [
        (of("shift_terminal", 0.02.into()), "shift_terminal"),
        (of("stochastic_sampling", true.into()), "stochastic_sampling"),
        (of("use_karras_sigmas", true.into()), "use_karras_sigmas"),
        (serde_json::json!({ "_class_name": "DDIMScheduler" }), "supported: FlowMatchEulerDiscreteScheduler"),
    ] {
        let found = flow(&config).unwrap_err();
        assert!(found.contains(words), "{config}: {found}");
    }
}

#[test]
fn what_a_sampler_does_not_know_is_named() {
    let euler = |key: &str, value: serde_json::Value| serde_json::json!({ "_class_name": "EulerDiscreteScheduler", key: value });
    for (config, words) in [
        (serde_json::json!({ "_class_name": "UniPCMultistepScheduler" }), "scheduler_config.json: _class_name"),
        (euler("use_karras_sigmas", true.into()), "use_karras_sigmas \"true\" is not supported"),
        (euler("prediction_type", "flow".into()), "prediction_type \"flow\""),
        (euler("timestep_spacing", "even".into()), "linspace, leading, trailing"),
        (euler("beta_schedule", "sigmoid".into()), "beta_schedule \"sigmoid\""),
        (euler("num_train_timesteps", 1.into()), "2 to 65536"),
        (euler("beta_end", 1.5.into()), "numbers from 0 to below 1"),
        (euler("trained_betas", serde_json::json!([0.1])), "1000 numbers"),
        (euler("steps_offset", (-1).into()), "steps_offset"),
        (serde_json::json!({ "_class_name": "DDIMScheduler", "thresholding": true }), "thresholding"),
        (serde_json::json!({}), "_class_name"),
    ] {
        let found = sampler(&config, Overrides::default()).unwrap_err();
        assert!(found.contains(words), "{config}: {found}");
    }
}

#[test]
fn steps_that_a_sampler_cannot_do_are_refused() {
    let refused = |config: serde_json::Value, overrides, steps: usize, words: &str| {
        let sampler = sampler(&config, overrides).unwrap();
        let mut run = match sampler.begin(steps) {
            Ok(run) => run,
            Err(error) => {
                assert!(error.to_string().contains(words), "{config}: {error}");
                return;
            }
        };
        let failed = (0..run.moments.len()).find_map(|at| run.step(at, &[0.0], &[0.0]).err()).unwrap();
        assert!(failed.to_string().contains(words), "{config}: {failed}");
    };
    let of = |class: &str| serde_json::json!({ "_class_name": class, "num_train_timesteps": 20 });
    let plain = Overrides::default();
    refused(of("DDIMScheduler"), plain, 21, "expected 1 to 20");
    refused(of("EulerDiscreteScheduler"), plain, 0, "expected 1 to 20");
    refused(of("PNDMScheduler"), plain, 3, "expected at least 4");
    // The last moments are behind those of training.
    let later = Overrides { offset: Some(1), unclipped: true };
    refused(of("DDIMScheduler"), later, 20, "moment 20 is outside the 20 of training");
}

/// Of each count and seed, the numbers of `torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed))`.
const TORCH: &[(usize, u64, &[f32])] = &[
    (1, 0, &[1.5409961]),
    (3, 5, &[-0.48678076, -0.6038216, -0.55809623]),
    (
        15,
        7,
        &[
            -0.1467951,
            0.7861413,
            0.94682163,
            -1.114344,
            1.6907902,
            -0.8948279,
            -0.35562503,
            1.2323858,
            0.13817266,
            -1.6821985,
            0.3176783,
            0.13280697,
            0.1373241,
            0.24054612,
            1.3954508,
        ],
    ),
    (
        16,
        0,
        &[
            -1.1258398,
            -1.1523602,
            -0.25057858,
            -0.4338788,
            0.84871036,
            0.69200915,
            -0.31601277,
            -2.1152194,
            0.32227492,
            -1.2633348,
            0.3499832,
            0.30813393,
            0.11984151,
            1.2376579,
            1.1167772,
            -0.24727815,
        ],
    ),
    (
        17,
        1,
        &[
            -1.5255959,
            -1.1607615,
            0.6995424,
            0.19908163,
            0.8656924,
            0.2444039,
            -0.66291136,
            0.80730826,
            0.43914157,
            -0.17593604,
            -2.2455578,
            -1.446458,
            0.061155282,
            -0.61774445,
            -0.79806983,
            -0.13162321,
            -0.7984398,
        ],
    ),
    (
        40,
        4294967295,
        &[
            -2.6642976,
            -1.0910486,
            0.45144743,
            0.2283607,
            1.8986179,
            1.5642089,
            -1.2553997,
            0.79364425,
            -1.7514946,
            -0.7096747,
            1.2182662,
            0.22224647,
            -2.5158842,
            0.48375222,
            0.84178656,
            0.14090961,
            1.7933999,
            -0.8765852,
            -1.6460391,
            -0.53825855,
            0.30621922,
            0.424003,
            0.26563615,
            -3.1492953,
            0.7631783,
            2.1631944,
            -0.031713344,
            0.9533272,
            0.8876298,
            1.1898968,
            1.361045,
            1.3450472,
            0.04037104,
            -0.53238285,
            -0.49406457,
            0.9654393,
            -0.119139455,
            -1.1350902,
            -0.216694,
            0.18211144,
        ],
    ),
    (
        20,
        4294967305,
        &[
            -1.0673947,
            -0.71724534,
            1.0897193,
            -1.5746837,
            1.5158795,
            -1.5260853,
            -1.540931,
            -0.7916086,
            0.83765465,
            0.16024822,
            -0.3353947,
            -1.4567648,
            -0.27446428,
            -1.0569112,
            -1.5705366,
            -1.4153382,
            -0.69453263,
            -0.35321236,
            -2.2200427,
            0.9683226,
        ],
    ),
];

/// Of 1300 numbers of seed 42, every hundredth from the 50th on.
const MANY: &[f32] = &[
    0.07802387,
    -0.73280275,
    0.8539193,
    -0.5730168,
    -1.0020297,
    -0.16782393,
    -1.3610971,
    -1.2370758,
    1.480104,
    0.5691828,
    -0.108750276,
    0.64497554,
    -0.76913303,
];

#[test]
fn a_seed_gives_the_numbers_of_torch() {
    let near = |found: &[f32], expected: &[f32], of: &str| {
        assert_eq!(found.len(), expected.len(), "{of}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 2e-6 * expected.abs().max(1.0), "{of}: {found} and {expected}");
        }
    };
    for &(count, seed, expected) in TORCH {
        near(&normal(count, seed), expected, &format!("{count} of {seed}"));
    }
    let many = normal(1300, 42);
    near(&many.iter().copied().skip(50).step_by(100).collect::<Vec<_>>(), MANY, "many");
    assert!(normal(0, 0).is_empty());
}
