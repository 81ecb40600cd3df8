//! Models that are not what they should be are refused, with the place named: what is missing, mistyped, of another shape
//! or left over.

#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::path::Path;

use accel_backends::files::LocalFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_backends::weights;
use accel_conformance::case::Case;
use accel_models::model::{Inputs, Model, Outputs};
use accel_models::rules::Loader;
use accel_models::{ModelError, arch};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const BERT: &str = "bert__BertLMHeadModel__a";

/// A kept case's model in a directory of its own.
fn model(case: &str) -> tempfile::TempDir {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/conformance").join(case);
    let directory = tempfile::tempdir().unwrap();
    Case::read(&case).unwrap().write_model(directory.path()).unwrap();
    directory
}

/// Loads it and asks it about some tokens.
fn ask(directory: &Path, tokens: &[i64]) -> Result<Outputs, ModelError> {
    let files = LocalFiles::open(directory).unwrap();
    let index = weights::index(&files)?;
    let description = arch::describe(&files, &index)?;
    let engine = Engine::cpu(1).unwrap();
    let loader = Loader::new(&files, &index, description.rules, &engine);
    let model = Model::load(&loader, description.spec)?;
    loader.finish()?;
    let mut inputs = Inputs::default();
    inputs.insert("input_ids", Tensor::whole(&engine, tokens.to_vec(), &[1, tokens.len()]).unwrap());
    model.forward(&inputs)
}

fn with_config(change: impl FnOnce(&mut Value)) -> Result<Outputs, ModelError> {
    with_config_of(BERT, change)
}

fn with_config_of(case: &str, change: impl FnOnce(&mut Value)) -> Result<Outputs, ModelError> {
    let directory = model(case);
    let path = directory.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    ask(directory.path(), &[1, 2, 3])
}

/// A model whose tensors have other names and shapes: none for one that is taken away.
fn with_tensors(change: impl Fn(&str, Vec<usize>) -> Vec<(String, Vec<usize>)>) -> Result<Outputs, ModelError> {
    let directory = model(BERT);
    let path = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut changed = Vec::new();
    for (name, view) in tensors.iter() {
        for (name, shape) in change(name, view.shape().to_vec()) {
            let length = shape.iter().product::<usize>() * view.data().len() / view.shape().iter().product::<usize>();
            let data: Vec<u8> = view.data().iter().copied().cycle().take(length).collect();
            changed.push((name, view.dtype(), shape, data));
        }
    }
    let views = changed.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    ask(directory.path(), &[1, 2, 3])
}

#[track_caller]
fn refused(answer: Result<Outputs, ModelError>, words: &[&str]) {
    let error = answer.map(|_| ()).unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn a_whole_model_answers() {
    with_tensors(|name, shape| vec![(name.to_owned(), shape)]).map(|_| ()).unwrap();
}

#[test]
fn a_configuration_names_the_key_that_is_wrong() {
    let set = |key: &'static str, value: Value| move |config: &mut Value| config[key] = value;
    let remove = |key: &'static str| {
        move |config: &mut Value| {
            config.as_object_mut().unwrap().remove(key);
        }
    };
    refused(with_config(remove("model_type")), &["model_type"]);
    refused(with_config(set("model_type", json!("no-such-type"))), &["no-such-type", "bert"]);
    refused(with_config(set("architectures", json!(["BertForNothing"]))), &["BertForNothing", "BertLMHeadModel"]);
    refused(with_config(set("hidden_size", json!("many"))), &["hidden_size", "many"]);
    refused(with_config(set("hidden_size", json!(-8))), &["hidden_size", "-8"]);
    refused(with_config(set("num_hidden_layers", json!(1e30))), &["num_hidden_layers"]);
    refused(with_config(set("num_attention_heads", json!(7))), &["layers.0.attn"]);
    refused(with_config(set("hidden_act", json!("no-such-function"))), &["hidden_act", "no-such-function"]);
}

#[test]
fn settings_that_are_not_supported_are_named() {
    let changed = |case: &str, key: &str, value: Value| with_config_of(case, |config| config[key] = value);
    let gemma = "gemma3_text__Gemma3ForCausalLM__a";
    assert!(changed(gemma, "use_bidirectional_attention", json!(false)).is_ok());
    refused(changed(gemma, "use_bidirectional_attention", json!(true)), &["use_bidirectional_attention", "true"]);
    refused(
        changed(gemma, "layer_types", json!(["no_attention", "no_attention", "no_attention"])),
        &["layer_types", "no_attention"],
    );
    refused(changed(gemma, "layer_types", json!(["full_attention"])), &["layer_types", "3"]);
    refused(changed(gemma, "head_dim", json!(1 << 30)), &["head_dim", "65536"]);
    let (gpt_oss, nllb) = ("gpt_oss__GptOssForCausalLM__a", "nllb-moe__NllbMoeForConditionalGeneration__a");
    assert!(changed(gpt_oss, "swiglu_limit", json!(7.0)).is_ok());
    refused(changed(gpt_oss, "swiglu_limit", json!(3.0)), &["swiglu_limit", "7.0"]);
    refused(changed(gpt_oss, "num_local_experts", json!(6)), &["router", "6"]);
    refused(changed(nllb, "second_expert_policy", json!("sampling")), &["second_expert_policy", "sampling"]);
    refused(
        changed(nllb, "moe_eval_capacity_token_fraction", json!(0.5)),
        &["moe_eval_capacity_token_fraction", "0.5"],
    );
    for factor in [1e30, 1.5, 0.0, -1.0] {
        let answer = changed("phi3__Phi3ForCausalLM__a", "partial_rotary_factor", json!(factor));
        refused(answer, &["partial_rotary_factor"]);
    }
}

#[test]
fn tensors_are_named_that_are_missing_of_another_shape_or_left_over() {
    let query = "bert.encoder.layer.0.attention.self.query.weight";
    let same = |name: &str, shape: Vec<usize>| vec![(name.to_owned(), shape)];
    refused(with_tensors(|name, shape| if name == query { Vec::new() } else { same(name, shape) }), &[query]);
    let wide = |name: &str, shape: Vec<usize>| {
        if name == query { same(name, vec![shape[0] + 1, shape[1]]) } else { same(name, shape) }
    };
    refused(with_tensors(wide), &["layers.0.attn.q"]);
    let more = "bert.encoder.layer.7.attention.self.query.weight";
    let with_more = |name: &str, shape: Vec<usize>| {
        let added = (name == query).then(|| (more.to_owned(), shape.clone()));
        same(name, shape).into_iter().chain(added).collect()
    };
    refused(with_tensors(with_more), &[more, "no such tensor"]);
    // The configuration says less than the file has.
    refused(with_config(|config| config["num_hidden_layers"] = json!(1)), &["bert.encoder.layer.1."]);
}

#[test]
fn heads_of_other_classes_and_buffers_may_be_left_over() {
    let query = "bert.encoder.layer.0.attention.self.query.weight";
    let with_more = |name: &str, shape: Vec<usize>| {
        let more = ["cls.seq_relationship.weight", "bert.pooler.dense.weight", "bert.embeddings.position_ids"];
        let added = more.iter().filter(|_| name == query).map(|more| ((*more).to_owned(), shape.clone()));
        [(name.to_owned(), shape.clone())].into_iter().chain(added).collect()
    };
    with_tensors(with_more).map(|_| ()).unwrap();
}

#[test]
fn inputs_outside_the_vocabulary_and_the_positions_are_refused() {
    let directory = model(BERT);
    refused(ask(directory.path(), &[1, 1 << 40]), &["embed", &(1_i64 << 40).to_string()]);
    refused(ask(directory.path(), &[-1]), &["embed", "-1"]);
    refused(ask(directory.path(), &[1; 4096]), &["embed"]);
    refused(ask(directory.path(), &[]), &["layers.0.attn"]);
}
