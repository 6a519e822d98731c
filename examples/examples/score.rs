//! How likely a model finds the completions of a file: a line with the summed negative log-likelihood for each.

use clap::Parser;
use ferrotune::{Error, Result, atomic::write_atomically, data::read_examples, metrics::perplexity};
use ferrotune_examples::{ModelArguments, exit_code, guarded, prepare_to_compute, say};
use indicatif::ProgressBar;
use std::{path::PathBuf, process::ExitCode};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example score -- --model .models/smollm2-135m-instruct/hf \\
    --input .data/rustdoc-summaries/validation.jsonl --output scores.jsonl
  cargo run --release -p ferrotune-examples --example score -- --model .models/smollm2-135m-instruct/hf \\
    --adapter runs/demo/adapter --input .data/rustdoc-summaries/validation.jsonl --output scores.jsonl

Exit codes: 0 done, 2 the input cannot be used, 1 anything else.";

/// Score the completions of a JSONL file under a model: {"nll", "target_tokens"} a line, in input order.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Examples, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the scores go.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

fn main() -> ExitCode {
    guarded(program)
}

fn program() -> ExitCode {
    exit_code(score(&Arguments::parse()))
}

fn score(arguments: &Arguments) -> Result<()> {
    prepare_to_compute(arguments.model.threads);
    arguments.model.check_output(&arguments.output, &arguments.input)?;
    let examples = read_examples(&arguments.input, None)?;
    let assistant = arguments.model.load()?;
    let rows = assistant.tokenize(&examples, usize::MAX)?;
    let bar = ProgressBar::new(rows.len() as u64);
    let scores =
        assistant.score(&rows, arguments.model.batch_size, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let lines: String = scores
        .iter()
        .map(|score| {
            let line = serde_json::json!({"nll": score.nll, "target_tokens": score.target_tokens});
            format!("{line}\n")
        })
        .collect();
    write_atomically(&arguments.output, lines)?;
    let nll: f64 = scores.iter().map(|score| score.nll).sum();
    let target_tokens: usize = scores.iter().map(|score| score.target_tokens).sum();
    let perplexity = perplexity(nll, target_tokens).map_err(Error::from)?;
    say(format_args!("{} examples, {target_tokens} target tokens, perplexity {perplexity:.4}", scores.len()));
    Ok(())
}
