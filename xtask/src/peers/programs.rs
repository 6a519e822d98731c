//! The programs that are measured, each as the command of one process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::python::Python;
use crate::{process, workspace};

/// The setting that both sides train with.
const RANK: usize = 16;
const ALPHA: usize = 32;
const BATCH_SIZE: usize = 4;
const ACCUMULATION: usize = 8;
const LEARNING_RATE: f64 = 2e-4;
const WEIGHT_DECAY: f64 = 0.01;
const SEED: u64 = 42;

pub struct Programs {
    finetune: PathBuf,
    measure: PathBuf,
    pub python: Python,
    /// The Hugging Face directory that both sides load.
    pub model: PathBuf,
    pub threads: usize,
}

impl Programs {
    /// Builds ours.
    pub fn build(python: Python, model: PathBuf, threads: usize) -> Result<Self> {
        let finetune = build("ferrotune-examples", "finetune")?;
        let measure = build("ferrotune-benches", "measure")?;
        Ok(Self { finetune, measure, python, model, threads })
    }

    /// From here on both sides load a copy of the model whose weights are numbers of bf16.
    pub fn round_weights(&mut self, out: &Path) -> Result<()> {
        let rounded = out.join("work/model-of-bf16");
        let mut command = self.python.program("bf16_weights.py", self.threads);
        command.arg("--model").arg(&self.model).arg("--output").arg(&rounded).stdout(Stdio::null());
        process::run(&mut command)?;
        self.model = rounded;
        Ok(())
    }

    pub fn finetune(&self, recipe: &Path, settings: &[String]) -> Command {
        let mut command = self.ours(&self.finetune);
        command.arg(recipe).arg("--json");
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command
    }

    pub fn measure(&self, what: &str) -> Command {
        let mut command = self.ours(&self.measure);
        command.arg("--threads").arg(self.threads.to_string()).arg(what);
        command
    }

    fn ours(&self, program: &Path) -> Command {
        let mut command = workspace::program(program);
        let threads = self.threads.to_string();
        command.env("OMP_NUM_THREADS", &threads).env("RAYON_NUM_THREADS", &threads);
        command
    }

    /// TRL and PEFT on the examples of `train`.
    pub fn peer_training(&self, train: &Path, output: &Path, padding_free: bool) -> Command {
        let mut command = self.python.program("training.py", self.threads);
        command.arg("--model").arg(&self.model).arg("--train").arg(train).arg("--output").arg(output);
        for (option, value) in [
            ("--rank", RANK.to_string()),
            ("--alpha", ALPHA.to_string()),
            ("--batch-size", BATCH_SIZE.to_string()),
            ("--accumulation", ACCUMULATION.to_string()),
            ("--learning-rate", LEARNING_RATE.to_string()),
            ("--weight-decay", WEIGHT_DECAY.to_string()),
            ("--seed", SEED.to_string()),
        ] {
            command.arg(option).arg(value);
        }
        if padding_free {
            command.arg("--padding-free");
        }
        command
    }

    /// The same of ours; the adapter will be in `output`.
    pub fn our_training(&self, train: &Path, output: &Path) -> Result<Command> {
        let recipe = output.with_extension("toml");
        fs::write(&recipe, recipe_text(&self.model, train, output, self.threads)?)
            .with_context(|| format!("cannot write {}", recipe.display()))?;
        Ok(self.finetune(&recipe, &[]))
    }

    /// What the figures were measured with.
    pub fn settings() -> Value {
        json!({
            "rank": RANK, "alpha": ALPHA, "target_modules": "all-linear", "batch_size": BATCH_SIZE,
            "gradient_accumulation_steps": ACCUMULATION, "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY,
            "seed": SEED, "dtype": "f32",
        })
    }
}

fn recipe_text(model: &Path, train: &Path, output: &Path, threads: usize) -> Result<String> {
    // A basic string of TOML is written as one of JSON.
    let quoted = |path: &Path| match path.to_str() {
        Some(text) => Ok(json!(text).to_string()),
        None => bail!("{} is no UTF-8, which a recipe is", path.display()),
    };
    let [model, train, output] = [quoted(model)?, quoted(train)?, quoted(output)?];
    Ok(format!(
        r#"output_dir = {output}
seed = {SEED}
[model]
path = {model}
[data]
train = {train}
max_length = 8192
[lora]
r = {RANK}
lora_alpha = {ALPHA}
target_modules = "all-linear"
[training]
num_train_epochs = 1
per_device_train_batch_size = {BATCH_SIZE}
gradient_accumulation_steps = {ACCUMULATION}
learning_rate = {LEARNING_RATE:?}
weight_decay = {WEIGHT_DECAY:?}
logging_steps = 1
[runtime]
threads = {threads}
"#
    ))
}

/// Builds an example in release mode and says where it is.
fn build(package: &str, example: &str) -> Result<PathBuf> {
    let mut command = workspace::cargo(["build", "--release", "--package", package, "--example", example]);
    eprintln!("peers: {}", process::shown(&command));
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    executable(&process::output(&mut command)?, example)
        .with_context(|| format!("cargo named no executable of {example}"))
}

fn executable(messages: &str, example: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours =
        |message: &Value| message["target"]["name"] == example && message["target"]["kind"][0] == "example";
    messages.filter(ours).find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"measure"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["example"],"name":"measure"},"executable":"/t/examples/measure"}"#,
            "\nno JSON\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages, "measure"), Some(PathBuf::from("/t/examples/measure")));
        assert_eq!(executable(messages, "finetune"), None);
    }

    #[test]
    fn a_recipe_quotes_its_paths() {
        let text = recipe_text(Path::new("a \"b\""), Path::new("c\\d"), Path::new("e"), 2).unwrap();
        assert!(text.contains(r#"path = "a \"b\"""#) && text.contains(r#"train = "c\\d""#), "{text}");
    }
}
