//! The memory that is predicted for generation is the memory that is taken. Alone in its file: the peak is that of the whole process, and
//! what other work left to the allocator would serve.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod memory;

use ferrotune::{
    job::MemoryNeed,
    models::{CausalLm, GenerationConfig, generate},
    tch::{self, Device, Kind},
};
use memory::{agree, growth, write_model};

#[test]
fn generating_takes_what_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    tch::set_num_threads(2);
    let model = CausalLm::load(folder.path(), Device::Cpu, Kind::Float).unwrap();

    // They share nothing, and more of them are computed together than a pass takes.
    let prompts: Vec<Vec<i64>> = (0..20).map(|first| vec![first; 500]).collect();
    let need = MemoryNeed::of_generation(&model, &prompts, 4, 20);
    let config =
        GenerationConfig { max_new_tokens: 4, batch_size: 20, eos_token_ids: Vec::new(), adapter: None };
    let (_, measured) = growth(|| generate(&model, &prompts, &config, &mut |_, _| true).unwrap());
    agree(&need, measured);
}
