//! What `cargo xtask peers` measures of ferrotune beside `finetune`: generation, the LoRA layer, one training step.
//!
//! Each measurement is a process. It writes one JSON object a line to standard output, the last of them `done`, as the Python
//! programs in `xtask/peers` do.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its caller")]

mod examples;
mod generation;
mod linear;
mod random_model;
mod step;

use clap::{Parser, Subcommand};
use serde_json::Value;
use std::{error::Error, process::ExitCode};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(about = "One measurement of ferrotune")]
struct Arguments {
    /// Threads to compute with.
    #[arg(long, default_value_t = 1, global = true)]
    threads: i32,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write examples of any form as prompts and completions, which TRL reads
    Examples(examples::Arguments),
    /// Answer prompts greedily
    Generation(generation::Arguments),
    /// The LoRA layer and the frozen layer, forward and backward
    Linear(linear::Arguments),
    /// Training steps on one long sequence each
    Step(step::Arguments),
    /// Write a Llama-shaped model with random weights
    RandomModel(random_model::Arguments),
}

fn main() -> ExitCode {
    let Arguments { threads, what } = Arguments::parse();
    // As our programs do.
    ferrotune::autograd::reuse_buffers();
    tch::set_num_threads(threads);
    let result = match what {
        What::Examples(arguments) => examples::run(&arguments),
        What::Generation(arguments) => generation::run(&arguments),
        What::Linear(arguments) => linear::run(&arguments),
        What::Step(arguments) => step::run(&arguments),
        What::RandomModel(arguments) => random_model::run(&arguments),
    };
    match result {
        Ok(done) => {
            tell("done", done);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            let theirs = error.downcast_ref::<ferrotune::Error>().is_some_and(ferrotune::Error::is_bad_input);
            ExitCode::from(if theirs { 2 } else { 1 })
        }
    }
}

/// Writes one event; `fields` is an object.
fn tell(event: &str, mut fields: Value) {
    fields["event"] = event.into();
    println!("{fields}");
}
