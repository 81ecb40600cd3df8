//! A tiny llama with weights that look random: a directory as Hugging Face writes it, and the same as a GGUF file.

use std::path::Path;

use serde_json::{Value, json};

pub const HIDDEN: usize = 32;
pub const INNER: usize = 48;
pub const LAYERS: usize = 2;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD: usize = HIDDEN / HEADS;
pub const VOCABULARY: usize = 259;
pub const CONTEXT: usize = 160;
pub const TEMPLATE: &str = "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}{% endfor %}<s>";

fn noise(seed: u64, length: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

/// Names of Hugging Face, shapes and values.
pub fn tensors() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let narrow = KV_HEADS * HEAD;
        for (name, dims) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![narrow, HIDDEN]),
            ("self_attn.v_proj", vec![narrow, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), dims));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    shapes.push(("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]));
    let values = |(seed, (name, dims)): (usize, (String, Vec<usize>))| {
        let noise = noise(seed as u64 + 1, dims.iter().product());
        let scaled = match (dims.len(), name.as_str()) {
            (1, _) => noise.iter().map(|value| 1.0 + value * 0.25).collect(),
            (_, "lm_head.weight") => noise.iter().map(|value| value * 0.5).collect(),
            _ => noise.iter().map(|value| value * 0.35).collect(),
        };
        (name, dims, scaled)
    };
    shapes.into_iter().enumerate().map(values).collect()
}

pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "eos_token_id": 257,
    })
}

/// GPT-2's letters for bytes.
pub fn letters() -> Vec<String> {
    let plain = |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
    let mut others = 256..;
    let letter = |byte: u32| if plain(byte) { byte } else { others.next().unwrap() };
    (0..256).map(letter).map(|code| char::from_u32(code).unwrap().to_string()).collect()
}

fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        letters().into_iter().enumerate().map(|(id, letter)| (letter, json!(id))).collect();
    let added = ["<s>", "</s>", "<pad>"].iter().enumerate().map(|(place, content)| {
        json!({"id": 256 + place, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    });
    json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
}

/// Writes the directory, with changes to its configuration.
pub fn write(directory: &Path, changes: Value, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let mut config = config();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dims, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header.insert(name.clone(), json!({"dtype": "F32", "shape": dims, "data_offsets": [begin, data.len()]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend(data);
    std::fs::write(directory.join("model.safetensors"), weights).unwrap();
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    std::fs::write(directory.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    std::fs::write(directory.join("tokenizer_config.json"), json!({"chat_template": TEMPLATE}).to_string()).unwrap();
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// The rows of queries and keys in the order of GGUF files: the halves of each head interleaved.
fn permute(values: &[f32]) -> Vec<f32> {
    let head = |head: &[f32]| {
        let row = |row: usize| &head[row * HIDDEN..(row + 1) * HIDDEN];
        (0..HEAD / 2).flat_map(|place| [row(place), row(place + HEAD / 2)].concat()).collect::<Vec<_>>()
    };
    values.chunks_exact(HEAD * HIDDEN).flat_map(head).collect()
}

/// Writes the same model as a GGUF file.
pub fn write_gguf(path: &Path) {
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let mut keys = Vec::new();
    let mut count = 0_u64;
    let mut key = |name: &str, kind: u32, value: &[u8]| {
        count += 1;
        text(&mut keys, name);
        keys.extend(kind.to_le_bytes());
        keys.extend(value);
    };
    let packed = |value: &str| {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        bytes
    };
    key("general.architecture", 8, &packed("llama"));
    for (name, value) in [
        ("block_count", LAYERS),
        ("context_length", CONTEXT),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INNER),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
    ] {
        key(&format!("llama.{name}"), 4, &(value as u32).to_le_bytes());
    }
    key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes());
    key("tokenizer.ggml.model", 8, &packed("gpt2"));
    key("tokenizer.ggml.pre", 8, &packed("gpt-2"));
    key("tokenizer.ggml.eos_token_id", 4, &257_u32.to_le_bytes());
    key("tokenizer.chat_template", 8, &packed(TEMPLATE));
    let tokens: Vec<String> = letters().into_iter().chain(["<s>", "</s>", "<pad>"].map(str::to_owned)).collect();
    let array = |kind: u32, count: usize, items: Vec<u8>| {
        [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), &items].concat()
    };
    key("tokenizer.ggml.tokens", 9, &array(8, VOCABULARY, tokens.iter().flat_map(|token| packed(token)).collect()));
    let kinds = (0..VOCABULARY).flat_map(|id| if id < 256 { 1_i32 } else { 3 }.to_le_bytes()).collect();
    key("tokenizer.ggml.token_type", 9, &array(5, VOCABULARY, kinds));
    key("tokenizer.ggml.merges", 9, &array(8, 0, Vec::new()));
    let tensors = tensors();
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(keys);
    let mut data = Vec::new();
    for (name, dims, values) in &tensors {
        let name = names.iter().fold(name.clone(), |name, (from, to)| name.replace(from, to));
        let turned = name.contains("attn_q.") || name.contains("attn_k.");
        let values = if turned { permute(values) } else { values.clone() };
        text(&mut bytes, &name);
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().rev().for_each(|&dim| bytes.extend((dim as u64).to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        data.resize(data.len().next_multiple_of(32), 0);
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}
