//! Configuration: the example says what the defaults are, flags win over the file, and mistakes are named.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, helpers included")]

use std::path::PathBuf;

use accel_node::config::{Config, Overrides};
use clap::Args;

fn example() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/node.toml")
}

#[test]
fn the_example_holds_every_key_with_its_default() {
    let text = std::fs::read_to_string(example()).unwrap();
    let loaded: Config = toml::from_str(&text).unwrap();
    assert_eq!(loaded, Config::default());
    // A key that is missing from the example would be filled in silently above.
    let keys = |value: &toml::Value| {
        let mut keys = Vec::new();
        for (section, value) in value.as_table().unwrap() {
            match value.as_table() {
                Some(table) => keys.extend(table.keys().map(|key| format!("{section}.{key}"))),
                None => keys.push(section.clone()),
            }
        }
        keys.sort();
        keys
    };
    let shown: toml::Value = toml::from_str(&text).unwrap();
    assert_eq!(keys(&shown), keys(&toml::Value::try_from(Config::default()).unwrap()));
}

#[test]
fn every_example_can_be_used() {
    for file in std::fs::read_dir(example().parent().unwrap()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let overrides = Overrides { config: Some(path), data_dir: Some("data".into()), ..Overrides::default() };
            Config::load(&overrides).unwrap();
        }
    }
}

/// The page of the documentation that says what can be configured: from the example and from what the programs take.
fn page() -> String {
    let mut page = "# Configuration\n\n\
        A node reads `node.toml` from the platform's configuration directory (`~/.config/accel/node.toml` on Linux), or \
        from where `--config` points. Flags win over variables, variables over the file, and the file over the \
        defaults.\n\n## Keys\n\n| key | default | what |\n| --- | --- | --- |\n"
        .to_owned();
    let (mut section, mut words) = (String::new(), Vec::new());
    let text = std::fs::read_to_string(example()).unwrap();
    // What stands above the first empty line is about the file.
    for line in text.lines().skip_while(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            words.push(comment);
        } else if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, value)) = line.split_once(" = ") {
            page.push_str(&format!("| `{section}{key}` | `{value}` | {} |\n", words.join(" ")));
            assert!(!words.is_empty(), "nobody says what {section}{key} is");
            words.clear();
        }
    }
    page.push_str("\n## Flags and variables\n\n| flag | variable | what |\n| --- | --- | --- |\n");
    for argument in Overrides::augment_args(clap::Command::new("accel-node")).get_arguments() {
        let flag = argument.get_long().unwrap();
        let variable = argument.get_env().map_or("-".into(), |name| format!("`{}`", name.to_string_lossy()));
        page.push_str(&format!("| `--{flag}` | {variable} | {} |\n", argument.get_help().unwrap()));
    }
    page
}

#[test]
fn the_documentation_tells_every_key_and_every_flag() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    if std::env::var_os("ACCEL_UPDATE").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page(), "docs/config.md is not up to date: ACCEL_UPDATE=1 tests/run -E 'binary(config)'");
}

#[test]
fn flags_win_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.toml");
    std::fs::write(&file, "[jobs]\nserve = true\nthreads = 3\n").unwrap();
    let overrides = Overrides {
        config: Some(file),
        data_dir: Some(directory.path().to_owned()),
        serve: Some(false),
        ..Overrides::default()
    };
    let config = Config::load(&overrides).unwrap();
    assert!(!config.jobs.serve);
    assert_eq!(config.jobs.threads, 3);
    assert_eq!(config.data_dir, directory.path());
}

#[test]
fn a_mistake_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for (text, named) in [
        ("[jobs]\nthread = 3\n", "thread"),
        ("[api]\nlisten = \"0.0.0.0:4600\"\n", "api.listen"),
        ("[swarm]\nbootstrap = [\"/ip4/127.0.0.1/tcp/1\"]\n", "swarm.bootstrap"),
        ("[store]\nfetch_window = 0\n", "store.fetch_window"),
    ] {
        let file = directory.path().join("node.toml");
        std::fs::write(&file, text).unwrap();
        let overrides = Overrides { config: Some(file), ..Overrides::default() };
        let error = Config::load(&overrides).expect_err(text).to_string();
        assert!(error.contains(named), "{error}");
    }
}
