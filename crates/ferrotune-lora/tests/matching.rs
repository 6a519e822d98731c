//! Module matching against PEFT's own decisions (`fixtures/matching/make.py`).

#![allow(clippy::unwrap_used)] // the allowance for tests does not reach their helpers

use ferrotune_lora::{LoraConfig, ModuleInfo, TargetModules, effective_target_modules, matches};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Expected {
    paths: Vec<String>,
    configs: Vec<Config>,
    patterns: Vec<Patterns>,
    minimal: Vec<Minimal>,
}

#[derive(Deserialize)]
struct Config {
    options: Value,
    decisions: Vec<String>,
}

#[derive(Deserialize)]
struct Patterns {
    keys: Vec<String>,
    entries: Vec<Option<usize>>,
}

#[derive(Deserialize)]
struct Minimal {
    targets: Vec<String>,
    others: Vec<String>,
    suffixes: Vec<String>,
}

fn expected() -> Expected {
    serde_json::from_str(include_str!("fixtures/matching/expected.json")).unwrap()
}

#[test]
fn targets_are_pefts() {
    let expected = expected();
    assert!(!expected.configs.is_empty());
    for Config { mut options, decisions } in expected.configs {
        options["peft_type"] = "LORA".into();
        let config = LoraConfig::from_json(&options.to_string()).unwrap();
        for (path, decision) in expected.paths.iter().zip(decisions) {
            assert_eq!(
                matches(&config, path).unwrap(),
                decision == "targeted",
                "{options} on {path}: {decision}"
            );
        }
    }
}

#[test]
fn the_entry_of_a_rank_pattern_that_counts_is_pefts() {
    let expected = expected();
    assert!(!expected.patterns.is_empty());
    for Patterns { keys, entries } in expected.patterns {
        let rank_pattern = keys.iter().enumerate().map(|(index, key)| (key.clone(), index + 1)).collect();
        let alpha_pattern =
            keys.iter().enumerate().map(|(index, key)| (key.clone(), index as f64 + 0.5)).collect();
        let config =
            LoraConfig { rank: 99, lora_alpha: 99.0, rank_pattern, alpha_pattern, ..LoraConfig::default() };
        for (path, entry) in expected.paths.iter().zip(entries) {
            let rank = entry.map_or(99, |index| index + 1);
            assert_eq!(config.rank_for(path).unwrap(), rank, "{keys:?} on {path}");
            let alpha = entry.map_or(99.0, |index| index as f64 + 0.5);
            assert_eq!(config.scaling_for(path).unwrap(), alpha / rank as f64, "{keys:?} on {path}");
        }
    }
}

#[test]
fn long_lists_shrink_to_pefts_suffixes() {
    let expected = expected();
    assert!(!expected.minimal.is_empty());
    for Minimal { targets, others, suffixes } in expected.minimal {
        let linear = |path: &String| ModuleInfo {
            path: path.clone(),
            in_features: 2,
            out_features: 3,
            is_output_head: false,
        };
        let modules: Vec<_> = targets.iter().map(linear).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        for target_modules in [TargetModules::AllLinear, TargetModules::Names(targets.clone())] {
            let config = LoraConfig { target_modules, ..LoraConfig::default() };
            let written = effective_target_modules(&config, &modules, &others).unwrap();
            let TargetModules::Names(mut written) = written else { panic!("{written}") };
            written.sort(); // a list that cannot shrink keeps the order of the model
            assert_eq!(written, suffixes, "{targets:?}");
        }
    }
}
