//! The command line as people and scripts see it: exit codes, data on standard output, words on standard error.

use std::path::PathBuf;
use std::time::Duration;

use accel_node::process::{NodeProcess, Settings};
use accel_protocol::{Generation, Input, JobEvent, JobId, Message, Role};
use accel_tests::cluster::{Cluster, events, import, model_file, question, text};
use accel_tests::command::{CommandLine, ran};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::process::Child;

const NOBODY_HAS: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
const CAPITAL: &str = "What is the capital of France?";
const PARIS: &str = "The capital of France is Paris.";
const LONG: &[&str] = &["--max-tokens", "4000", "--ignore-eos"];

/// A node that gives up on a fetch after a second.
async fn impatient(cluster: &Cluster, name: &str, serve: bool, join: &[&NodeProcess]) -> Result<NodeProcess> {
    let config = cluster.path("impatient.toml");
    std::fs::write(&config, "[store]\nfetch_stall_seconds = 1\n")?;
    let arguments = vec!["--config".to_owned(), config.display().to_string()];
    Ok(NodeProcess::start(&Settings { arguments, ..cluster.settings(name, serve, join) }).await?)
}

/// Waits until a running command has written something, and gives that.
async fn first_words(child: &mut Child) -> Result<String> {
    let mut buffer = [0; 64];
    let stdout = child.stdout.as_mut().context("no standard output")?;
    let read = tokio::time::timeout(Duration::from_secs(60), stdout.read(&mut buffer)).await??;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

/// The only job that is running, by `ps`.
async fn running_job(commands: &CommandLine) -> Result<JobId> {
    let jobs = commands.run(&["ps", "--json"]).await?.json()?;
    let jobs = jobs["jobs"].as_array().context("ps gives no list")?;
    let mut running = jobs.iter().filter(|job| job["state"] == "running");
    let id = running.next().and_then(|job| job["id"].as_str()).with_context(|| format!("nothing runs: {jobs:?}"))?;
    ensure!(running.next().is_none(), "more than one job runs: {jobs:?}");
    Ok(id.parse()?)
}

/// How a job ended on the node that worked on it.
async fn end_on(worker: &NodeProcess, job: JobId) -> Result<JobEvent> {
    let mut last = None;
    let mut events = worker.api().events(job, 0).await?;
    while let Some(record) = tokio::time::timeout(Duration::from_secs(30), events.next()).await? {
        last = Some(record?.event);
    }
    last.context("no event")
}

#[tokio::test(flavor = "multi_thread")]
async fn man_pages_tell_every_command() -> Result<()> {
    let cluster = Cluster::new()?;
    let commands = CommandLine::new(&cluster, &cluster.path("untouched"));
    let pages = cluster.directory("man")?;
    commands.run(&["man", pages.to_str().context("no text")?]).await?.data()?;
    for (page, words) in [("accel-node.1", "SIGTERM"), ("accel-cli.1", "doctor"), ("accel-cli-run.1", "temperature")] {
        let text = std::fs::read_to_string(pages.join(page)).context(page)?;
        ensure!(text.contains(words), "{page} does not tell of {words}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_wrong_is_refused_and_says_why() -> Result<()> {
    let cluster = Cluster::new()?;
    let commands = CommandLine::new(&cluster, &cluster.path("untouched"));
    let cases: &[(&[&str], &str)] = &[
        (&["fly"], "fly"),
        (&["pull"], "<MODEL>"),
        (&["pull", "ipfs://no-cid"], "is no CID"),
        (&["show", "ipfs://no-cid"], "is no CID"),
        (&["tag", "a name", NOBODY_HAS], "cannot be a name"),
        (&["tag", NOBODY_HAS, NOBODY_HAS], "cannot be a name"),
        (&["cancel", "1234"], "32 hexadecimal digits"),
        (&["connect", "somewhere"], "<ADDRESS>"),
        (&["run", "--temperature", "hot", NOBODY_HAS, "Hello"], "--temperature"),
        (&["completions", "tcsh"], "tcsh"),
        (&["ls", "--api", "0.0.0.0:4600"], "api.listen"),
        (&["ls", "--config", "missing.toml"], "missing.toml"),
    ];
    for (arguments, word) in cases {
        let refused = commands.run(arguments).await?;
        ensure!(refused.code == Some(2) && refused.stdout.is_empty(), "{arguments:?}: {refused:?}");
        ensure!(refused.stderr.starts_with("error: ") && refused.stderr.contains(word), "{arguments:?}: {refused:?}");

        let refused = commands.run(&[arguments, &["--json"][..]].concat()).await?;
        ensure!(refused.code == Some(2) && refused.stderr.is_empty(), "{arguments:?}: {refused:?}");
        let error = &refused.json()?["error"];
        ensure!(error["code"] == "invalid-request", "{arguments:?}: {error}");
        ensure!(error["message"].as_str().is_some_and(|message| message.contains(word)), "{arguments:?}: {error}");
    }
    ensure!(!cluster.path("untouched").exists(), "a command that cannot run has made a data directory");

    let help = commands.run(&["--help"]).await?;
    for words in ["Exit codes:", "  2    wrong usage", "  130  interrupted", "\"error\""] {
        ensure!(help.data()?.contains(words), "{words}: {}", help.stdout);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_get_completions_that_know_every_command() -> Result<()> {
    let cluster = Cluster::new()?;
    let commands = CommandLine::new(&cluster, &cluster.path("untouched"));
    for shell in ["bash", "zsh", "fish"] {
        let printed = commands.run(&["completions", shell]).await?;
        let script = printed.data()?;
        for command in [
            "demo",
            "run",
            "chat",
            "add",
            "pull",
            "ls",
            "show",
            "rm",
            "gc",
            "ps",
            "cancel",
            "peers",
            "connect",
            "id",
            "swarm",
            "rotate-key",
            "hardware",
            "experts",
            "completions",
        ] {
            ensure!(script.contains(command), "the completions for {shell} do not know {command}");
        }
        let json = commands.run(&["completions", shell, "--json"]).await?.json()?;
        assert_eq!(json["script"], script);
    }

    // A reader that goes away early ends a command without a word.
    let mut child = commands.command(&["completions", "bash"]).spawn()?;
    drop(child.stdout.take());
    let closed = ran(child).await?;
    ensure!(closed.code == Some(141) && closed.stderr.is_empty(), "{closed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_gives_its_data_and_nothing_else() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let other = cluster.start("other", false, &[]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let path = model_file()?.display().to_string();
    let model = commands.run(&["add", &path]).await?.data()?.trim().to_owned();
    let address = other.addresses().first().context("no address")?;

    let short = ["run", &model, CAPITAL, "--max-tokens", "3"];
    let ran_job = commands.run(&[&short[..], &["--json"]].concat()).await?;
    ran_job.data()?;
    let job = ran_job.json()?["job"].as_str().context("no job id")?.to_owned();
    let cases: &[(&[&str], &str)] = &[
        (&["add", &path], &model),
        (&["connect", address], other.peer()),
        (&["pull", &model], &model),
        (&["ls"], "gguf"),
        (&["show", &model], "gguf"),
        (&["show", &model, "--tensors"], "token_embd.weight"),
        (&short, "The capital of"),
        (&["tag", "smollm2:135m", &model], &model),
        (&["ls"], "smollm2:135m"),
        (&["run", "smollm2:135m", CAPITAL, "--max-tokens", "3"], "The capital of"),
        (&["load", "smollm2:135m", "--keep-alive", "60"], &model),
        (&["ps"], "smollm2:135m"),
        (&["stop", "smollm2:135m"], &model),
        (&["ps"], &job),
        (&["cancel", &job], "done"),
        (&["peers"], other.peer()),
        (&["id"], node.peer()),
        (&["hardware"], "cpu"),
        (&["gc"], "freed"),
        (&["rm", "smollm2:135m"], "freed"),
    ];
    for (arguments, word) in cases {
        // What removes something finds it gone the second time, so each command is asked once for people or programs.
        let for_people = !["rm", "stop"].contains(arguments.first().context("no command")?);
        if for_people {
            let printed = commands.run(arguments).await?;
            let data = printed.data()?;
            let plain = data.ends_with('\n') && !data.chars().any(|c| c.is_control() && c != '\n');
            ensure!(plain && data.contains(word), "{arguments:?}: {data:?}");
        }
        let printed = commands.run(&[arguments, &["--json"][..]].concat()).await?;
        printed.data()?;
        let value = printed.json()?;
        ensure!(!value.is_null() && value.get("error").is_none(), "{arguments:?}: {value}");
    }

    // The daemon runs on behind the commands; a second one is told what to do.
    let second = commands.run(&["daemon"]).await?;
    ensure!(second.code == Some(1) && second.stderr.contains("another daemon runs on"), "{second:?}");
    ensure!(second.stderr.contains("--data-dir"), "{second:?}");
    node.stop().await?;
    other.stop().await?;

    let demo = commands.run(&["demo", "--json", "--model", &path]).await?;
    demo.data()?;
    let demo = demo.json()?;
    assert_eq!(demo["text"], PARIS);
    ensure!(demo["fetched_bytes"].as_u64() > Some(80_000_000), "{demo}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_names_the_cause_and_has_its_exit_code() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = impatient(&cluster, "node", true, &[]).await?;
    let model = import(&node, model_file()?).await?.to_string();
    let idle = impatient(&cluster, "idle", false, &[]).await?;
    let quota = vec!["--quota-bytes".to_owned(), "1000000".to_owned()];
    let small = NodeProcess::start(&Settings { arguments: quota, ..cluster.settings("small", false, &[]) }).await?;
    let (on_node, on_idle, on_small) = (
        CommandLine::new(&cluster, node.data_dir()),
        CommandLine::new(&cluster, idle.data_dir()),
        CommandLine::new(&cluster, small.data_dir()),
    );
    let path = model_file()?.display().to_string();
    let gone = format!("/ip4/127.0.0.1/tcp/9/p2p/{}", idle.peer());
    let no_job = "00000000000000000000000000000000";
    let late = ["run", &model, CAPITAL, "--deadline-ms", "1"];
    let direct = ["run", "--peer", &gone, &model, CAPITAL];
    let cases: &[(&CommandLine, &[&str], i32, &str, &str)] = &[
        (&on_node, &["pull", NOBODY_HAS], 3, "model-not-found", NOBODY_HAS),
        (&on_node, &["show", NOBODY_HAS], 3, "model-not-found", NOBODY_HAS),
        (&on_node, &["rm", NOBODY_HAS], 3, "model-not-found", "accel-cli ls"),
        (&on_node, &["rm", "nothing-of-that-name"], 3, "model-not-found", "nothing-of-that-name"),
        (&on_node, &["untag", "nothing-of-that-name"], 3, "model-not-found", "nothing-of-that-name"),
        (&on_node, &["stop", &model], 3, "model-not-found", "not in memory"),
        (&on_idle, &["load", &model], 4, "no-worker", "jobs.serve"),
        (&on_node, &["run", NOBODY_HAS, "Hello"], 3, "model-not-found", NOBODY_HAS),
        (&on_node, &["run", "missing.gguf", "Hello"], 3, "model-not-found", "missing.gguf"),
        (&on_node, &["add", "missing.gguf"], 3, "model-not-found", "missing.gguf"),
        (&on_node, &["cancel", no_job], 3, "unknown-job", no_job),
        (&on_node, &["connect", "/ip4/127.0.0.1/tcp/9"], 2, "invalid-request", "/p2p/PEER_ID"),
        (&on_node, &["connect", &gone], 4, "no-worker", idle.peer()),
        (&on_node, &direct, 4, "no-worker", idle.peer()),
        (&on_node, &late, 5, "deadline-exceeded", "1 ms"),
        (&on_idle, &["run", &model, "Hello"], 4, "no-worker", "jobs.serve"),
        (&on_small, &["add", &path], 6, "out-of-resources", "1000000 bytes"),
    ];
    for (commands, arguments, code, _, word) in cases {
        let failed = commands.run(arguments).await?;
        ensure!(failed.code == Some(*code) && failed.stdout.is_empty(), "{arguments:?}: {failed:?}");
        let one_line = failed.stderr.starts_with("error: ") && failed.stderr.lines().count() == 1;
        ensure!(one_line && failed.stderr.contains(word), "{arguments:?}: {failed:?}");
    }
    // For programs the same; a few cases of each kind, since some wait for a peer.
    for (commands, arguments, code, name, word) in cases.iter().filter(|case| !case.1.contains(&NOBODY_HAS)) {
        let failed = commands.run(&[arguments, &["--json"][..]].concat()).await?;
        ensure!(failed.code == Some(*code) && failed.stderr.is_empty(), "{arguments:?}: {failed:?}");
        let error = &failed.json()?["error"];
        ensure!(error["code"] == *name, "{arguments:?}: {error}");
        ensure!(error["message"].as_str().is_some_and(|message| message.contains(word)), "{arguments:?}: {error}");
    }
    for node in [small, idle, node] {
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_on_its_worker_when_nobody_waits_for_it() -> Result<()> {
    let cluster = Cluster::new()?;
    let worker = cluster.start("worker", true, &[]).await?;
    let model = import(&worker, model_file()?).await?.to_string();
    let client = cluster.start("client", false, &[&worker]).await?;
    let commands = CommandLine::new(&cluster, client.data_dir());
    let long = [&["run", &model, "Count to a thousand."], LONG].concat();

    // Ctrl-C, and the polite kill of scripts.
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut child = commands.command(&long).spawn()?;
        first_words(&mut child).await?;
        let job = running_job(&commands).await?;
        let process = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        rustix::process::kill_process(process.context("the command has ended")?, signal)?;
        let ended = ran(child).await?;
        ensure!(ended.code == Some(130) && ended.stderr == "error: interrupted\n", "{ended:?}");
        assert_eq!(end_on(&worker, job).await?, JobEvent::Cancelled);
    }

    // A reader that has seen enough, as `head` does.
    let mut child = commands.command(&long).spawn()?;
    first_words(&mut child).await?;
    let job = running_job(&commands).await?;
    drop(child.stdout.take());
    let ended = ran(child).await?;
    ensure!(ended.code == Some(141) && ended.stderr.is_empty(), "{ended:?}");
    assert_eq!(end_on(&worker, job).await?, JobEvent::Cancelled);

    // `cancel` from another process.
    let mut child = commands.command(&long).spawn()?;
    first_words(&mut child).await?;
    let job = running_job(&commands).await?;
    let cancelled = commands.run(&["cancel", &job.to_string()]).await?;
    assert_eq!(cancelled.data()?, format!("{job}: cancelled\n"));
    let ended = ran(child).await?;
    ensure!(ended.code == Some(130) && ended.stderr == "error: the job was cancelled\n", "{ended:?}");
    assert_eq!(end_on(&worker, job).await?, JobEvent::Cancelled);

    client.stop().await?;
    worker.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_to_many_commands_at_once_and_without_a_daemon() -> Result<()> {
    let cluster = Cluster::new()?;
    let worker = cluster.start("worker", true, &[]).await?;
    let model = import(&worker, model_file()?).await?;
    let name = model.to_string();
    let commands = CommandLine::new(&cluster, worker.data_dir());

    let ask = ["run", &name, CAPITAL];
    for answer in futures::future::join_all((0..4).map(|_| commands.run(&ask))).await {
        assert_eq!(answer?.data()?, format!("{PARIS}\n"));
    }

    // The prompt by a pipe, straight to a peer; nothing of it stays behind.
    let nobody = CommandLine::new(&cluster, &cluster.path("untouched"));
    let address = worker.addresses().first().context("no address")?;
    let direct = nobody.run_with_input(&["run", "--json", "--peer", address, &name], CAPITAL).await?;
    direct.data()?;
    let direct = direct.json()?;
    assert_eq!(direct["text"], PARIS);
    assert_eq!(direct["answered_by"], worker.peer());
    ensure!(!cluster.path("untouched").exists(), "a direct run has made a data directory");

    // The second question of a conversation is asked with the first and its answer.
    let questions = ["My name is Alice. Remember it.", "What is my name?"];
    let said = commands.run_with_input(&["chat", &name, "--json", "--max-tokens", "24"], &questions.join("\n")).await?;
    let turns: Vec<Value> = said.data()?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(turns.len() == 2, "{said:?}");
    let first = turns[0]["text"].as_str().context("no text")?;
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    let short = || Generation { max_tokens: 24, ..Generation::default() };
    let mut whole = question(&model, "", short());
    whole.input = Input::Chat(vec![
        message(Role::User, questions[0]),
        message(Role::Assistant, first),
        message(Role::User, questions[1]),
    ]);
    let expected = text(&events(worker.api(), &whole).await?);
    let alone = text(&events(worker.api(), &question(&model, questions[1], short())).await?);
    assert_eq!(turns[1]["text"], expected);
    assert_ne!(expected, alone);
    worker.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_bring_up_a_daemon_where_none_runs() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", false, &[]).await?;
    let note: PathBuf = cluster.path("note.txt");
    std::fs::write(&note, "kept")?;
    let added = import(&node, note).await?.to_string();
    let commands = CommandLine::new(&cluster, node.data_dir());
    // It cannot take back what says how to reach it.
    node.kill().await?;
    let quiet = ["ls", "--json", "--serve", "false", "--mdns", "false", "--listen", "/ip4/127.0.0.1/tcp/0"];
    let listed = commands.run(&quiet).await?;
    listed.data()?;
    assert_eq!(listed.json()?[0]["cid"], added.as_str());

    // One of these brings the daemon up; the others find it, or wait until it has gone.
    for listed in futures::future::join_all((0..4).map(|_| commands.run(&quiet))).await {
        let listed = listed?;
        listed.data()?;
        assert_eq!(listed.json()?[0]["cid"], added.as_str());
    }
    Ok(())
}
