//! `cargo xtask test`: everything that CI runs, the cheapest first, up to the first failure.

mod alone;
mod docs;
mod errors;
mod graph;
mod guide;
mod licences;
mod package;
mod rust_version;
pub mod spdx;

use std::env;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValue;
use serde_json::Value;

use crate::{process, setup, workspace};

/// One check, under the name that `cargo xtask test NAME` takes.
struct Step {
    name: &'static str,
    about: &'static str,
    work: fn() -> Result<()>,
}

/// What needs no libtorch comes before the set-up that provides it: on a fresh machine there is none then.
const STEPS: [Step; 15] = [
    Step { name: "format", about: "the code is formatted", work: format },
    Step {
        name: "graph",
        about: "crates depend on each other, and on a Rust version, as laid down",
        work: || {
            let metadata = metadata()?;
            graph::check(&metadata)?;
            rust_version::check(&metadata)
        },
    },
    Step { name: "licences", about: "dependencies are permissive", work: || licences::check(&metadata()?) },
    Step { name: "docs", about: "links and commands of the pages lead somewhere", work: docs::check },
    Step {
        name: "errors",
        about: "a test names each variant of each error",
        work: || errors::check(&workspace::root()),
    },
    Step { name: "pure", about: "data and metrics build and pass without libtorch", work: pure },
    Step { name: "setup", about: "libtorch and the demo model are there", work: || setup::run().map(|_| ()) },
    Step { name: "clippy", about: "no lint warns", work: clippy },
    Step { name: "model", about: "the demo model is imported", work: || setup::run()?.import("dev") },
    Step { name: "test", about: "tests and documented examples pass", work: tests },
    Step { name: "guide", about: "the guide for newcomers works as written", work: guide::run },
    Step { name: "doc", about: "the documentation builds without a warning", work: documentation },
    Step {
        name: "docsrs",
        about: "the documentation builds without libtorch, as docs.rs does it",
        work: docsrs,
    },
    Step { name: "alone", about: "each library works in a project of its own", work: alone::check },
    Step { name: "package", about: "the libraries are fit to be published", work: package::check },
];

/// The profile of the workspace for projects and packages outside it, so that their dependencies are those built here.
const PROFILE: [&str; 8] = [
    "--config",
    "profile.dev.opt-level=1",
    "--config",
    "profile.dev.debug=\"line-tables-only\"",
    "--config",
    "profile.dev.package.\"*\".opt-level=2",
    "--config",
    "profile.dev.package.\"*\".debug=false",
];

/// Each step as a word of the command line.
pub fn words() -> impl Iterator<Item = PossibleValue> {
    STEPS.iter().map(|step| PossibleValue::new(step.name).help(step.about))
}

/// Runs the named steps, by default all.
///
/// # Errors
/// At the first step that fails, with the command that runs it again.
pub fn run(names: &[String]) -> Result<()> {
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
    shown(&mut cargo("clippy", &["--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    // What takes the place of the loops for x86-64 on other processors compiles, too.
    let elsewhere = ["--package", "ferrotune-kernels", "--lib", "--profile", "check", "--"];
    shown(cargo("rustc", &elsewhere).args(["--cfg", "ferrotune_elsewhere", "--deny", "warnings"]))
}

fn tests() -> Result<()> {
    shown(&mut cargo("test", &["--workspace"]))
}

fn documentation() -> Result<()> {
    rustdoc(&mut cargo("doc", &["--workspace", "--no-deps"]))
}

fn docsrs() -> Result<()> {
    let mut command = cargo("doc", &["--package", "ferrotune", "--no-deps", "--features", "doc-only"]);
    rustdoc(command.env("LIBTORCH", "/nonexistent").env_remove("LIBTORCH_USE_PYTORCH"))
}

fn rustdoc(command: &mut Command) -> Result<()> {
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
    fn all_that_is_wrong_is_said_at_once() {
        assert!(none_wrong("x", Vec::new()).is_ok());
        let error = none_wrong("x", vec!["a".into(), "b".into()]).unwrap_err().to_string();
        assert_eq!(error, "x:\n  a\n  b");
    }
}
