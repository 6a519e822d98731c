//! Runs of transformers and PEFT that a fixture's script wrote down, to be repeated.
#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

use ferrotune::{
    data::{Source, Tokenized},
    job::PackedDataset,
    lora::{self, Adapter},
    models::CausalLm,
    tch::{Device, Kind},
};
use serde::{Deserialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn json<T: DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The rows of `folder`, in the order of the seed.
pub fn dataset(folder: &Path, seed: u64) -> PackedDataset {
    let rows: Vec<Row> = json(folder.join("rows.json"));
    let rows = rows.into_iter().enumerate().map(|(line, Row { input_ids, labels })| Tokenized {
        input_ids,
        labels,
        source: Source { file: Path::new("rows.json").into(), line: line + 1 },
    });
    PackedDataset::new(rows.collect::<Vec<_>>(), seed)
}

/// The model at `base` (one of the tiny ones by its name) with the adapter that `folder` begins with.
pub fn model(base: &Path, folder: &Path) -> (CausalLm, Adapter) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ferrotune-models/tests/fixtures/decoder");
    let mut model = CausalLm::load(&tiny.join(base), Device::Cpu, Kind::Float).unwrap();
    let adapter = lora::load(&mut model, "default", 0, folder.join("initial"), true).unwrap();
    (model, adapter)
}
