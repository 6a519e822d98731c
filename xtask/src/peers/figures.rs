//! What is measured, program by program: training, generation, the LoRA layer, the demo.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::child::{self, Finished};
use super::programs::Programs;
use super::samples::Measurements;
use crate::{files, workspace};

pub const OURS: &str = "ferrotune";
pub const PADDED: &str = "TRL + PEFT, padded";
pub const PADDING_FREE: &str = "TRL + PEFT, padding-free";
pub const TRANSFORMERS: &str = "transformers";
pub const TRANSFORMERS_PEFT: &str = "transformers + PEFT, unmerged";
pub const OURS_ADAPTER: &str = "ferrotune, adapter applied";
pub const OURS_MERGED: &str = "ferrotune, adapter merged";
pub const PEFT_LINEAR: &str = "PEFT's lora.Linear";
pub const FROZEN_LINEAR: &str = "frozen linear";
pub const LIBTORCH_LINEAR: &str = "libtorch's frozen linear";
pub const DEMO: &str = "the demo";

/// Names of figures, each with its unit.
pub const TOKENS_PER_S: &str = "real tokens/s";
pub const PEAK_MIB: &str = "peak memory, MiB";
pub const TO_FIRST_STEP_S: &str = "to the first step, s";
pub const TO_FIRST_STEP_END_S: &str = "to the end of the first step, s";
pub const GEMM_SHARE: &str = "share of the GEMM limit, %";
pub const WHOLE: &str = "new tokens/s, whole call";
pub const DECODING: &str = "new tokens/s, decoding alone";
pub const MERGE_S: &str = "merging the adapter, s";
pub const MINUTES: &str = "minutes";
pub const GAIN: &str = "gain in ROUGE-L";
pub const GAIN_LOW: &str = "gain in ROUGE-L, lower end";

/// Rows and columns of the LoRA layers.
pub const SIZES: [usize; 2] = [576, 4096];

/// What a pass over the LoRA layer of this size is called; the weight's numbers have all bits of f32, or those of bf16 alone.
pub fn pass_ms(size: usize, bf16_weight: bool) -> String {
    let weight = if bf16_weight { ", weight of bf16 numbers" } else { "" };
    format!("forward + backward at {size}x{size}{weight}, ms")
}

/// Where things go, and what was seen that a reader should know.
pub struct Bench<'a> {
    pub programs: &'a Programs,
    pub out: &'a Path,
    pub measurements: Measurements,
    pub notes: Vec<String>,
    /// Losses of the steps, by program.
    pub losses: Vec<(String, Vec<f64>)>,
}

impl Bench<'_> {
    /// A folder of the run for what a program writes.
    fn work(&self, name: &str) -> Result<PathBuf> {
        let path = self.out.join("work").join(name);
        files::remove(&path)?;
        Ok(path)
    }

    pub fn run(&self, name: &str, command: &mut Command) -> Result<Finished> {
        eprint!("peers: {name}");
        let file = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let log = self.out.join("logs").join(format!("{file}.log"));
        let finished = child::run(command, &log).inspect_err(|_| eprintln!())?;
        let peak = finished.peak_mib.map(|peak| format!(", {peak:.0} MiB")).unwrap_or_default();
        eprintln!(": {:.1} s{peak}", finished.seconds);
        Ok(finished)
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            eprintln!("peers: note: {note}");
            self.notes.push(note);
        }
    }

    /// One round of training: the peer in both modes, and ours. Ours leaves its adapter in the folder that is returned.
    pub fn training(&mut self, train: &Path) -> Result<PathBuf> {
        let output = self.work("peer-training")?;
        let mut tokens = Vec::new();
        for (name, padding_free) in [(PADDED, false), (PADDING_FREE, true)] {
            let finished = self.run(
                &format!("training by {name}"),
                &mut self.programs.peer_training(train, &output, padding_free),
            )?;
            tokens.push(self.add_training(name, &finished, finished.number("/real_tokens")?)?);
        }
        let output = self.work("training")?;
        let mut command = self.programs.our_training(train, &output)?;
        let finished = self.run("training by ferrotune", &mut command)?;
        tokens.push(self.add_training(OURS, &finished, finished.number("/metrics/train/real_tokens")?)?);
        if let Ok(share) = finished.number("/metrics/train/gemm_share") {
            self.measurements.add(OURS, GEMM_SHARE, 100.0 * share);
        }
        if tokens.iter().any(|other| *other != tokens[0]) {
            self.note(format!("the programs do not train on the same number of tokens: {tokens:?}"));
        }
        if let Some(note) = losses_differ(&self.losses) {
            self.note(note);
        }
        Ok(output.join("adapter"))
    }

    /// An adapter to generate with, where no training is measured.
    pub fn adapter(&mut self, train: &Path) -> Result<PathBuf> {
        let output = self.work("training")?;
        self.run("an adapter", &mut self.programs.our_training(train, &output)?)?;
        Ok(output.join("adapter"))
    }

    fn add_training(&mut self, program: &str, finished: &Finished, real_tokens: f64) -> Result<f64> {
        let training = Training::read(finished)?;
        self.measurements.add(program, TOKENS_PER_S, real_tokens / (training.last_step_end - training.begin));
        self.measurements.add(program, PEAK_MIB, finished.peak_mib()?);
        self.measurements.add(program, TO_FIRST_STEP_S, training.begin);
        self.measurements.add(program, TO_FIRST_STEP_END_S, training.first_step_end);
        if !self.losses.iter().any(|(name, _)| name == program) {
            self.losses.push((program.into(), training.losses));
        }
        Ok(real_tokens)
    }

    /// One round of generation: both sides, without and with the adapter; ours also with the adapter merged.
    pub fn generation(&mut self, prompts: &Path, adapter: &Path, new_tokens: usize) -> Result<()> {
        let arguments = |mut command: Command, adapter: Option<&Path>| {
            command.arg("--model").arg(&self.programs.model).arg("--prompts").arg(prompts);
            command.arg("--new-tokens").arg(new_tokens.to_string());
            if let Some(adapter) = adapter {
                command.arg("--adapter").arg(adapter);
            }
            command
        };
        let peer = || self.programs.python.program("generation.py", self.programs.threads);
        let ours = || self.programs.measure("generation");
        let merged = || {
            let mut command = ours();
            command.arg("--merge");
            command
        };
        let runs = [
            (TRANSFORMERS, arguments(peer(), None)),
            (OURS, arguments(ours(), None)),
            (TRANSFORMERS_PEFT, arguments(peer(), Some(adapter))),
            (OURS_ADAPTER, arguments(ours(), Some(adapter))),
            (OURS_MERGED, arguments(merged(), Some(adapter))),
        ];
        let mut answers = Vec::new();
        for (name, mut command) in runs {
            let finished = self.run(&format!("generation by {name}"), &mut command)?;
            let generation = Generation::read(&finished)?;
            self.measurements.add(name, WHOLE, generation.whole);
            match generation.decoding {
                Some(decoding) => self.measurements.add(name, DECODING, decoding),
                None => self.note(format!(
                    "longer answers of {name} took no longer than one token each: the machine is busy, or they are too short"
                )),
            }
            if name == OURS_MERGED {
                self.measurements.add(name, MERGE_S, finished.number("/seconds_merge")?);
            }
            answers.push((name, generation));
        }
        for (one, other) in [(0, 1), (2, 3), (2, 4)] {
            if let Some(note) = answers_differ(&answers[one], &answers[other]) {
                self.note(note);
            }
        }
        Ok(())
    }

    /// One round of the LoRA layer. Fewer passes of the large one take the same time.
    pub fn linear(&mut self, passes: usize) -> Result<()> {
        for (size, bf16_weight) in SIZES.into_iter().flat_map(|size| [(size, false), (size, true)]) {
            let passes = (passes * SIZES[0] / size).max(3);
            let figure = pass_ms(size, bf16_weight);
            let arguments = |mut command: Command| {
                command.args(["--size", &size.to_string(), "--passes", &passes.to_string()]);
                command.args(bf16_weight.then_some("--bf16-weight"));
                command
            };
            let mut command = arguments(self.programs.python.program("linear.py", self.programs.threads));
            let peer = self.run(&format!("PEFT's LoRA linear, {figure}"), &mut command)?;
            let ours = self.run(
                &format!("ferrotune's LoRA linear, {figure}"),
                &mut arguments(self.programs.measure("linear")),
            )?;
            self.measurements.add(PEFT_LINEAR, &figure, 1e3 * peer.number("/lora_s")?);
            self.measurements.add(OURS, &figure, 1e3 * ours.number("/lora_s")?);
            self.measurements.add(FROZEN_LINEAR, &figure, 1e3 * ours.number("/frozen_s")?);
            self.measurements.add(LIBTORCH_LINEAR, &figure, 1e3 * ours.number("/libtorch_s")?);
        }
        Ok(())
    }

    /// The demo, without downloads and build.
    pub fn demo(&mut self) -> Result<()> {
        let output = self.work("demo")?;
        let output = output.to_str().context("a recipe is UTF-8, and so must be the folder of `--out`")?;
        let recipe = workspace::root().join("examples/recipes/demo.toml");
        let settings = [format!("output_dir={output}"), format!("runtime.threads={}", self.programs.threads)];
        let finished = self.run("the demo", &mut self.programs.finetune(&recipe, &settings))?;
        self.measurements.add(DEMO, MINUTES, finished.seconds / 60.0);
        self.measurements.add(DEMO, GAIN, finished.number("/metrics/change/rougeL")?);
        self.measurements.add(DEMO, GAIN_LOW, finished.number("/metrics/change/rougeL_low")?);
        Ok(())
    }

    /// Both sides' form of the first `count` examples of a file.
    pub fn examples(&self, name: &str, input: &Path, count: usize) -> Result<PathBuf> {
        let path = self.out.join("work").join(format!("{name}.jsonl"));
        let mut command = self.programs.measure("examples");
        command.arg("--input").arg(input).arg("--limit").arg(count.to_string()).arg("--output").arg(&path);
        let found = self.run(&format!("reading {name}"), &mut command)?.number("/examples")?;
        ensure!(found > 0.0, super::BadInput(format!("{} has no examples", input.display())));
        Ok(path)
    }
}

/// Makes the folders of a run.
pub fn prepare(out: &Path) -> Result<()> {
    for folder in ["logs", "work"] {
        let folder = out.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(())
}

/// When the parts of a training began and ended, in seconds since the start of the process.
struct Training {
    begin: f64,
    first_step_end: f64,
    last_step_end: f64,
    losses: Vec<f64>,
}

impl Training {
    fn read(finished: &Finished) -> Result<Self> {
        let begin = finished.all("stage").find(|event| event.value["name"] == "training");
        let begin = begin.context("the program told no stage `training`")?.at;
        let mut steps = finished.all("step");
        let first = steps.next().context("the program told no step")?;
        let last = steps.next_back().unwrap_or(first);
        let losses = finished.events.iter().filter_map(|event| event.value["loss"].as_f64()).collect();
        Ok(Self { begin, first_step_end: first.at, last_step_end: last.at, losses })
    }
}

/// The first step does the same everywhere, the later ones almost: each side draws its own adapter.
fn losses_differ(losses: &[(String, Vec<f64>)]) -> Option<String> {
    const CLOSE: f64 = 1e-3;
    let first = |losses: &[f64]| losses.first().copied().unwrap_or(f64::NAN);
    let reference = losses.first().map(|(_, losses)| first(losses))?;
    let close = |loss: f64| ((loss - reference) / reference).abs() <= CLOSE;
    (!losses.iter().all(|(_, losses)| close(first(losses))))
        .then(|| format!("the losses of the first step differ by more than {CLOSE}: {losses:?}"))
}

struct Generation {
    whole: f64,
    /// `None` where other work on the machine hid it.
    decoding: Option<f64>,
    prompt_tokens: f64,
    answers: Vec<Value>,
}

impl Generation {
    fn read(finished: &Finished) -> Result<Self> {
        let answers = finished.done("/answers")?.as_array().context("`answers` is no list")?.clone();
        let tokens: usize = answers.iter().map(|ids| ids.as_array().map_or(0, Vec::len)).sum();
        let [seconds, one_more, one] =
            ["/seconds", "/seconds_one_more", "/seconds_one"].map(|pointer| finished.number(pointer));
        // As many tokens as one answer has lie between the first token of an answer and one more than its last.
        let decoding_s = one_more? - one?;
        Ok(Self {
            whole: tokens as f64 / seconds?,
            decoding: (decoding_s > 0.0).then(|| tokens as f64 / decoding_s),
            prompt_tokens: finished.number("/prompt_tokens")?,
            answers,
        })
    }
}

fn answers_differ(one: &(&str, Generation), other: &(&str, Generation)) -> Option<String> {
    let ((one_name, one), (other_name, other)) = (one, other);
    if one.prompt_tokens != other.prompt_tokens || one.answers.len() != other.answers.len() {
        return Some(format!(
            "{one_name} reads {} prompts of {} tokens, {other_name} {} of {}",
            one.answers.len(),
            one.prompt_tokens,
            other.answers.len(),
            other.prompt_tokens
        ));
    }
    let equal = one.answers.iter().zip(&other.answers).filter(|(one, other)| one == other).count();
    (equal < one.answers.len())
        .then(|| format!("{equal} of {} answers of {one_name} and {other_name} are equal", one.answers.len()))
}

#[cfg(test)]
mod tests {
    use super::super::child::Event;
    use super::*;
    use serde_json::json;

    fn finished(events: &[(f64, Value)]) -> Finished {
        let events = events.iter().map(|(at, value)| Event { at: *at, value: value.clone() }).collect();
        Finished { events, seconds: 100.0, peak_mib: None }
    }

    #[test]
    fn the_times_of_a_training_are_those_of_its_events() {
        let training = Training::read(&finished(&[
            (1.0, json!({"event": "stage", "name": "loading model"})),
            (2.0, json!({"event": "stage", "name": "training"})),
            (12.0, json!({"event": "step", "step": 1, "loss": 3.5})),
            (20.0, json!({"event": "step", "step": 2})),
            (20.1, json!({"event": "log", "step": 2, "loss": 3.25})),
            (21.0, json!({"event": "done"})),
        ]))
        .unwrap();
        assert_eq!((training.begin, training.first_step_end, training.last_step_end), (2.0, 12.0, 20.0));
        assert_eq!(training.losses, [3.5, 3.25]);
        let one = [(2.0, json!({"event": "stage", "name": "training"})), (9.0, json!({"event": "step"}))];
        assert_eq!(Training::read(&finished(&one)).unwrap().last_step_end, 9.0);
        assert!(Training::read(&finished(&one[1..])).is_err());
        assert!(Training::read(&finished(&one[..1])).is_err());
    }

    #[test]
    fn decoding_is_what_lies_beyond_the_first_token() {
        let done = |one_more: f64| {
            let answers = [[1, 2, 3, 4], [5, 6, 7, 8]];
            let value = json!({"event": "done", "answers": answers, "prompt_tokens": 20,
                "seconds": 4.0, "seconds_one_more": one_more, "seconds_one": 3.0});
            Generation::read(&finished(&[(9.0, value)]))
        };
        let generation = done(5.0).unwrap();
        assert_eq!((generation.whole, generation.decoding), (2.0, Some(4.0)));
        assert_eq!(done(2.5).unwrap().decoding, None);
    }

    #[test]
    fn sides_that_do_not_the_same_are_told() {
        let losses =
            |second: f64| losses_differ(&[("a".into(), vec![3.6745, 3.3]), ("b".into(), vec![second, 2.0])]);
        assert_eq!(losses(3.6746), None);
        assert!(losses(3.7).is_some_and(|note| note.contains("first step")));
        assert!(losses(f64::NAN).is_some());

        let side = |name: &'static str, prompt_tokens: f64, second: i64| {
            let answers = vec![json!([1, 2]), json!([3, second])];
            (name, Generation { whole: 1.0, decoding: None, prompt_tokens, answers })
        };
        assert_eq!(answers_differ(&side("a", 9.0, 4), &side("b", 9.0, 4)), None);
        let note = answers_differ(&side("a", 9.0, 4), &side("b", 9.0, 5)).unwrap();
        assert!(note.starts_with("1 of 2"), "{note}");
        assert!(
            answers_differ(&side("a", 9.0, 4), &side("b", 8.0, 4)).is_some_and(|note| note.contains("8"))
        );
    }
}
