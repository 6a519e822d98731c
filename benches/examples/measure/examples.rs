//! Examples as both sides read them: the forms that ferrotune knows become lists of messages or plain texts.

use crate::Result;
use ferrotune::data::{Completion, Prompt, read_examples};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    /// JSONL in any of the forms.
    #[arg(long)]
    input: PathBuf,
    /// Take the first so many.
    #[arg(long)]
    limit: usize,
    /// JSONL of `{"prompt", "completion"}`.
    #[arg(long)]
    output: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<Value> {
    let examples = read_examples(&arguments.input, Some(arguments.limit)).map_err(ferrotune::Error::from)?;
    let mut lines = String::new();
    for example in &examples {
        let prompt = match &example.prompt {
            Prompt::Text(text) => json!(text),
            Prompt::Messages(messages) => json!(messages),
        };
        let completion = match &example.completion {
            Completion::Text(text) => json!(text),
            Completion::Messages(messages) => json!(messages),
        };
        lines += &format!("{}\n", json!({ "prompt": prompt, "completion": completion }));
    }
    fs::write(&arguments.output, lines)?;
    Ok(json!({ "examples": examples.len() }))
}
