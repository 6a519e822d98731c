//! What a recipe takes, what it refuses, and how it says so.

mod checks;
mod fuzz;
mod overrides;
mod page;
mod problems;
mod values;

use super::*;
use crate::Error;

const MINIMAL: &str = "output_dir = \"runs/x\"\nmodel.path = \"m\"\ndata.train = \"train.jsonl\"\n";

fn parse(text: &str) -> crate::Result<Recipe> {
    Recipe::parse(text, "recipe.toml", &[])
}

fn with(overrides: &[&str]) -> crate::Result<Recipe> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    Recipe::parse(MINIMAL, "recipe.toml", &overrides)
}

/// The lines of the error, without the headline.
fn problems(result: crate::Result<Recipe>) -> Vec<String> {
    match result.unwrap_err() {
        error @ Error::Recipe { .. } => {
            error.to_string().lines().skip(1).map(|line| line.trim().to_owned()).collect()
        }
        error => panic!("{error}"),
    }
}
