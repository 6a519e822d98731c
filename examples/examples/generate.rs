//! Greedy answers: to one prompt on the terminal, or to a file of prompts.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its user")]

use clap::Parser;
use ferrotune::{
    Result,
    atomic::write_atomically,
    data::{Completion, Example, Message, Prompt, Source, read_examples},
    job::Assistant,
    progress::{Generating, Progress},
};
use ferrotune_examples::{exit_code, interruption, load, use_threads};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::Ordering,
    time::Instant,
};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example generate -- --model .models/smollm2-135m-instruct/hf \\
    --prompt \"What is the capital of France?\"
  cargo run --release -p ferrotune-examples --example generate -- --model .models/smollm2-135m-instruct/hf \\
    --adapter runs/demo/adapter --input .data/rustdoc-summaries/validation.jsonl --output predictions.jsonl

Exit codes: 0 done, 2 the input cannot be used, 130 interrupted, 1 anything else.";

/// Answer prompts greedily through the model's own chat template.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// A Hugging Face model directory or a .gguf file.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A PEFT adapter directory.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// One prompt; its answer is printed as it is generated.
    #[arg(long, value_name = "TEXT", required_unless_present = "input", conflicts_with = "input")]
    prompt: Option<String>,
    /// Examples, one JSON object a line.
    #[arg(long, value_name = "FILE", requires = "output")]
    input: Option<PathBuf>,
    /// Where {"prompt", "prediction", "reference"} goes, a line for each example.
    #[arg(long, value_name = "FILE", requires = "input")]
    output: Option<PathBuf>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Prompts answered at one time.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads to compute with; all cores where absent.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    use_threads(arguments.threads);
    match &arguments {
        Arguments { input: Some(input), output: Some(output), .. } => match answer_file(&arguments, input, output) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => {
                eprintln!("interrupted: nothing was written");
                ExitCode::from(130)
            }
            Err(error) => exit_code(Err(error)),
        },
        Arguments { prompt, .. } => exit_code(answer_prompt(&arguments, prompt.as_deref().unwrap_or_default())),
    }
}

/// Whether every prompt was answered.
fn answer_file(arguments: &Arguments, input: &Path, output: &Path) -> Result<bool> {
    let examples = read_examples(input, None)?;
    let assistant = load(&arguments.model, arguments.adapter.as_deref(), &arguments.device)?;
    let prompts = assistant.prompt_ids(&examples)?;
    let interrupted = interruption();
    let mut progress = Progress::stderr();
    let start = Instant::now();
    let (mut new_tokens, mut begun, mut seen) = (0, 0, vec![false; prompts.len()]);
    let answers =
        assistant.answer(&prompts, arguments.max_new_tokens, arguments.batch_size, &mut |prompt, _| {
            new_tokens += 1;
            begun += usize::from(!std::mem::replace(&mut seen[prompt], true));
            progress.generating(&Generating {
                prompts: begun,
                total_prompts: prompts.len(),
                new_tokens,
                seconds: start.elapsed().as_secs_f64(),
            });
            !interrupted.load(Ordering::Relaxed)
        })?;
    progress.finish();
    if interrupted.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let mut lines = String::new();
    for (example, answer) in examples.iter().zip(&answers) {
        let prompt = match &example.prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Messages(messages) => {
                messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n")
            }
        };
        let line = serde_json::json!({
            "prompt": prompt, "prediction": answer.text, "reference": example.completion.text(),
        });
        lines.push_str(&format!("{line}\n"));
    }
    write_atomically(output, lines)?;
    let rate = new_tokens as f64 / start.elapsed().as_secs_f64();
    println!("{} answers, {new_tokens} new tokens, {rate:.1} new tokens/s", answers.len());
    Ok(true)
}

/// Prints the answer as it grows: the text of all tokens so far, less what is printed already and what may still change.
fn answer_prompt(arguments: &Arguments, prompt: &str) -> Result<()> {
    let assistant: Assistant = load(&arguments.model, arguments.adapter.as_deref(), &arguments.device)?;
    let example = Example {
        prompt: Prompt::Messages(vec![Message::new("user", prompt)]),
        completion: Completion::Text(String::new()),
        source: Source { file: Path::new("--prompt").into(), line: 1 },
    };
    let prompts = assistant.prompt_ids(&[example])?;
    let (mut token_ids, mut printed) = (Vec::new(), 0);
    let mut failure = None;
    assistant.answer(&prompts, arguments.max_new_tokens, 1, &mut |_, token| {
        token_ids.push(token);
        match assistant.decode(&token_ids) {
            Ok(text) => {
                // A character split over tokens ends in a replacement mark until its last token has come.
                let whole = text.trim_end_matches('\u{fffd}');
                if let Some(new) = whole.get(printed..) {
                    print!("{new}");
                    printed = whole.len();
                }
                std::io::stdout().flush().is_ok()
            }
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    })?;
    println!();
    failure.map_or(Ok(()), Err)
}
