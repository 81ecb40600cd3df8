//! Which experts of a mixture were chosen: counted where the model works, kept over runs, and shown.

use std::path::PathBuf;
use std::process::Stdio;

use accel_conformance::asking::{case, load, unbounded};
use accel_conformance::task::TaskCase;
use accel_models::usage::LayerUsage;
use accel_node::api::{JobBody, PlanBody, Split};
use accel_node::process::{NodeProcess, Settings};
use accel_pipelines::StepPlan;
use accel_protocol::{Generation, Input, JobEvent, JobId, JobSpec, ModelRef, Task, TaskOptions};
use accel_tests::cluster::{Cluster, events, eventually, import, installed};
use accel_tests::command::{CommandLine, ran};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const MIXTURE: &str = "text-generation-experts";
const DENSE: &str = "text-generation";
/// Experts of a layer of that mixture, and how many are chosen.
const EXPERTS: usize = 8;
const CHOSEN: u64 = 2;
const PROMPTS: [&str; 2] =
    ["The capital of France is Paris.", "In London, people drink tea; in Lisbon they drink coffee."];

/// Tokens are chosen without a draw, and so many that none ends the answer.
fn generation(tokens: u32) -> Generation {
    Generation { max_tokens: tokens, ignore_eos: true, ..Generation::default() }
}

/// Writes the model of a task case.
fn written(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let directory = cluster.directory(&format!("{name}-model"))?;
    case(name)?.write_model(&directory)?;
    Ok(directory)
}

/// Runs a job on a node; answers the tokens that each layer has read for it.
async fn run(node: &NodeProcess, model: &ModelRef, prompt: &str, tokens: u32) -> Result<u64> {
    let body = JobBody {
        id: None,
        model: model.clone(),
        task: Task::TextGeneration,
        input: Input::Text(prompt.to_owned()),
        generation: generation(tokens),
        options: TaskOptions::default(),
        deadline_ms: 60_000,
        peer: None,
    };
    let told = events(node.api(), &body).await?;
    let Some(JobEvent::Done { usage, .. }) = told.last() else { anyhow::bail!("{told:?}") };
    ensure!(usage.completion_tokens == tokens, "{usage:?}");
    // Nothing is read after the last token.
    Ok(u64::from(usage.prompt_tokens + usage.completion_tokens - 1))
}

/// What one process, which has the model to itself, counts for the same jobs.
fn counted_in_one_process(prompts: &[(&str, u32)]) -> Result<Vec<LayerUsage>> {
    let (TaskCase { task, .. }, mut pipeline) = load(MIXTURE, &unbounded())?;
    for &(prompt, tokens) in prompts {
        let spec = JobSpec {
            id: JobId([7; 16]),
            model: "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse()?,
            task,
            input: Input::Text(prompt.to_owned()),
            generation: generation(tokens),
            options: TaskOptions::default(),
            prior: Vec::new(),
            arithmetic: None,
            deadline_ms: 1,
        };
        pipeline.admit(&spec)?;
        let mut ended = false;
        while !ended {
            // In other steps than a node's.
            let plan = StepPlan { work: vec![(spec.id, 3)] };
            pipeline.step(&plan, &mut |_, event| ended |= event.is_last());
        }
    }
    Ok(pipeline.expert_usage().context("the model has no experts")?.layers())
}

/// `accel-cli experts --json`.
async fn shown(commands: &CommandLine, model: &ModelRef) -> Result<Vec<Value>> {
    let ran = commands.run(&["experts", &model.to_string(), "--json"]).await?;
    ran.data()?;
    let view = ran.json()?;
    ensure!(view["model"] == model.to_string(), "{view}");
    Ok(view["layers"].as_array().context("no layers")?.clone())
}

/// Whether what is shown are these counts, and adds up.
fn expect(shown: &[Value], tokens: u64, expected: &[LayerUsage]) -> Result<()> {
    ensure!(shown.len() == 2 && expected.len() == 2, "{shown:?}");
    for (layer, expected) in shown.iter().zip(expected) {
        let numbers = |key: &str| -> Result<Vec<u64>> { Ok(serde_json::from_value(layer[key].clone())?) };
        ensure!(layer["layer"] == expected.layer() && layer["experts"] == EXPERTS, "{layer}");
        ensure!(layer["tokens"] == tokens && layer["chosen"] == CHOSEN, "expected {tokens} tokens: {layer}");
        let routed = numbers("routed")?;
        ensure!(routed == expected.routed(), "expected {expected:?}, found {layer}");
        ensure!(routed.iter().sum::<u64>() == CHOSEN * tokens, "{layer}");
        // Of two experts for each token there is one pair.
        let together: Vec<Vec<u64>> = serde_json::from_value(layer["together"].clone())?;
        ensure!(together.iter().flatten().sum::<u64>() == tokens, "{layer}");
        for (first, row) in together.iter().enumerate() {
            for (place, &both) in row.iter().enumerate() {
                ensure!(expected.together(first, first + 1 + place) == Some(both), "{first}: {layer}");
            }
        }
        let shares: Vec<f64> = serde_json::from_value(layer["shares"].clone())?;
        ensure!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{layer}");
        let bits = layer["entropy_bits"].as_f64().context("no entropy")?;
        ensure!(bits > 0.0 && bits <= 3.0 && (layer["evenness"] == bits / 3.0), "{layer}");
        let hottest = layer["by_use"][0].as_u64().context("no expert")?;
        ensure!(routed.get(usize::try_from(hottest)?) == routed.iter().max(), "{layer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_are_counted_and_outlive_the_node() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let model = import(&node, written(&cluster, MIXTURE)?).await?;
    let name = model.to_string();

    ensure!(shown(&commands, &model).await?.is_empty(), "something was counted before the model ran");
    let never = commands.run(&["experts", &name]).await?;
    ensure!(never.data()?.contains("has not run on this node"), "{never:?}");

    let first = run(&node, &model, PROMPTS[0], 20).await?;
    let alone = counted_in_one_process(&[(PROMPTS[0], 20)])?;
    expect(&shown(&commands, &model).await?, first, &alone)?;
    let second = run(&node, &model, PROMPTS[1], 9).await?;
    let both = counted_in_one_process(&[(PROMPTS[0], 20), (PROMPTS[1], 9)])?;
    expect(&shown(&commands, &model).await?, first + second, &both)?;

    // Another process goes on from there.
    node.stop().await?;
    let node = cluster.start("node", true, &[]).await?;
    expect(&shown(&commands, &model).await?, first + second, &both)?;
    let third = run(&node, &model, PROMPTS[0], 20).await?;
    let all = counted_in_one_process(&[(PROMPTS[0], 20), (PROMPTS[1], 9), (PROMPTS[0], 20)])?;
    ensure!(third == first, "{third} tokens");
    expect(&shown(&commands, &model).await?, 2 * first + second, &all)?;

    // A damaged file is not believed, and does not stop anybody.
    node.stop().await?;
    let file = cluster.path("node/usage").join(format!("{name}.json"));
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    kept["layers"][0]["tokens"] = json!(1);
    for damaged in [kept.to_string(), "{".to_owned()] {
        std::fs::write(&file, damaged)?;
        let node = cluster.start("node", true, &[]).await?;
        ensure!(shown(&commands, &model).await?.is_empty(), "a damaged file was read");
        run(&node, &model, PROMPTS[0], 20).await?;
        expect(&shown(&commands, &model).await?, first, &alone)?;
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_are_shown_in_tables_and_a_heat_map() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let model = import(&node, written(&cluster, MIXTURE)?).await?;
    let name = model.to_string();
    let tokens = run(&node, &model, PROMPTS[1], 40).await?;

    let seen = commands.run(&["experts", &name]).await?;
    let text = seen.data()?;
    ensure!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    for words in ["2 of 8", "HOTTEST", "COLDEST", "TOGETHER BY LIFT", "of 3.00 bits", &tokens.to_string()] {
        ensure!(text.contains(words), "{words}: {text}");
    }
    // k of n chosen alike: (k - 1) n / (k (n - 1)), here 4/7.
    ensure!(text.contains("each would have 0.57"), "{text}");
    let map = text.split_once("SHARE OF EXPERTS 0 TO 7").context("no heat map")?.1;
    for (line, layer) in map.lines().skip(1).zip(shown(&commands, &model).await?) {
        let shares: Vec<f64> = serde_json::from_value(layer["shares"].clone())?;
        let heat = |share: f64| match share * EXPERTS as f64 {
            0.0 => "__",
            below if below < 0.25 => "..",
            below if below < 0.5 => "::",
            below if below < 1.0 => "--",
            below if below < 2.0 => "++",
            below if below < 4.0 => "**",
            _ => "##",
        };
        let cells: String = shares.into_iter().map(heat).collect();
        ensure!(line.split_whitespace().eq([&layer["layer"].to_string(), &cells]), "expected {cells}: {line}");
    }
    let one = commands.run(&["experts", &name, "--layer", "1"]).await?;
    let rows = one.data()?.lines().filter(|line| line.contains(" %") && !line.starts_with("layer")).count();
    ensure!(rows == EXPERTS && one.stdout.starts_with("layer 1: "), "{one:?}");
    let json = commands.run(&["experts", &name, "--layer", "1", "--json"]).await?.json()?;
    ensure!(json["layers"][0]["layer"] == 1 && json["layers"].as_array().map(Vec::len) == Some(1), "{json}");

    // On a terminal with colours, for a user who does not want them, and where lines are short.
    let coloured = on_terminal(&commands, &["experts", &name], 80, &[]).await?;
    ensure!(coloured.matches("\u{1b}[48;5;").count() == 2 * EXPERTS + 7, "{coloured:?}");
    let plain = on_terminal(&commands, &["experts", &name], 80, &[("NO_COLOR", "1")]).await?;
    ensure!(plain == text, "expected {text}, found {plain}");
    let narrow = on_terminal(&commands, &["experts", &name], 11, &[("NO_COLOR", "1")]).await?;
    let narrow = narrow.split_once("SHARE OF EXPERTS 0 TO 7\n").context("no heat map")?.1;
    let wide = map.trim_start().lines().next().and_then(|line| line.split_whitespace().nth(1)).context("no row")?;
    let cells: String = wide.chars().step_by(2).collect();
    let rows: Vec<&str> = narrow.lines().take(2).map(str::trim).collect();
    ensure!(rows == [&format!("0      {}", &cells[..4]), &cells[4..]], "{cells}: {narrow}");

    let wrong = commands.run(&["experts", &name, "--layer", "2"]).await?;
    ensure!(wrong.code == Some(2) && wrong.stderr.contains("layer 2 has no experts"), "{wrong:?}");
    let dense = import(&node, written(&cluster, DENSE)?).await?.to_string();
    let none = commands.run(&["experts", &dense]).await?;
    ensure!(none.code == Some(1) && none.stderr.contains("has no mixture of experts"), "{none:?}");
    let none = commands.run(&["experts", &dense, "--json"]).await?;
    ensure!(none.code == Some(1) && none.json()?["error"]["code"] == "unsupported", "{none:?}");
    node.stop().await?;
    Ok(())
}

/// Runs a command whose standard output is a terminal of so many columns.
const TERMINAL: &str = "
import fcntl, os, pty, struct, subprocess, sys, termios
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, int(sys.argv[1]), 0, 0))
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=theirs)
os.close(theirs)
try:
    while piece := os.read(ours, 4096):
        sys.stdout.buffer.write(piece)
except OSError:
    pass
sys.stdout.flush()
sys.exit(child.wait())
";

/// What a command shows on a terminal that has 256 colours.
async fn on_terminal(commands: &CommandLine, asked: &[&str], columns: u16, more: &[(&str, &str)]) -> Result<String> {
    let command = commands.command(asked);
    let command = command.as_std();
    let mut terminal = tokio::process::Command::new(installed("ACCEL_TEST_PYTHON")?);
    terminal.args(["-c", TERMINAL, &columns.to_string()]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        terminal.env_remove(name);
    }
    terminal.env("TERM", "xterm-256color").envs(more.iter().copied());
    terminal.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let ran = ran(terminal.spawn()?).await?;
    Ok(ran.data()?.replace("\r\n", "\n"))
}

/// Bytes of the files in a directory.
fn bytes(directory: &PathBuf) -> Result<u64> {
    std::fs::read_dir(directory)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_dropped_from_memory_keeps_its_counts() -> Result<()> {
    let cluster = Cluster::new()?;
    let (mixture, dense) = (written(&cluster, MIXTURE)?, written(&cluster, DENSE)?);
    // Room for either, and not for both.
    let room = bytes(&mixture)? + bytes(&dense)? - 1;
    let config = cluster.path("small.toml");
    std::fs::write(&config, format!("[jobs]\nmemory_bytes = {room}\n"))?;
    let arguments = vec!["--config".to_owned(), config.display().to_string()];
    let settings = Settings { arguments, ..cluster.settings("node", true, &[]) };
    let node = NodeProcess::start(&settings).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let (mixture, dense) = (import(&node, mixture).await?, import(&node, dense).await?);

    let tokens = run(&node, &mixture, PROMPTS[0], 20).await?;
    let file = cluster.path("node/usage").join(format!("{mixture}.json"));
    ensure!(!file.exists(), "counts are written before that is due");
    run(&node, &dense, PROMPTS[0], 2).await?;
    eventually("what was counted is written", async || Ok(file.exists())).await?;
    expect(&shown(&commands, &mixture).await?, tokens, &counted_in_one_process(&[(PROMPTS[0], 20)])?)?;
    run(&node, &mixture, PROMPTS[0], 20).await?;
    let twice = counted_in_one_process(&[(PROMPTS[0], 20), (PROMPTS[0], 20)])?;
    expect(&shown(&commands, &mixture).await?, 2 * tokens, &twice)?;

    // What is due is written also in a run, and so a node that is killed loses no more than came after.
    let mut all = 2 * tokens;
    while all < 4096 + tokens {
        all += run(&node, &mixture, PROMPTS[0], 200).await?;
    }
    node.kill().await?;
    let node = NodeProcess::start(&settings).await?;
    let kept = shown(&commands, &mixture).await?;
    let kept = kept.first().and_then(|layer| layer["tokens"].as_u64()).context("nothing was kept")?;
    ensure!(kept >= 4096 && kept <= all, "{kept} of {all}");
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_are_counted_where_the_router_is() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let holder = cluster.start("holder", true, &[&node]).await?;
    let model = import(&node, written(&cluster, MIXTURE)?).await?;
    eventually("the nodes know each other", async || {
        Ok(node.api().peers().await?.iter().any(|peer| peer.connected && peer.advert.is_some()))
    })
    .await?;
    let peers = vec![holder.peer().to_owned()];
    let body = PlanBody { split: Split::Experts, peers, experts_elsewhere: true, keep: true };
    node.api().plan(&model, &body).await?;
    let tokens = run(&node, &model, PROMPTS[0], 20).await?;
    let spread = node.api().spread().await?;
    ensure!(spread.len() == 1 && spread[0].rows == 2 * CHOSEN * tokens, "the experts were not elsewhere: {spread:?}");

    let (here, there) = (node.data_dir().to_owned(), holder.data_dir().to_owned());
    let alone = counted_in_one_process(&[(PROMPTS[0], 20)])?;
    expect(&shown(&CommandLine::new(&cluster, &here), &model).await?, tokens, &alone)?;
    ensure!(shown(&CommandLine::new(&cluster, &there), &model).await?.is_empty(), "counted where it was not routed");
    holder.stop().await?;
    node.stop().await?;
    Ok(())
}
