//! Runs reference cases and compares: `conformance --cases DIR [--types a,b] [--write DIR] [--json]`. What a case is
//! stands in [`crate`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::case::Case;
use crate::runtime::Runtime;
use crate::{Report, Runner, Use, Verdict, run};
use accel_models::arch;
use anyhow::{Context, Result, ensure};
use clap::Parser;

/// Run reference cases of models and compare with what Hugging Face's libraries answered.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory of cases, each a directory with case.json
    #[arg(long)]
    cases: PathBuf,
    /// Only these model types
    #[arg(long, value_delimiter = ',')]
    types: Vec<String>,
    /// How to use the definitions of models
    #[arg(long = "use", value_enum, default_value = "eager")]
    how: Use,
    /// The library of ONNX Runtime, libonnxruntime.so, for --use onnx
    #[arg(long, env = "ACCEL_TEST_ORT", required_if_eq("how", "onnx"))]
    ort: Option<PathBuf>,
    /// Directory to write exported models to, as CASE.onnx, for --use onnx
    #[arg(long)]
    export: Option<PathBuf>,
    /// Directory to write the answers to, as CASE/out.safetensors
    #[arg(long)]
    write: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// The program.
///
/// # Errors
///
/// When a case cannot be read.
pub fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut directories = std::fs::read_dir(&arguments.cases)
        .with_context(|| arguments.cases.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    directories.retain(|directory| directory.join("case.json").is_file());
    directories.sort();
    let runtime = match (arguments.how, &arguments.ort) {
        (Use::Onnx, Some(library)) => Some(Runtime::load(library)?),
        _ => None,
    };
    let runner = Runner {
        how: arguments.how,
        write: arguments.write.as_deref(),
        runtime: runtime.as_ref(),
        export: arguments.export.as_deref(),
    };
    let mut reports = Vec::new();
    for directory in directories {
        let case = Case::read(&directory)?;
        if arguments.types.is_empty() || arguments.types.contains(&case.model_type) {
            let report = run(&case, &runner)?;
            if !arguments.json {
                print(&report);
            }
            reports.push(report);
        }
    }
    ensure!(!reports.is_empty(), "{}: no cases of these types", arguments.cases.display());
    let (mut totals, mut architectures) = (Totals::new(), Totals::new());
    for report in &reports {
        totals.entry(&report.model_type).or_default()[column(&report.verdict)] += 1;
        architectures.entry(architecture(&report.model_type)).or_default()[column(&report.verdict)] += 1;
    }
    let sum = |column: usize| totals.values().map(|counts| counts[column]).sum::<usize>();
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({ "cases": reports, "columns": COLUMNS, "types": totals, "architectures": architectures })
        );
    } else {
        let all = Totals::from([("all", [sum(0), sum(1), sum(2), sum(3)])]);
        for (of, totals) in [("model type", &totals), ("architecture", &architectures), ("", &all)] {
            println!("\n{of:40} {:>6} {:>6} {:>12} {:>16}", COLUMNS[0], COLUMNS[1], COLUMNS[2], COLUMNS[3]);
            for (name, [pass, fail, unsupported, wrong]) in totals {
                println!("{name:40} {pass:>6} {fail:>6} {unsupported:>12} {wrong:>16}");
            }
        }
    }
    Ok(if sum(1) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many cases came to which verdict.
type Totals<'a> = BTreeMap<&'a str, [usize; 4]>;

/// The kind of model that a type is.
fn architecture(model_type: &str) -> &'static str {
    let found = arch::ALL.iter().find(|arch| arch.hugging_face.model_type == model_type);
    found.map_or("not supported", |arch| arch.architecture.name())
}

const COLUMNS: [&str; 4] = ["pass", "fail", "unsupported", "wrong reference"];

fn column(verdict: &Verdict) -> usize {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Fail(_) => 1,
        Verdict::Unsupported(_) => 2,
        Verdict::WrongReference(_) => 3,
    }
}

fn print(report: &Report) {
    let case = &report.case;
    match &report.verdict {
        Verdict::Pass => println!("pass         {case}: worst error {:.4} of its bound", report.worst),
        Verdict::Fail(why) => println!("FAIL         {case}: worst error {:.4} of its bound: {why}", report.worst),
        Verdict::WrongReference(why) => println!("reference    {case}: is wrong itself: {why}"),
        Verdict::Unsupported(why) => println!("unsupported  {case}: {why}"),
    }
}
