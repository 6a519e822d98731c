//! `cargo xtask test`: everything that CI runs, the cheapest first, up to the first failure.

mod graph;
mod guide;
mod licences;
pub mod spdx;

use std::env;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{process, setup, workspace};

/// One check, under the name that `cargo xtask test NAME` takes.
struct Step {
    name: &'static str,
    about: &'static str,
    work: fn() -> Result<()>,
}

/// What needs no libtorch comes before the set-up that provides it: on a fresh machine there is none then.
const STEPS: [Step; 10] = [
    Step { name: "format", about: "the code is formatted", work: format },
    Step {
        name: "graph",
        about: "crates depend on each other as laid down",
        work: || graph::check(&metadata()?),
    },
    Step { name: "licences", about: "dependencies are permissive", work: || licences::check(&metadata()?) },
    Step { name: "pure", about: "data and metrics build and pass without libtorch", work: pure },
    Step { name: "setup", about: "libtorch and the demo model are there", work: || setup::run().map(|_| ()) },
    Step { name: "clippy", about: "no lint warns", work: clippy },
    Step { name: "model", about: "the demo model is imported", work: || setup::run()?.import("dev") },
    Step { name: "test", about: "tests and documented examples pass", work: tests },
    Step { name: "guide", about: "the guide for newcomers works as written", work: guide::run },
    Step { name: "doc", about: "the documentation builds without a warning", work: documentation },
];

/// Runs the named steps, by default all.
///
/// # Errors
/// At the first step that fails, with the command that runs it again.
pub fn run(names: &[String]) -> Result<()> {
    let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
    for name in names {
        ensure!(
            known.contains(&name.as_str()),
            "there is no step {name:?}; the steps are {}",
            known.join(", ")
        );
    }
    let chosen: Vec<&Step> =
        STEPS.iter().filter(|step| names.is_empty() || names.iter().any(|name| name == step.name)).collect();
    let mut times = Vec::new();
    for (index, step) in chosen.iter().enumerate() {
        println!("\n[{}/{}] {}: {}", index + 1, chosen.len(), step.name, step.about);
        let start = Instant::now();
        (step.work)().with_context(|| {
            format!(
                "step {} of {}, {}, failed; again: `cargo xtask test {}`",
                index + 1,
                chosen.len(),
                step.name,
                step.name
            )
        })?;
        times.push((step.name, start.elapsed().as_secs_f64()));
    }
    println!();
    for (name, seconds) in times {
        println!("{name:>9} ok {seconds:7.1} s");
    }
    Ok(())
}

/// Cargo; in CI with the lock file as committed.
fn cargo(subcommand: &str, arguments: &[&str]) -> Command {
    let mut command = workspace::cargo([subcommand]);
    if env::var_os("CI").is_some() {
        command.arg("--locked");
    }
    command.args(arguments);
    command
}

fn shown(command: &mut Command) -> Result<()> {
    println!("  {}", process::shown(command));
    process::run(command)
}

fn format() -> Result<()> {
    shown(&mut workspace::cargo(["fmt", "--all", "--check"]))
}

fn pure() -> Result<()> {
    let mut command = cargo("test", &["--package", "ferrotune-data", "--package", "ferrotune-metrics"]);
    // Anything in the tree that looked for a libtorch would fail here.
    command.env("LIBTORCH", "/nonexistent").env_remove("LIBTORCH_USE_PYTORCH");
    shown(&mut command)
}

fn clippy() -> Result<()> {
    shown(&mut cargo("clippy", &["--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

fn tests() -> Result<()> {
    shown(&mut cargo("test", &["--workspace"]))
}

fn documentation() -> Result<()> {
    let mut command = cargo("doc", &["--workspace", "--no-deps"]);
    let flags = env::var("RUSTDOCFLAGS").unwrap_or_default();
    shown(command.env("RUSTDOCFLAGS", format!("{flags} --deny warnings")))
}

fn metadata() -> Result<Value> {
    let text = process::output(&mut cargo("metadata", &["--format-version", "1"]))?;
    serde_json::from_str(&text).context("cargo metadata is not JSON")
}

/// Collects what is wrong into one error.
fn none_wrong(what: &str, wrong: Vec<String>) -> Result<()> {
    if !wrong.is_empty() {
        bail!("{what}:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn an_unknown_step_is_named_beside_the_known_ones() {
        let error = run(&["clipy".into()]).unwrap_err().to_string();
        assert!(error.contains("clipy") && error.contains("clippy"), "{error}");
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        assert!(none_wrong("x", Vec::new()).is_ok());
        let error = none_wrong("x", vec!["a".into(), "b".into()]).unwrap_err().to_string();
        assert_eq!(error, "x:\n  a\n  b");
    }
}
