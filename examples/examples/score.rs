//! How likely a model finds the completions of a file: a line with the summed negative log-likelihood for each.

use clap::Parser;
use ferrotune::{Error, Result, atomic::write_atomically, data::read_examples, metrics::perplexity};
use ferrotune_examples::{check_output, count, exit_code, guarded, load, say, thread_count, use_threads};
use indicatif::ProgressBar;
use std::{path::PathBuf, process::ExitCode};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example score -- --model .models/smollm2-135m-instruct/hf \\
    --input .data/rustdoc-summaries/validation.jsonl --output scores.jsonl
  cargo run --release -p ferrotune-examples --example score -- --model .models/smollm2-135m-instruct/hf \\
    --adapter runs/demo/adapter --input .data/rustdoc-summaries/validation.jsonl --output scores.jsonl

Exit codes: 0 done, 2 the input cannot be used, 1 anything else.";

/// Score the completions of a JSONL file under a model: {\"nll\", \"target_tokens\"} a line, in input order.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// A Hugging Face model directory or a .gguf file.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A PEFT adapter directory.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Examples, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the scores go.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Examples computed at one time.
    #[arg(long, default_value_t = 8, value_parser = count())]
    batch_size: usize,
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads to compute with; all cores where absent.
    #[arg(long, value_parser = thread_count())]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    guarded(program)
}

fn program() -> ExitCode {
    exit_code(score(&Arguments::parse()))
}

fn score(arguments: &Arguments) -> Result<()> {
    use_threads(arguments.threads);
    check_output(&arguments.output, &arguments.input)?;
    let examples = read_examples(&arguments.input, None)?;
    let assistant = load(&arguments.model, arguments.adapter.as_deref(), &arguments.device)?;
    let rows = assistant.tokenize(&examples, usize::MAX)?;
    let bar = ProgressBar::new(rows.len() as u64);
    let scores = assistant.score(&rows, arguments.batch_size, &mut |done| bar.set_position(done as u64))?;
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
