//! Fetches one file again and again, by nodes of ours, by Kubo and over a bare stream in turn, and compares:
//! `fetch --model FILE [--rounds N] [--json]`. What exactly is timed stands in `accel_tests::fetch`.

use std::ffi::OsString;
use std::path::PathBuf;

use accel_tests::fetch::{Fetches, KuboCut, Sample};
use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;

/// Fetch one file into empty stores on loopback: by a node of ours, by Kubo, and over a bare stream.
#[derive(Debug, Parser)]
struct Arguments {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Times that each of them fetches, in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Python with the packages of tests/requirements.txt, as tests/run installs it into its cache
    #[arg(long, env = "ACCEL_TEST_PYTHON")]
    python: OsString,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// The middle of several values, and how far they lie apart.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&least, &most) = values.first().zip(values.last())?;
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Some(Self { median, least, most })
    }
}

/// All samples of one way to fetch.
#[derive(Debug, Serialize)]
struct Way {
    name: &'static str,
    megabytes_per_second: Spread,
    /// Its time as a multiple of the time of the first way in the same round.
    time_ratio: Spread,
    /// Of the fetcher and of a provider, in the round that took most.
    peak_bytes: Option<[u64; 2]>,
}

#[derive(Debug, Serialize)]
struct Report {
    bytes: u64,
    rounds: usize,
    /// Processes that wanted to run, over the last minute, before the first round and after the last: this program's
    /// own are among the latter.
    load: [f64; 2],
    ways: Vec<Way>,
    /// The larger share when there are two providers, in parts of one.
    larger_share: Spread,
    duplicate_blocks: u64,
}

const WAYS: [&str; 6] = [
    "accel",
    "accel, two providers",
    "accel from Kubo",
    "Kubo, blocks of its own",
    "Kubo, blocks of accel",
    "libp2p stream",
];
const TWO_PROVIDERS: usize = 1;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let report = measure(&arguments).await?;
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

async fn measure(arguments: &Arguments) -> Result<Report> {
    let before = load()?;
    let fetches = Fetches::prepare(arguments.model.clone(), arguments.python.clone()).await?;
    let mut rounds: Vec<[Sample; WAYS.len()]> = Vec::new();
    for _ in 0..arguments.rounds {
        rounds.push([
            fetches.ours(1).await?,
            fetches.ours(2).await?,
            fetches.ours_from_kubo().await?,
            fetches.kubo(KuboCut::Own).await?,
            fetches.kubo(KuboCut::Ours).await?,
            fetches.stream().await?,
        ]);
    }
    let load = [before, load()?];
    let bytes = fetches.bytes();

    let seconds = |round: &[Sample; WAYS.len()], way: usize| round[way].took.as_secs_f64();
    let way = |(way, name)| {
        Some(Way {
            name,
            megabytes_per_second: Spread::of(rounds.iter().map(|round| bytes as f64 / 1e6 / seconds(round, way)))?,
            time_ratio: Spread::of(rounds.iter().map(|round| seconds(round, way) / seconds(round, 0)))?,
            peak_bytes: rounds.iter().filter_map(|round| round[way].peak_bytes).max(),
        })
    };
    let larger_share = |round: &[Sample; WAYS.len()]| {
        let shares = &round[TWO_PROVIDERS].shares;
        Some(*shares.iter().max()? as f64 / shares.iter().sum::<u64>() as f64)
    };
    Ok(Report {
        bytes,
        rounds: rounds.len(),
        load,
        ways: WAYS.into_iter().enumerate().map(way).collect::<Option<_>>().context("no round")?,
        larger_share: Spread::of(rounds.iter().filter_map(larger_share)).context("no round")?,
        duplicate_blocks: rounds.iter().flatten().map(|sample| sample.duplicate_blocks).sum(),
    })
}

fn print(report: &Report) {
    let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    println!("{} fetched in {} rounds: median (least to most)", megabytes(report.bytes), report.rounds);
    println!("load before {:.1}, after {:.1}", report.load[0], report.load[1]);
    println!();
    println!("{:25} {:22} {:26} peak memory: fetcher, provider", "", "MB/s", "time, accel's being 1");
    for Way { name, megabytes_per_second: rate, time_ratio: ratio, peak_bytes } in &report.ways {
        let rate = format!("{:.0} ({:.0} to {:.0})", rate.median, rate.least, rate.most);
        let ratio = format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.least, ratio.most);
        let peak = peak_bytes.map(|peak| peak.map(megabytes).join(", ")).unwrap_or_default();
        println!("{name:25} {rate:22} {ratio:26} {peak}");
    }
    println!();
    println!("Kubo's memory is with the Python that it runs in.");
    let share = report.larger_share;
    println!(
        "two providers: the larger share {:.0} % ({:.0} to {:.0}), {} duplicate blocks in all rounds",
        share.median * 100.0,
        share.least * 100.0,
        share.most * 100.0,
        report.duplicate_blocks
    );
}

/// The load average of the last minute.
fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().context("/proc/loadavg is empty")?.parse()?)
}
