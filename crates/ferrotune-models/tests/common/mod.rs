//! Tiny checkpoints with the inputs and the results that `fixtures/decoder/make.py` wrote.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use ferrotune_kernels::SequenceLayout;
use ferrotune_models::PackedInputs;
use std::{collections::HashMap, path::PathBuf};
use tch::Tensor;

pub fn fixture(case: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decoder")).join(case)
}

pub struct Expected(pub HashMap<String, Tensor>);

impl Expected {
    pub fn read(case: &str) -> Self {
        Self(
            Tensor::read_safetensors(fixture(case).join("expected.safetensors"))
                .unwrap()
                .into_iter()
                .collect(),
        )
    }

    pub fn integers(&self, name: &str) -> Vec<i64> {
        Vec::try_from(&self.0[name]).unwrap()
    }

    pub fn layout(&self) -> SequenceLayout {
        SequenceLayout::from_cu_seqlens(&self.integers("cu_seqlens")).unwrap()
    }

    /// Row `t` predicts label `t + 1` of the same sequence.
    pub fn inputs(&self) -> PackedInputs {
        let labels = self.integers("labels");
        let layout = self.layout();
        let target_rows: Vec<i64> = layout
            .segments()
            .iter()
            .flat_map(|segment| segment.rows.start..segment.rows.end - 1)
            .filter(|&row| labels[row as usize + 1] != -100)
            .collect();
        let target_ids = target_rows.iter().map(|&row| labels[row as usize + 1]).collect();
        PackedInputs { input_ids: self.integers("input_ids"), layout, target_rows, target_ids }
    }
}

pub fn relative(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.size(), reference.size());
    ((ours - reference).norm() / reference.norm()).double_value(&[])
}
