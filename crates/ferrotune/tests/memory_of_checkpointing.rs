//! The memory that is predicted for training with computing layers again is the memory that is taken. Alone in its file: the peak is that of the
//! whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod memory;

use ferrotune::{
    autograd,
    models::CausalLm,
    tch::{self, Device, Kind},
    trainer::TrainingArguments,
};
use memory::{training_takes_what_is_predicted, write_model};

#[test]
fn training_takes_what_was_predicted() {
    // As the programs do: the C library's heap would have holes as large as a layer.
    assert!(autograd::reuse_buffers());
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    tch::set_num_threads(2);
    let model = CausalLm::load(folder.path(), Device::Cpu, Kind::Float).unwrap();
    let arguments = TrainingArguments { gradient_checkpointing: true, ..TrainingArguments::default() };
    training_takes_what_is_predicted(model, &arguments);
}
