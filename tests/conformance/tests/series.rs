//! How series go on, against what the classes of transformers answered, each with a small model.

use accel_conformance::asking::{answer, expect_all, expect_refusal, job, load, unbounded};
use accel_conformance::task::compare;
use accel_protocol::{ErrorCode, Input, JobSpec};
use anyhow::{Result, bail, ensure};

#[test]
fn series_go_on_as_the_model_tells() -> Result<()> {
    expect_all("time-series")?;
    expect_all("time-series-mixer")?;
    Ok(())
}

#[test]
fn series_that_are_told_by_distributions_go_on_by_their_means() -> Result<()> {
    expect_all("time-series-student")?;
    expect_all("time-series-counts")?;
    expect_all("time-series-mixer-normal")?;
    expect_all("time-series-mixer-counts")?;
    Ok(())
}

/// A series of another length or width, or of what is no number, is refused with its place.
#[test]
fn wrong_series_are_refused() -> Result<()> {
    let (case, mut pipeline) = load("time-series", &unbounded())?;
    let Some(question) = case.questions.first() else { bail!("no question") };
    let Input::Series(right) = &question.input else { bail!("no series") };
    let spec = job(case.task, question);
    let mut refused = |series: Vec<Vec<f32>>, words: &str| {
        let found = answer(&mut *pipeline, &JobSpec { input: Input::Series(series), ..spec.clone() });
        expect_refusal(found, ErrorCode::InvalidRequest, words)
    };
    let expected = "expected 24 times of 3 channels, as the model was made for, found";
    refused(right[1..].to_vec(), &format!("{expected} 23 times of 3 channels"))?;
    refused([right.as_slice(), right].concat(), &format!("{expected} 48 times"))?;
    refused(vec![vec![1.0; 4]; 24], &format!("{expected} 24 times of 4 channels"))?;
    let mut ragged = right.clone();
    ragged[5].pop();
    refused(ragged, expected)?;
    refused(Vec::new(), &format!("{expected} 0 times"))?;
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut series = right.clone();
        series[4][2] = value;
        refused(series, &format!("found {name} at time 4 in channel 2"))?;
    }
    let mut large = right.clone();
    large[3][0] = -3e38;
    refused(large, "found 3e38, which overflows")?;
    refused(Vec::from([Vec::new()]), expected)?;
    let text = JobSpec { input: Input::Text("series.csv".to_owned()), ..spec.clone() };
    let Err(error) = answer(&mut *pipeline, &text) else { bail!("a text was taken") };
    ensure!(error.message.contains("expected a series of numbers for time-series-forecasting"), "{error:?}");
    // The next job is answered as ever.
    compare(&answer(&mut *pipeline, &spec)?.results, &question.expected)
}
