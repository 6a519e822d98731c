//! The memory that is predicted for loading and training is the memory that is taken. Alone in its file: the peak is that of the whole
//! process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod memory;

use ferrotune::{
    job::MemoryNeed,
    models::{CausalLm, ModelSize},
    tch::{self, Device, Kind},
    trainer::TrainingArguments,
};
use memory::{agree, growth, training_takes_what_is_predicted, write_model};

#[test]
fn loading_and_training_take_what_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    tch::set_num_threads(2);
    let size = ModelSize::of(folder.path()).unwrap();
    let need = MemoryNeed::of_loading(size.weight_bytes(Kind::Float), size.loading_bytes(Kind::Float));
    let (model, measured) = growth(|| CausalLm::load(folder.path(), Device::Cpu, Kind::Float));
    agree(&need, measured);

    training_takes_what_is_predicted(model.unwrap(), &TrainingArguments::default());
}
