//! Adapter directories that Python PEFT wrote (`fixtures/peft_adapters/make.py`): read, compared with what PEFT itself makes of them, and
//! written again.

#![allow(clippy::unwrap_used)] // the allowance for tests does not reach their helpers

use ferrotune_lora::peft::{Half, tensor_key};
use ferrotune_lora::{
    AdapterFile, LoraConfig, ModuleInfo, TargetModules, effective_target_modules, load_adapter, save_adapter,
    select_targets,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

#[derive(Deserialize)]
struct Expected {
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    target_modules: TargetModules,
    effective_target_modules: TargetModules,
    linear: Vec<Linear>,
    others: Vec<String>,
    matched: BTreeMap<String, Matched>,
}

#[derive(Deserialize)]
struct Linear {
    path: String,
    in_features: i64,
    out_features: i64,
    is_output_head: bool,
}

#[derive(Deserialize)]
struct Matched {
    r: usize,
    scaling: f64,
    sum_a: f64,
    sum_b: f64,
}

impl Case {
    fn modules(&self) -> Vec<ModuleInfo> {
        let info = |linear: &Linear| ModuleInfo {
            path: linear.path.clone(),
            in_features: linear.in_features,
            out_features: linear.out_features,
            is_output_head: linear.is_output_head,
        };
        self.linear.iter().map(info).collect()
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft_adapters").join(name)
}

fn cases() -> BTreeMap<String, Case> {
    let text = fs::read_to_string(fixture("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    assert_eq!(expected.cases.len(), 8);
    expected.cases
}

fn sorted(targets: &TargetModules) -> TargetModules {
    match targets {
        TargetModules::Names(names) => {
            TargetModules::Names(names.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect())
        }
        other => other.clone(),
    }
}

fn as_list(adapter: &AdapterFile) -> Vec<(&str, Tensor, Tensor)> {
    adapter
        .tensors
        .iter()
        .map(|(path, (a, b))| (path.as_str(), a.shallow_clone(), b.shallow_clone()))
        .collect()
}

#[test]
fn an_adapter_of_peft_is_read_as_peft_reads_it() {
    for (name, case) in cases() {
        let adapter = load_adapter(fixture(&name)).unwrap();
        let paths: Vec<_> = adapter.tensors.keys().collect();
        assert_eq!(paths, case.matched.keys().collect::<Vec<_>>(), "{name}");
        for (path, expected) in &case.matched {
            let (a, b) = &adapter.tensors[path];
            let (in_features, out_features) = case
                .linear
                .iter()
                .find(|linear| linear.path == *path)
                .map(|linear| (linear.in_features, linear.out_features))
                .unwrap();
            assert_eq!(a.size(), [expected.r as i64, in_features], "{name} {path}");
            assert_eq!(b.size(), [out_features, expected.r as i64], "{name} {path}");
            assert_eq!((a.kind(), b.kind()), (Kind::Float, Kind::Float));
            assert_eq!(adapter.config.rank_for(path).unwrap(), expected.r, "{name} {path}");
            let scaling = adapter.config.scaling_for(path).unwrap();
            assert!(
                (scaling - expected.scaling).abs() < 1e-15,
                "{name} {path}: {scaling} {}",
                expected.scaling
            );
            for (tensor, sum) in [(a, expected.sum_a), (b, expected.sum_b)] {
                let found = tensor.sum(Kind::Double).double_value(&[]);
                assert!((found - sum).abs() < 1e-9, "{name} {path}: {found} {sum}");
            }
        }
    }
}

#[test]
fn the_modules_that_peft_adapts_are_selected() {
    for (name, case) in cases() {
        let modules = case.modules();
        let saved = load_adapter(fixture(&name)).unwrap().config;
        // What PEFT was asked for, and what it wrote.
        let asked = LoraConfig { target_modules: case.target_modules.clone(), ..saved.clone() };
        for config in [asked, saved] {
            let selected = select_targets(&config, &modules).unwrap();
            let paths: BTreeSet<_> = selected.into_iter().map(|index| modules[index].path.as_str()).collect();
            assert_eq!(paths, case.matched.keys().map(String::as_str).collect(), "{name}");
            let others: Vec<&str> = case.others.iter().map(String::as_str).collect();
            for others in [&others[..], &[]] {
                let effective = effective_target_modules(&config, &modules, others).unwrap();
                assert_eq!(sorted(&effective), case.effective_target_modules, "{name}");
            }
        }
    }
}

#[test]
fn what_is_written_again_has_pefts_bytes_and_keys() {
    let root = tempfile::tempdir().unwrap();
    for (name, case) in cases() {
        let original = load_adapter(fixture(&name)).unwrap();
        let (first, second) = (root.path().join(&name), root.path().join("again").join(&name));
        save_adapter(&first, &original.config, &as_list(&original)).unwrap();
        let read = load_adapter(&first).unwrap();
        assert_eq!(read.config, original.config, "{name}");
        save_adapter(&second, &read.config, &as_list(&read)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            assert_eq!(
                fs::read(first.join(file)).unwrap(),
                fs::read(second.join(file)).unwrap(),
                "{name} {file}"
            );
        }
        let bytes = fs::read(first.join("adapter_model.safetensors")).unwrap();
        // PEFT's own bytes, where it wrote f32 too.
        if !name.ends_with("f16") {
            assert_eq!(bytes, fs::read(fixture(&name).join("adapter_model.safetensors")).unwrap(), "{name}");
        }
        let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let keys: BTreeSet<String> = written.names().into_iter().map(ToString::to_string).collect();
        let expected =
            case.matched.keys().flat_map(|path| [Half::A, Half::B].map(|half| tensor_key(path, half)));
        assert_eq!(keys, expected.collect(), "{name}");
    }
}

#[test]
fn the_written_configuration_holds_what_peft_has_and_no_more() {
    for name in cases().keys() {
        let config = load_adapter(fixture(name)).unwrap().config;
        let written: serde_json::Map<_, _> = serde_json::from_str(&config.to_json().unwrap()).unwrap();
        let text = fs::read_to_string(fixture(name).join("adapter_config.json")).unwrap();
        let pefts: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        for (key, value) in &written {
            let theirs = &pefts[key];
            // PEFT takes one value or a list for these.
            let same =
                value == theirs || value.as_array().is_some_and(|list| list.len() == 1 && list[0] == *theirs);
            assert!(same, "{name} {key}: {value} {theirs}");
        }
    }
}
