//! GGUF file in, Hugging Face model directory out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Parser;
use ferrotune_examples::{complain, guarded, interrupted, interruption, say};
use ferrotune_models::Error;
use ferrotune_models::import::import_gguf_with_progress;
use indicatif::{ProgressBar, ProgressStyle};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example import -- --gguf SmolLM2-135M-Instruct.Q4_1.gguf --output smollm2
  cargo run --release -p ferrotune-examples --example generate -- --model smollm2 --prompt \"What is the capital of France?\"

Exit codes: 0 done, 2 the file cannot be imported or the output cannot be written, 130 or 143\ninterrupted by Ctrl-C or SIGTERM, 1 anything else.";

/// Import a GGUF file (Llama or Mistral) into a Hugging Face model directory in f32.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// The GGUF file.
    #[arg(long, value_name = "FILE")]
    gguf: PathBuf,
    /// The directory to make. It must not exist, unless as a finished import of the same file.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

fn main() -> ExitCode {
    guarded(program)
}

fn program() -> ExitCode {
    let Arguments { gguf, output } = Arguments::parse();
    match run(&gguf, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::ImportStopped { .. }) => interrupted(),
        Err(error) => {
            complain(format_args!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

fn run(gguf: &std::path::Path, output: &std::path::Path) -> Result<(), Error> {
    let started = Instant::now();
    let interruption = interruption();
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta} {wide_msg}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let summary = import_gguf_with_progress(gguf, output, &|progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        bar.set_message(progress.tensor.to_owned());
        !interruption.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    let summary = summary?;
    for warning in &summary.warnings {
        complain(format_args!("warning: {warning}"));
    }
    let directory = summary.directory.display();
    if summary.imported {
        say(format_args!(
            "{directory}: {} tensors, {:.1} M parameters, {} tokens, in {:.1} s",
            summary.tensors,
            summary.parameters as f64 / 1e6,
            summary.vocabulary,
            started.elapsed().as_secs_f64()
        ));
    } else {
        say(format_args!("{directory}: already imported from this file"));
    }
    say(format_args!("source: {} bytes, sha256 {}", summary.source_bytes, summary.source_sha256));
    Ok(())
}
