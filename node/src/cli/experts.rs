//! Which experts of a mixture were chosen: tables, and a heat map with a row for each layer.

use accel_models::usage::PAIRED_EXPERTS_MAX;
use console::Term;

use super::CliError;
use super::models::find;
use super::output::{Output, table};
use crate::api::{Api, ExpertsView, LayerExpertsView};

/// Experts and pairs of a layer in the table of all layers.
const NAMED: usize = 3;
/// Columns of the heat map where nobody says how wide a line may be.
const WIDTH: usize = 100;
/// Columns of a cell at most.
const CELL: usize = 2;

/// How often an expert is chosen, in parts of what it would have if all were chosen alike.
#[derive(Clone, Copy)]
struct Heat {
    /// It is less than this.
    below: f64,
    name: &'static str,
    character: char,
    /// Among a terminal's 256.
    colour: u8,
}

const fn heat(below: f64, name: &'static str, character: char, colour: u8) -> Heat {
    Heat { below, name, character, colour }
}

const NEVER: Heat = heat(0.0, "never", '_', 236);
const HEATS: [Heat; 5] = [
    heat(0.25, "below 1/4", '.', 17),
    heat(0.5, "1/4 to 1/2", ':', 25),
    heat(1.0, "1/2 to 1", '-', 37),
    heat(2.0, "1 to 2", '+', 142),
    heat(4.0, "2 to 4", '*', 208),
];
const HOTTEST: Heat = heat(f64::INFINITY, "4 and more", '#', 196);

/// What can be asked of experts.
#[derive(Debug, clap::Args)]
pub(super) struct ExpertsArgs {
    /// CID, CID/path, ipfs://CID, or a name
    #[arg(value_parser = super::models::named)]
    model: String,
    /// Only this layer, with all its experts
    #[arg(long)]
    layer: Option<usize>,
}

pub(super) async fn experts(api: &Api, args: ExpertsArgs, output: &Output) -> Result<(), CliError> {
    let mut view = api.experts(&find(api, &args.model).await?).await?;
    let one = args.layer.filter(|_| !view.layers.is_empty());
    if let Some(wanted) = one {
        let known: Vec<String> = view.layers.iter().map(|layer| layer.layer.to_string()).collect();
        view.layers.retain(|layer| layer.layer == wanted);
        if view.layers.is_empty() {
            let words = format!("layer {wanted} has no experts; those that have are {}", known.join(", "));
            return Err(CliError::Usage(words));
        }
    }
    output.value(&view, |view| {
        let paper = Paper::of_output();
        match &view.layers[..] {
            layers if layers.iter().all(|layer| layer.tokens == 0) => format!(
                "{} is a mixture of experts that has not run on this node, so nothing is known of their use",
                view.model
            ),
            [layer] if one.is_some() => format!("{}\n\n{}", of_layer(layer), heat_map(view, &paper)),
            _ => format!("{}\n\n{}", of_layers(view), heat_map(view, &paper)),
        }
    })
}

/// What is written on.
struct Paper {
    /// Columns; none where lines may be of any length.
    width: Option<usize>,
    has_colour: bool,
}

impl Paper {
    /// Standard output, as its terminal and NO_COLOR have it.
    fn of_output() -> Self {
        let width = Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
        Self { width, has_colour: console::colors_enabled() }
    }

    /// A cell of the heat map.
    fn cell(&self, Heat { character, colour, .. }: Heat, width: usize) -> String {
        if self.has_colour {
            format!("\x1b[48;5;{colour}m{}\x1b[0m", " ".repeat(width))
        } else {
            character.to_string().repeat(width)
        }
    }
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn entropy(layer: &LayerExpertsView) -> String {
    let most = (layer.experts as f64).log2();
    format!("{:.2} of {most:.2} bits ({:.0} %)", layer.entropy_bits, layer.evenness * 100.0)
}

fn of_layers(view: &ExpertsView) -> String {
    let rows = view.layers.iter().map(|layer| {
        let named = |experts: &mut dyn Iterator<Item = &usize>| {
            let shares = experts.take(NAMED).map(|&expert| format!("{expert}: {}", percent(layer.shares[expert])));
            shares.collect::<Vec<_>>().join(", ")
        };
        let pairs = layer.pairs.iter().take(NAMED);
        let pairs = pairs.map(|pair| format!("{}+{}: {:.2}", pair.experts[0], pair.experts[1], pair.lift));
        vec![
            layer.layer.to_string(),
            format!("{} of {}", layer.chosen, layer.experts),
            layer.tokens.to_string(),
            entropy(layer),
            named(&mut layer.by_use.iter()),
            named(&mut layer.by_use.iter().rev()),
            pairs.collect::<Vec<_>>().join(", "),
        ]
    });
    let heads = ["LAYER", "CHOSEN", "TOKENS", "ENTROPY", "HOTTEST", "COLDEST", "TOGETHER BY LIFT"];
    let mut text = format!("{}\n\n{}", view.model, table(&heads, rows));
    let mut notes: Vec<String> = view.layers.iter().map(note).collect();
    notes.dedup();
    notes.iter().for_each(|note| text.push_str(&format!("\n\n{note}")));
    text
}

/// What is to be known of a layer's pairs.
fn note(layer: &LayerExpertsView) -> String {
    match layer.even_lift {
        Some(even) => format!(
            "A lift of 1 is chance; if all pairs of {} experts were chosen alike, each would have {even:.2}.",
            layer.experts
        ),
        None if layer.chosen < 2 => "With one expert for a token there are no pairs.".to_owned(),
        None => format!("Pairs are not counted where a layer has over {PAIRED_EXPERTS_MAX} experts."),
    }
}

fn of_layer(layer: &LayerExpertsView) -> String {
    let rows = layer.by_use.iter().map(|&expert| {
        let share = layer.shares[expert];
        let relative = format!("{:.2}", share * layer.experts as f64);
        vec![expert.to_string(), layer.routed[expert].to_string(), percent(share), relative]
    });
    let (number, tokens, chosen, experts) = (layer.layer, layer.tokens, layer.chosen, layer.experts);
    let mut text = format!(
        "layer {number}: {tokens} tokens, {chosen} of {experts} experts for each, entropy {}\n\n",
        entropy(layer)
    );
    text.push_str(&table(&["EXPERT", "TOKENS", "SHARE", "OF AN EVEN SHARE"], rows));
    if !layer.pairs.is_empty() {
        let rows = layer.pairs.iter().map(|pair| {
            let [first, second] = pair.experts;
            vec![format!("{first}+{second}"), pair.tokens.to_string(), format!("{:.2}", pair.lift)]
        });
        text.push_str(&format!("\n\n{}", table(&["PAIR", "TOKENS", "LIFT"], rows)));
    }
    format!("{text}\n\n{}", note(layer))
}

fn heat_of(layer: &LayerExpertsView, expert: usize) -> Heat {
    if layer.routed[expert] == 0 {
        return NEVER;
    }
    let relative = layer.shares[expert] * layer.experts as f64;
    HEATS.into_iter().find(|heat| relative < heat.below).unwrap_or(HOTTEST)
}

/// A row for each layer and a cell for each expert; rows that are too long go on below.
fn heat_map(view: &ExpertsView, paper: &Paper) -> String {
    let numbers = view.layers.iter().map(|layer| layer.layer.to_string().len());
    let margin = numbers.max().unwrap_or(1).max("LAYER".len()) + 2;
    let experts = view.layers.iter().map(|layer| layer.experts).max().unwrap_or(0);
    let columns = paper.width.unwrap_or(WIDTH.max(margin + experts)).saturating_sub(margin).max(1);
    let cell = if experts * CELL <= columns { CELL } else { 1 };
    let mut text = format!("{:margin$}SHARE OF EXPERTS 0 TO {}\n", "LAYER", experts.saturating_sub(1));
    for layer in &view.layers {
        let cells: Vec<String> = (0..layer.experts).map(|expert| paper.cell(heat_of(layer, expert), cell)).collect();
        for (number, line) in cells.chunks(columns / cell).enumerate() {
            let name = if number == 0 { layer.layer.to_string() } else { String::new() };
            text.push_str(&format!("{name:margin$}{}\n", line.concat()));
        }
    }
    let all = std::iter::once(NEVER).chain(HEATS).chain([HOTTEST]);
    let legend: Vec<String> = all.map(|heat| format!("{} {}", paper.cell(heat, CELL), heat.name)).collect();
    format!("{text}\nin parts of an even share:\n{}", legend.join("\n"))
}
