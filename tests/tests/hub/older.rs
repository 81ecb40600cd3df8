//! A model as it was published before safetensors and `tokenizer.json`: a pickled checkpoint and `vocab.txt`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use accel_backends::files::LocalFiles;
use accel_backends::weights::{self, Dtype, TensorIndex};
use accel_tests::cluster::{Cluster, installed};
use accel_tests::command::CommandLine;
use accel_tests::hub::{Hub, Repository};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{pull, same_as_reference};

const MODEL: &str = "people/older";

/// The embedder, with its weights and its vocabulary written as they were then.
fn older(cluster: &Cluster) -> Result<Repository> {
    let directory = installed("ACCEL_TEST_EMBEDDER")?;
    let mut files = BTreeMap::new();
    for name in ["1_Pooling/config.json", "config.json", "modules.json", "sentence_bert_config.json"] {
        files.insert(name.to_owned(), directory.join(name));
    }
    let tokenizer: Value = serde_json::from_slice(&std::fs::read(directory.join("tokenizer.json"))?)?;
    let vocabulary = tokenizer["model"]["vocab"].as_object().context("no vocabulary")?;
    let mut tokens: Vec<_> = vocabulary.iter().map(|(token, id)| (id.as_u64(), token.as_str())).collect();
    tokens.sort();
    let tokens: Vec<&str> = tokens.into_iter().map(|(_, token)| token).collect();
    let source = LocalFiles::open(directory.join("model.safetensors"))?;
    let mut write = |name: &str, bytes: &[u8]| -> Result<()> {
        let path: PathBuf = cluster.path(name);
        std::fs::write(&path, bytes)?;
        files.insert(name.to_owned(), path);
        Ok(())
    };
    write("vocab.txt", (tokens.join("\n") + "\n").as_bytes())?;
    write("pytorch_model.bin", &checkpoint(&source, &weights::index(&source)?)?)?;
    Ok(Repository { files, ..Repository::default() })
}

/// A checkpoint as `torch.save` writes it: a pickle, and a file for each tensor, in a zip archive.
fn checkpoint(source: &LocalFiles, index: &TensorIndex) -> Result<Vec<u8>> {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let number = |number: usize| [&b"J"[..], &(number as u32).to_le_bytes()].concat();
    let tuple = |numbers: &[usize]| {
        [&b"("[..], &numbers.iter().flat_map(|&one| number(one)).collect::<Vec<_>>(), b"t"].concat()
    };
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    let mut entries = vec![("model/data.pkl".to_owned(), Vec::new())];
    for (place, tensor) in index.iter().enumerate() {
        let storage = match tensor.dtype {
            Dtype::F32 => "FloatStorage",
            Dtype::I64 => "LongStorage",
            other => anyhow::bail!("{}: {other}", tensor.name),
        };
        let elements = tensor.dims.iter().product();
        let strides: Vec<usize> = (1..=tensor.dims.len()).map(|from| tensor.dims[from..].iter().product()).collect();
        pickle.extend(text(&tensor.name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend(text("storage"));
        pickle.extend(format!("ctorch\n{storage}\n").as_bytes());
        pickle.extend([text(&place.to_string()), text("cpu"), number(elements)].concat());
        pickle.extend([b"tQ", &number(0)[..], &tuple(&tensor.dims), &tuple(&strides)].concat());
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        entries.push((format!("model/data/{place}"), weights::read_tensor(source, tensor)?));
    }
    pickle.extend(b"u.");
    entries[0].1 = pickle;
    let (mut archive, mut list) = (Vec::new(), Vec::new());
    for (name, bytes) in &entries {
        let place = archive.len() as u32;
        let sizes = [(bytes.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
        archive.extend([&b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..], &sizes, &[name.len() as u8, 0, 0, 0]].concat());
        archive.extend([name.as_bytes(), bytes].concat());
        list.extend([&b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..], &sizes, &[name.len() as u8, 0]].concat());
        list.extend([&[0; 12][..], &place.to_le_bytes(), name.as_bytes()].concat());
    }
    let (place, count) = ((archive.len() as u32).to_le_bytes(), (entries.len() as u16).to_le_bytes());
    archive.extend(&list);
    archive.extend(
        [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &(list.len() as u32).to_le_bytes(), &place, &[0, 0]].concat(),
    );
    Ok(archive)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_before_safetensors_answers_on_a_peer() -> Result<()> {
    let cluster = Cluster::new()?;
    let hub = Hub::start([(MODEL, older(&cluster)?)]).await?;
    let provider = cluster.start("provider", false, &[]).await?;
    let worker = cluster.start("worker", true, &[&provider]).await?;
    let commands = CommandLine::new(&cluster, provider.data_dir());
    let pulled = pull(&commands, &hub, None, &format!("hf://{MODEL}")).await?;
    pulled.data()?;
    let cid = pulled.json()?["cid"].as_str().context("no CID")?.to_owned();
    let tensors = commands.run(&["show", &cid, "--tensors", "--json"]).await?;
    tensors.data()?;
    let count = tensors.json()?["tensors"].as_array().map_or(0, Vec::len);
    ensure!(count > 100, "the file is known to hold {count} tensors");

    // The worker has nothing of it yet; before it fetches, it looks at what it would fetch.
    let asked = CommandLine::new(&cluster, worker.data_dir());
    same_as_reference(&asked, &cid).await?;
    worker.stop().await?;
    provider.stop().await?;
    Ok(())
}
