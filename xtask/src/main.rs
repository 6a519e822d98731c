//! The project's own commands, `cargo xtask ...`: set-up, the demo, the tests, the demo data, the comparison with Python, the
//! benchmarks.
//!
//! Nothing here depends on libtorch, so that `setup` can run before there is one.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod data;
mod demo;
mod digest;
mod doctor;
mod files;
mod peers;
mod process;
mod progress;
mod setup;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "ferrotune's own commands", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Provide libtorch and the demo model, once, in the cache
    Setup,
    /// Say what this machine has, what it lacks and what to do about it, and measure its matrix products
    Doctor {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run everything that CI runs, the cheapest first
    Test {
        /// Only these steps
        #[arg(value_parser = PossibleValuesParser::new(test::words()))]
        steps: Vec<String>,
    },
    /// Build the instruction data from crate sources
    Data {
        /// Folder for the JSONL files [default: .data/rustdoc-summaries, in the cache]
        #[arg(long)]
        output: Option<PathBuf>,
        /// A Cargo workspace to read instead of the frozen list of crates
        #[arg(long, requires = "output")]
        path: Option<PathBuf>,
        /// Write down the digests of the files as the ones to expect (after a change of the rules or the list)
        #[arg(long, conflicts_with_all = ["path", "output"])]
        record: bool,
    },
    /// Fine-tune the demo model on the demo data, into runs/demo
    Demo,
    /// Measure ours and Python's programs in turn: training, generation, the LoRA layer
    #[command(after_help = peers::EXAMPLES)]
    Peers(peers::Arguments),
    /// Measure the kernels, each as a ratio to a reference beside it, and compare the ratios with the committed ones
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::Arguments),
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Doctor { json } => doctor::run(json),
        Command::Setup => setup::run().map(|_| ()),
        Command::Test { steps } => test::run(&steps),
        Command::Data { output, path: Some(path), .. } => {
            data::of_workspace(&path, &output.unwrap_or_else(|| PathBuf::from(".")))
        }
        Command::Data { output, path: None, record } => {
            data::of_frozen_crates(output.as_deref(), record).map(|_| ())
        }
        Command::Demo => demo::run(),
        Command::Peers(arguments) => peers::run(arguments),
        Command::Bench(arguments) => return bench::run(&arguments),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            // As everywhere in ferrotune: 2 is for what the user can mend.
            let theirs = error.is::<setup::NotReady>()
                || error.is::<doctor::Missing>()
                || error.is::<peers::BadInput>();
            ExitCode::from(if theirs { 2 } else { 1 })
        }
    }
}
