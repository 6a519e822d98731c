//! The memory that is predicted for loading and training is the memory that is taken. Alone in its file: the peak is that of the whole
//! process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod memory;

use ferrotune::{
    data::{Source, Tokenized},
    job::{CausalLmTask, MemoryNeed, PackedDataset},
    kernels::{Mode, RandomKey},
    lora::{LoraConfig, TargetModules, inject},
    models::{CausalLm, ModelSize},
    tch::{self, Device, Kind},
    trainer::{Dataset, TrainableModel},
};
use memory::{agree, growth, write_model};
use std::path::Path;

#[test]
fn loading_and_training_take_what_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    tch::set_num_threads(2);
    let size = ModelSize::of(folder.path()).unwrap();
    let need = MemoryNeed::of_loading(size.weight_bytes(Kind::Float), size.loading_bytes(Kind::Float));
    let (model, measured) = growth(|| CausalLm::load(folder.path(), Device::Cpu, Kind::Float));
    agree(&need, measured);

    let mut model = model.unwrap();
    let config = LoraConfig { target_modules: TargetModules::AllLinear, ..LoraConfig::default() };
    let adapter = inject(&mut model, "default", 0, &config, RandomKey::from_seed(1)).unwrap();
    let row = |length: u32| Tokenized {
        input_ids: (0..length).collect(),
        labels: (0..length).map(|id| if id > length / 2 { i64::from(id) } else { -100 }).collect(),
        source: Source { file: Path::new("rows").into(), line: 1 },
    };
    let rows = vec![row(200), row(800), row(700)];
    let parameters = adapter.parameter_count() as u64;
    let data = PackedDataset::new(rows, 1);
    let need = MemoryNeed::of_training(model.config(), parameters, &data, 3, 1);
    let (_, measured) = growth(|| {
        let batch = data.batch(&[0, 1, 2]).unwrap();
        let task = CausalLmTask::new(&model, &adapter);
        task.loss(&batch, Mode::Train(RandomKey::from_seed(1))).unwrap().backward();
    });
    agree(&need, measured);
}
