//! `cargo xtask demo`: the whole job, from nothing to an evaluated adapter and its report.

use anyhow::{Result, ensure};

use crate::{data, process, setup, workspace};

/// Its paths are those of the links that the set-up makes, relative to the root of the checkout.
const RECIPE: &str = "examples/recipes/demo.toml";
const OUTPUT: &str = "runs/demo";

pub fn run() -> Result<()> {
    let model = setup::run()?;
    let data = data::of_frozen_crates(None, false)?;
    println!("demo: building the examples (the first build of the bindings takes some minutes)");
    process::run(&mut workspace::cargo([
        "build",
        "--release",
        "--package",
        "ferrotune-examples",
        "--examples",
    ]))?;
    model.import("release")?;
    println!("demo: {} on {}", model.directory().display(), data.display());
    let output = format!("output_dir={OUTPUT}");
    let mut finetune =
        workspace::cargo(["run", "--release", "--package", "ferrotune-examples", "--example", "finetune"]);
    finetune.args(["--", RECIPE, "--set", output.as_str(), "--set", "overwrite_output_dir=true"]);
    println!("demo: {}", process::shown(&finetune));
    process::run(&mut finetune)?;
    let report = workspace::root().join(OUTPUT).join("report.html");
    ensure!(report.is_file(), "the run left no {}", report.display());
    println!("demo: the report is {}", report.display());
    Ok(())
}
