//! Configuration: the example says what the defaults are, flags win over the file, and mistakes are named.

use std::path::PathBuf;

use accel_node::config::{Config, Overrides};

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
