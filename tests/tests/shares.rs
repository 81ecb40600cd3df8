//! Models over several nodes: the same answers, each node with its own share, whatever happens to the others.

use accel_node::api::{JobBody, MemberView, PlanBody, Split, SpreadView};
use accel_protocol::{EventRecord, JobEvent, Task};
use accel_tests::cluster::{Cluster, events, eventually, import, model_file};
use accel_tests::command::CommandLine;
use accel_tests::seeded::{Kind, Size};
use accel_tests::shard::{Swarm, answer};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;

/// Directories, inner nodes, headers, the configuration and the tokenizer.
const BESIDE: u64 = 128 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn mixtures_over_several_nodes_answer_as_on_one_and_each_node_fetches_its_share() -> Result<()> {
    for kind in Kind::ALL {
        let swarm = Swarm::start(kind, Size::SMALL, 3).await?;
        let body = swarm.body(24, 24, 3);
        let (_, way) = swarm.plan(Split::Experts, 3, true).await?;
        let spread = swarm.ask(&body).await?;
        let mut of_others = 0;
        for (node, member) in way.members.iter().enumerate() {
            let stored = swarm.stored_bytes(member).await?;
            let words = format!("{kind:?}: node {node} has {stored} bytes for a share of {}", member.bytes);
            ensure!(stored >= member.bytes && stored <= member.bytes + BESIDE, "{words}");
            ensure!((node == 0) == (member.experts == 0), "{words}");
            of_others += if node == 0 { 0 } else { member.bytes };
        }
        // The prompt is read in one pass, and every token but the first takes another.
        let SpreadView { rounds, repeats, borrowed, experts_here, .. } = swarm.spread().await?;
        let encoder = if kind == Kind::Switch { kind.mixtures(Size::SMALL) as u64 } else { 0 };
        assert_eq!(rounds, encoder + 24 * kind.mixtures(Size::SMALL) as u64, "{kind:?}");
        assert_eq!((repeats, borrowed, experts_here), (0, 0, 0), "{kind:?}");

        let (_, way) = swarm.plan(Split::Experts, 3, false).await?;
        ensure!(way.members.iter().all(|member| member.experts > 0), "{kind:?}: {way:?}");
        let shared = swarm.ask(&body).await?;
        let (_, way) = swarm.plan(Split::Solo, 1, false).await?;
        let alone = swarm.ask(&body).await?;
        ensure!(alone.equals(&spread) && alone.equals(&shared), "{kind:?}: {alone:?} {spread:?} {shared:?}");
        ensure!(alone.usage.completion_tokens == 24, "{kind:?}: {alone:?}");
        ensure!(way.members[0].bytes > of_others && of_others > 0, "{kind:?}: {way:?}");
        swarm.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_over_several_nodes_answer_as_on_one_and_each_node_fetches_its_share() -> Result<()> {
    for kind in Kind::ALL {
        let size = Size { layers: 8, ..Size::SMALL };
        let swarm = Swarm::start(kind, size, 3).await?;
        let bodies: Vec<JobBody> =
            [(24, 3), (160, 4), (7, 5)].map(|(prompt, seed)| swarm.body(prompt, 24, seed)).into();
        // Several at once: each is at another place of the way.
        let ask = async || futures::future::try_join_all(bodies.iter().map(|body| swarm.ask(body))).await;
        let (_, way) = swarm.plan(Split::Stages, 3, false).await?;
        let stages = ask().await?;
        let of_stages = chosen(&swarm).await?;
        ensure!(of_stages.iter().all(|of| of.iter().sum::<u64>() > 0), "{kind:?}: {of_stages:?}");
        for (node, member) in way.members.iter().enumerate() {
            let stored = swarm.stored_bytes(member).await?;
            let words = format!("{kind:?}: node {node} has {stored} bytes for a share of {}", member.bytes);
            ensure!(member.layers > 0 && stored >= member.bytes && stored <= member.bytes + BESIDE, "{words}");
        }
        let view = swarm.spread().await?;
        ensure!(view.stages.iter().all(|stage| stage.passes > 0 && stage.losses == 0), "{kind:?}: {view:?}");
        ensure!(view.stages.iter().map(|stage| stage.layers).sum::<usize>() < size.layers, "{view:?}");

        let (_, way) = swarm.plan(Split::Both, 3, false).await?;
        let apart = |member: &MemberView| member.layers > 0 && member.experts > 0;
        ensure!(way.members.iter().all(apart), "{kind:?}: {way:?}");
        let both = ask().await?;
        let of_both = chosen(&swarm).await?;
        swarm.plan(Split::Solo, 1, false).await?;
        let alone = ask().await?;
        // What routers chose is counted here wherever they are: each time as much again.
        let times =
            |times: u64| of_stages.iter().map(|of| of.iter().map(|of| times * of).collect()).collect::<Vec<_>>();
        assert_eq!((of_both, chosen(&swarm).await?), (times(2), times(3)), "{kind:?}");
        for ((alone, stages), both) in alone.iter().zip(&stages).zip(&both) {
            ensure!(alone.equals(stages) && alone.equals(both), "{kind:?}: {alone:?} {stages:?} {both:?}");
        }
        swarm.stop().await?;
    }
    Ok(())
}

/// How often each expert of each layer was chosen so far, as the first node knows it.
async fn chosen(swarm: &Swarm) -> Result<Vec<Vec<u64>>> {
    let view = swarm.nodes[0].api().experts(&swarm.model).await?;
    Ok(view.layers.into_iter().map(|layer| layer.routed).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn experts_that_are_used_most_get_a_second_place() -> Result<()> {
    let size = Size { experts: 16, ..Size::SMALL };
    let swarm = Swarm::start(Kind::Mixtral, size, 3).await?;
    let body = swarm.body(400, 24, 3);
    let (_, way) = swarm.plan(Split::Experts, 3, true).await?;
    assert_eq!(way.replicas, 0);
    let before = swarm.ask(&body).await?;
    let (_, way) = swarm.plan(Split::Experts, 3, true).await?;
    let all: usize = way.members.iter().map(|member| member.experts).sum();
    let of_layers = size.layers * size.experts;
    ensure!(way.replicas > 0 && all == of_layers + way.replicas, "{way:?}");
    ensure!(swarm.ask(&body).await?.equals(&before), "an answer with replicas differs");
    let SpreadView { peers, repeats, borrowed, .. } = swarm.spread().await?;
    assert_eq!((repeats, borrowed), (0, 0));
    assert_eq!(peers.iter().map(|peer| peer.experts).sum::<usize>(), all);
    swarm.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dense_model_in_a_gguf_file_goes_by_layers_where_it_fits_no_node() -> Result<()> {
    let room = std::fs::metadata(model_file()?)?.len() / 10 * 7;
    let mut swarm = Swarm::start_with(model_file()?, Task::TextGeneration, 1).await?;
    let alone = swarm.ask(&swarm.body(60, 24, 3)).await?;
    swarm.nodes.remove(0).stop().await?;
    let config = swarm.path("small.toml");
    std::fs::write(&config, format!("[jobs]\nmemory_bytes = {room}\n"))?;
    for _ in 0..3 {
        swarm.start_node_with(&["--config", &config.display().to_string()]).await?;
    }
    // Who has not heard of the others yet would leave the job to one that has.
    let first = swarm.nodes[0].api();
    eventually("the first node knows whom to ask", async || {
        let plan = first.plan(&swarm.model, &PlanBody::default()).await?;
        Ok(plan.chosen.is_some_and(|chosen| plan.ways[chosen].split == Split::Stages))
    })
    .await?;
    let spread = swarm.ask(&swarm.body(60, 24, 3)).await?;
    ensure!(spread.equals(&alone), "{spread:?} {alone:?}");
    let view = swarm.spread().await?;
    ensure!(!view.stages.is_empty() && view.stages.iter().all(|stage| stage.passes > 0), "{view:?}");
    swarm.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_when_holders_of_layers_die_or_fall_silent() -> Result<()> {
    for kind in [Kind::Mixtral, Kind::Switch] {
        // So many that each node gets some, however fast it found itself to be.
        let mut swarm = Swarm::start(kind, Size { layers: 8, ..Size::SMALL }, 4).await?;
        let body = swarm.body(16, 60, 5);
        // With draws there are no beams: its tokens come one by one.
        let mut other = swarm.body(40, 60, 6);
        other.generation.temperature = 0.8;
        swarm.plan(Split::Stages, 4, false).await?;
        let undisturbed = swarm.ask(&body).await?;
        for what in [Disturbance::Kill, Disturbance::Stop] {
            let (found, also) = {
                let (api, other) = (swarm.nodes[0].api().clone(), other.clone());
                let beside = tokio::spawn(async move { events(&api, &other).await });
                (answer(&disturbed(&mut swarm, &body, 10, what).await?)?, answer(&beside.await??)?)
            };
            ensure!(found.equals(&undisturbed), "{kind:?}: {found:?} {undisturbed:?}");
            let losses: u64 = swarm.spread().await?.stages.iter().map(|stage| stage.losses).sum();
            ensure!(losses > 0, "{kind:?}: nobody missed it");
            ensure!(swarm.ask(&other).await?.equals(&also), "{kind:?}: another answer beside it");
            if matches!(what, Disturbance::Stop) {
                signal(swarm.nodes.last().context("a node")?, rustix::process::Signal::CONT)?;
            }
        }
        swarm.stop().await?;
    }
    Ok(())
}

/// The events of a job, of which the token of a number is followed by something.
async fn disturbed(swarm: &mut Swarm, body: &JobBody, at: usize, what: Disturbance) -> Result<Vec<JobEvent>> {
    let mut stream = swarm.nodes[0].api().submit(body).await?;
    let (mut events, mut done) = (Vec::new(), false);
    while let Some(record) = stream.next().await {
        let EventRecord { event, .. } = record?;
        // Beams tell no tokens before the end, but how far they are.
        let there = match &event {
            JobEvent::Token { index, .. } => *index as usize + 1 == at,
            JobEvent::Working { done: tokens, .. } => *tokens as usize == at,
            _ => false,
        };
        events.push(event);
        // What was lost is begun again, and comes past there again.
        if there && !std::mem::replace(&mut done, true) {
            let place = swarm.nodes.len() - 1;
            match what {
                Disturbance::Kill => swarm.nodes.swap_remove(place).kill().await?,
                Disturbance::Stop => signal(&swarm.nodes[place], rustix::process::Signal::STOP)?,
            }
        }
    }
    Ok(events)
}

#[derive(Clone, Copy)]
enum Disturbance {
    /// Its end is noticed at once.
    Kill,
    /// It says nothing any more, and its connections stay open.
    Stop,
}

fn signal(node: &accel_node::process::NodeProcess, signal: rustix::process::Signal) -> Result<()> {
    let id = node.process_id().context("the node has ended")?;
    let process = rustix::process::Pid::from_raw(id.try_into()?).context("no process id")?;
    Ok(rustix::process::kill_process(process, signal)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_the_same_when_holders_of_experts_die_or_fall_silent() -> Result<()> {
    let mut swarm = Swarm::start(Kind::Qwen3Moe, Size::SMALL, 4).await?;
    let body = swarm.body(16, 60, 5);
    swarm.plan(Split::Experts, 4, true).await?;
    let undisturbed = swarm.ask(&body).await?;

    let killed = answer(&disturbed(&mut swarm, &body, 10, Disturbance::Kill).await?)?;
    ensure!(killed.equals(&undisturbed), "{killed:?} {undisturbed:?}");
    let SpreadView { repeats, borrowed, .. } = swarm.spread().await?;
    ensure!(repeats + borrowed > 0, "nobody missed it");
    // Its experts find another place, with those who are left.
    let settled = async |swarm: &Swarm| {
        let all = Kind::Qwen3Moe.mixtures(Size::SMALL) * Size::SMALL.experts;
        eventually("all experts have a place", async || {
            let spread = swarm.spread().await?;
            let open = spread.peers.iter().filter(|peer| peer.open);
            Ok(spread.experts_here + open.map(|peer| peer.experts).sum::<usize>() >= all)
        })
        .await
    };
    settled(&swarm).await?;
    let before = swarm.spread().await?.borrowed;
    ensure!(swarm.ask(&body).await?.equals(&undisturbed), "another answer after the loss");
    assert_eq!(swarm.spread().await?.borrowed, before, "an expert has no place");

    let silenced = answer(&disturbed(&mut swarm, &body, 20, Disturbance::Stop).await?)?;
    ensure!(silenced.equals(&undisturbed), "{silenced:?} {undisturbed:?}");
    signal(swarm.nodes.last().context("a node")?, rustix::process::Signal::CONT)?;
    swarm.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_who_would_do_what_and_why() -> Result<()> {
    let swarm = Swarm::start(Kind::Mixtral, Size::SMALL, 2).await?;
    let own = &swarm.nodes[0];
    let commands = CommandLine::new(swarm.cluster(), own.data_dir());
    let model = swarm.model.to_string();
    let plan = commands.run(&["plan", &model, "--json"]).await?.json()?;
    let ways = plan["ways"].as_array().context("no ways")?;
    ensure!(
        ways.len() == 5 && ways.iter().all(|way| way["prediction"]["tokens_per_second"].as_f64() > Some(0.0)),
        "{plan}"
    );
    let text = commands.run(&["plan", &model]).await?.stdout;
    ensure!(text.contains("alone") && text.contains("experts elsewhere") && text.contains("this node"), "{text}");
    // Nothing of the weights was fetched for it.
    ensure!(own.api().node().await?.used_bytes < BESIDE, "a plan fetched weights");

    // What fits nobody's memory says so.
    let config = swarm.path("small.toml");
    std::fs::write(&config, "[jobs]\nmemory_bytes = 1000000\n")?;
    let mut settings = swarm.cluster().settings("small", true, &[&swarm.provider]);
    settings.arguments = vec!["--config".to_owned(), config.display().to_string()];
    let small = accel_node::process::NodeProcess::start(&settings).await?;
    let commands = CommandLine::new(swarm.cluster(), small.data_dir());
    let plan = commands.run(&["plan", &model, "--split", "solo", "--json"]).await?.json()?;
    ensure!(plan["chosen"].is_null(), "{plan}");
    ensure!(plan["why"].as_str().is_some_and(|why| why.contains("memory")), "{plan}");
    small.stop().await?;
    swarm.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_tensors_of_two_models_are_fetched_once() -> Result<()> {
    let cluster = Cluster::new()?;
    let provider = cluster.start("provider", false, &[]).await?;
    let (first, second) = (cluster.path("first"), cluster.path("second"));
    Kind::Mixtral.write(&first, Size::SMALL, 7)?;
    // The same weights under another configuration, as a model that was tuned in part.
    std::fs::create_dir_all(&second)?;
    for name in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(first.join(name), second.join(name))?;
    }
    let config = std::fs::read_to_string(first.join("config.json"))?;
    std::fs::write(second.join("config.json"), config.replace("10000.0", "20000.0"))?;
    let (first, second) = (import(&provider, first).await?, import(&provider, second).await?);
    ensure!(first != second, "one model");
    let node = cluster.start("node", false, &[&provider]).await?;
    let whole = node.api().pull(&first, |_| {}).await?;
    let rest = node.api().pull(&second, |_| {}).await?;
    ensure!(whole.here_bytes == 0 && whole.fetched_bytes > 8 << 20, "{whole:?}");
    ensure!(rest.fetched_bytes < 8 << 10 && rest.here_bytes > 8 << 20, "{rest:?}");
    node.stop().await?;
    provider.stop().await?;
    Ok(())
}
