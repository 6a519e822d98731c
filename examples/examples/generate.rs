//! Greedy answers: to one prompt on the terminal, or to a file of prompts.

use clap::{ArgGroup, Parser, builder::NonEmptyStringValueParser};
use ferrotune::{
    Error, Result,
    atomic::write_atomically,
    data::{Completion, Example, Message, Prompt, Source, read_examples},
    job::Assistant,
    progress::Progress,
};
use ferrotune_examples::{
    ModelArguments, count, exit_code, guarded, interrupted, interruption, prepare_to_compute, say,
};
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

Exit codes: 0 done, 2 the input cannot be used, 130 or 143 interrupted by Ctrl-C or SIGTERM, 1 anything else.";

/// Answer prompts greedily through the model's own chat template.
#[derive(Parser)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("prompts").args(["prompt", "input"]).required(true))]
struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Fold the adapter into the weights first, which then take all bits of f32
    #[arg(long, requires = "adapter")]
    merge: bool,
    /// One prompt; its answer is printed as it is generated.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    prompt: Option<String>,
    /// Examples, one JSON object a line.
    #[arg(long, value_name = "FILE", requires = "output")]
    input: Option<PathBuf>,
    /// Where {"prompt", "prediction", "reference"} goes, a line for each example.
    #[arg(long, value_name = "FILE", requires = "input")]
    output: Option<PathBuf>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256, value_parser = count())]
    max_new_tokens: usize,
}

fn main() -> ExitCode {
    guarded(program)
}

fn program() -> ExitCode {
    let arguments = Arguments::parse();
    prepare_to_compute(arguments.model.threads);
    match &arguments {
        Arguments { input: Some(input), output: Some(output), .. } => {
            match answer_file(&arguments, input, output) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => interrupted(),
                Err(error) => exit_code(Err(error)),
            }
        }
        Arguments { prompt, .. } => {
            exit_code(answer_prompt(&arguments, prompt.as_deref().unwrap_or_default()))
        }
    }
}

fn load(arguments: &Arguments) -> Result<Assistant> {
    let mut assistant = arguments.model.load()?;
    if arguments.merge {
        assistant.merge_adapter()?;
    }
    Ok(assistant)
}

/// Whether every prompt was answered.
fn answer_file(arguments: &Arguments, input: &Path, output: &Path) -> Result<bool> {
    arguments.model.check_output(output, input)?;
    let interruption = interruption();
    let examples = read_examples(input, None)?;
    let assistant = load(arguments)?;
    let prompts = assistant.prompt_ids(&examples, arguments.max_new_tokens)?;
    let mut progress = Progress::stderr();
    let start = Instant::now();
    let answers = assistant.answer_all(
        &prompts,
        arguments.max_new_tokens,
        arguments.model.batch_size,
        &mut |generating| {
            progress.generating(generating);
            !interruption.load(Ordering::Relaxed)
        },
    )?;
    let seconds = start.elapsed().as_secs_f64();
    progress.finish();
    let Some(answers) = answers else { return Ok(false) };
    let mut lines = String::new();
    for (example, answer) in examples.iter().zip(&answers) {
        let line = serde_json::json!({
            "prompt": example.prompt.text(), "prediction": answer.text, "reference": example.completion.text(),
        });
        lines.push_str(&format!("{line}\n"));
    }
    write_atomically(output, lines)?;
    let new_tokens: usize = answers.iter().map(|answer| answer.new_tokens).sum();
    let rate = new_tokens as f64 / seconds;
    say(format_args!("{} answers, {new_tokens} new tokens, {rate:.1} new tokens/s", answers.len()));
    Ok(true)
}

/// Prints the answer as it grows: the text of all tokens so far, less what is printed already and what may still change. Together it is
/// the answer that the file form writes.
fn answer_prompt(arguments: &Arguments, prompt: &str) -> Result<()> {
    let assistant = load(arguments)?;
    let example = Example {
        prompt: Prompt::Messages(vec![Message::new("user", prompt)]),
        completion: Completion::Text(String::new()),
        source: Source { file: Path::new("--prompt").into(), line: 1 },
    };
    let prompts = assistant.prompt_ids(&[example], arguments.max_new_tokens)?;
    let (mut token_ids, mut printed) = (Vec::new(), 0);
    let mut out = std::io::stdout();
    // Where nobody reads any more, there is nothing left to do.
    let mut show = |text: &str| match text.get(printed..) {
        Some(new) => {
            printed = text.len();
            write!(out, "{new}").and_then(|()| out.flush()).is_ok()
        }
        None => true,
    };
    let mut failure = None;
    let answers = assistant.answer(&prompts, arguments.max_new_tokens, 1, &mut |_, token| {
        token_ids.push(token);
        match assistant.decode(&token_ids) {
            // A character split over tokens ends in a replacement mark until its last token has come; white space counts once
            // something follows it.
            Ok(text) => show(text.trim_end_matches('\u{fffd}').trim()),
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    })?;
    // What looked unfinished, and turned out to be the end.
    answers.iter().for_each(|answer| _ = show(&answer.text));
    failure.map_or(Ok(()), Err)?;
    match writeln!(std::io::stdout()).and_then(|()| std::io::stdout().flush()) {
        // A reader that had enough is no failure; an answer that found no room is one.
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Write { path: "standard output".into(), source })
        }
        _ => Ok(()),
    }
}
