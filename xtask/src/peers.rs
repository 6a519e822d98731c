//! `cargo xtask peers`: the figures of `docs/benchmarks.md`, ours and Python's in turn, in one run on one machine.
//!
//! Every measurement is a process of its own that tells events (`child`); ours are release builds, Python's are the programs
//! in `xtask/peers`.

mod child;
mod figures;
mod plot;
mod programs;
mod python;
mod samples;
mod scaling;
mod table;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use serde_json::{Value, json};

use self::figures::{
    Bench, DECODING, DEMO, FROZEN_LINEAR, GAIN_LOW, GEMM_SHARE, LIBTORCH_LINEAR, MINUTES, OURS, OURS_ADAPTER,
    OURS_MERGED, PADDED, PADDING_FREE, PEAK_MIB, PEFT_LINEAR, SIZES, TO_FIRST_STEP_END_S, TO_FIRST_STEP_S,
    TOKENS_PER_S, TRANSFORMERS, TRANSFORMERS_PEFT, WHOLE, pass_ms,
};
use self::programs::Programs;
use self::python::Python;
use self::samples::Measurements;
use self::table::{Compare, Goal, Row};
use crate::{data, doctor, files, process, setup, workspace};

pub const EXAMPLES: &str = "\
Examples:
  cargo xtask peers
  cargo xtask peers --quick
  cargo xtask peers --only linear --repeats 5
  cargo xtask peers --train train.jsonl --test test.jsonl --python ~/venv/bin/python
  cargo xtask peers --demo --scaling

The figures are worth something only on a machine that does nothing else. All of them take about half an hour on two cores, the
scaling curves half an hour more. The Python packages are installed once, into the cache (torch's wheels are large: 12 GB for a
moment); `--python` names an interpreter that has them already.

Exit codes: 0 measured, whether the goals are met or not, 2 the machine or the input cannot be used, 1 anything else.";

/// Prompts of the generation.
const PROMPTS: usize = 8;

#[derive(clap::Args)]
pub struct Arguments {
    /// Examples to train on, JSONL [default: those of the demo]
    #[arg(long, value_name = "FILE", requires = "test")]
    train: Option<PathBuf>,
    /// Examples whose prompts are answered, JSONL [default: those of the demo]
    #[arg(long, value_name = "FILE", requires = "train")]
    test: Option<PathBuf>,
    /// Take the first so many of the training examples: 32 make an optimizer step
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count())]
    train_examples: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count())]
    new_tokens: usize,
    /// Rounds: in each, every program runs once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = count())]
    repeats: usize,
    /// Threads of every program [default: all cores]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    threads: Option<usize>,
    /// A Python with the packages of xtask/peers/requirements.txt, instead of an environment in the cache
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Round the weights of the demo's model to bf16 and store them so, as most models are published; both sides compute in f32
    #[arg(long, conflicts_with = "demo")]
    bf16_weights: bool,
    /// Only these figures
    #[arg(long, value_name = "FIGURES", value_delimiter = ',')]
    only: Vec<Figures>,
    /// Run the demo, too
    #[arg(long)]
    demo: bool,
    /// Measure, too, how a step of ours scales with the length of a sequence and the size of the model, and plot it
    #[arg(long)]
    scaling: bool,
    /// One round with little work, to see that everything runs
    #[arg(long)]
    quick: bool,
    /// Folder for peers.json, table.md, plots and logs
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    out: PathBuf,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Debug)]
enum Figures {
    Training,
    Generation,
    Linear,
}

fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// What the user can mend.
#[derive(Debug)]
pub struct BadInput(pub String);

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Measures, prints the table and writes everything into `out`.
///
/// # Errors
/// [`BadInput`] with the remedy; others if a program fails, with the end of its log.
pub fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.quick {
        arguments.repeats = 1;
        arguments.train_examples = arguments.train_examples.min(8);
        arguments.new_tokens = arguments.new_tokens.min(4);
    }
    let threads = arguments.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let load_before = load(); // what others do: our own builds come after it
    // What can be known to be wrong is said before anything is fetched or built.
    let files = match (&arguments.train, &arguments.test) {
        (Some(train), Some(test)) => Some((readable(train)?, readable(test)?)),
        _ => None,
    };
    if let Some(load) = load_before.filter(|load| *load > 0.5) {
        eprintln!("peers: note: the load average is {load}: wait until the machine does nothing else");
    }
    let out = std::path::absolute(&arguments.out)?;
    figures::prepare(&out).map_err(|error| anyhow!(BadInput(format!("{error:#}"))))?;
    let _lock = files::Lock::acquire(&out, "peers")?;
    let python = Python::provide(&workspace::cache()?, arguments.python.as_deref())?;
    let python_versions = python.versions(threads, &out.join("logs/versions.log"))?;
    let model = setup::run()?;
    let (train, test) = match files {
        Some(files) => files,
        None => {
            let folder = data::of_frozen_crates(None, false)?;
            (folder.join("train.jsonl"), folder.join("test.jsonl"))
        }
    };
    model.import("release")?;
    let mut programs = Programs::build(python, model.directory(), threads)?;
    if arguments.bf16_weights {
        programs.round_weights(&out)?;
    }
    let machine = machine(threads, python_versions);
    let mut bench = Bench {
        programs: &programs,
        out: &out,
        measurements: Measurements::default(),
        notes: Vec::new(),
        losses: Vec::new(),
    };
    let train = bench.examples("train", &train, arguments.train_examples)?;
    let prompts = bench.examples("prompts", &test, PROMPTS)?;
    warm(&programs.model)?;

    // What was measured before a program failed is kept.
    let (scaling, failure) = match measure(&mut bench, &arguments, &train, &prompts) {
        Ok(scaling) => (scaling, None),
        Err(error) => {
            bench.notes.push("the run broke off before its end".into());
            (None, Some(error))
        }
    };
    let rows = rows(&bench.measurements);
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let all = json!({
        "command": format!("cargo xtask {command}"),
        "quick": arguments.quick,
        "machine": machine,
        "load_average": { "before": load_before, "after": load() },
        "settings": settings(&arguments, threads),
        "table": table::as_json(&rows),
        "programs": bench.measurements.as_json(),
        "losses": bench.losses.iter().map(|(name, losses)| (name.clone(), json!(losses))).collect::<serde_json::Map<_, _>>(),
        "scaling": scaling,
        "notes": bench.notes,
    });
    let page = page(&all, &rows, &bench.measurements);
    files::write(&out.join("peers.json"), format!("{all:#}\n").as_bytes())?;
    files::write(&out.join("table.md"), page.as_bytes())?;
    println!("{page}");
    eprintln!("peers: everything is in {}", out.display());
    failure.map_or(Ok(()), Err)
}

/// All rounds, the demo and the scaling curves, as wanted.
fn measure(bench: &mut Bench, arguments: &Arguments, train: &Path, prompts: &Path) -> Result<Option<Value>> {
    let linear_passes = if arguments.quick { 8 } else { 80 };
    let wanted = |figures: Figures| arguments.only.is_empty() || arguments.only.contains(&figures);
    let mut adapter = None;
    for round in 1..=arguments.repeats {
        eprintln!("peers: round {round} of {}", arguments.repeats);
        if wanted(Figures::Training) {
            adapter = Some(bench.training(train)?);
        }
        if wanted(Figures::Generation) {
            let adapter = match &adapter {
                Some(adapter) => adapter,
                None => adapter.insert(bench.adapter(train)?),
            };
            bench.generation(prompts, adapter, arguments.new_tokens)?;
        }
        if wanted(Figures::Linear) {
            bench.linear(linear_passes)?;
        }
    }
    if arguments.demo {
        bench.demo()?;
    }
    match arguments.scaling {
        true => scaling::measure(bench, arguments.repeats, arguments.quick).map(Some),
        false => Ok(None),
    }
}

/// The file, absolute: the programs start elsewhere.
fn readable(path: &Path) -> Result<PathBuf> {
    let bad = |error: io::Error| anyhow!(BadInput(format!("cannot read {}: {error}", path.display())));
    let metadata = fs::metadata(path).map_err(bad)?;
    if !metadata.is_file() {
        return Err(anyhow!(BadInput(format!("{} is not a file: name a JSONL file", path.display()))));
    }
    fs::File::open(path).map_err(bad)?;
    Ok(std::path::absolute(path)?)
}

/// Reads the model's files once, so that no program is the one that waits for the disk.
fn warm(model: &Path) -> Result<()> {
    for entry in fs::read_dir(model)? {
        let path = entry?.path();
        if path.is_file() {
            io::copy(&mut fs::File::open(path)?, &mut io::sink())?;
        }
    }
    Ok(())
}

fn machine(threads: usize, python: Value) -> Value {
    let said = |mut command: Command| process::output(&mut command).map(|text| text.trim().to_owned()).ok();
    let command = |name: &str, arguments: &[&str]| {
        let mut command = workspace::program(name);
        command.args(arguments);
        said(command)
    };
    let set: Vec<String> = std::env::vars()
        .filter(|(name, _)| {
            ["OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "LD_PRELOAD"].iter().any(|it| name.starts_with(it))
        })
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    json!({
        "cpu": doctor::cpu(),
        "torch_cpu_capability": python["cpu"],
        "cores": thread::available_parallelism().map_or(1, usize::from),
        "threads": threads,
        "system": command("uname", &["-sr"]),
        "date": command("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        "python": python["versions"],
        "libtorch": workspace::cache().and_then(|cache| setup::libtorch(&cache)).ok(),
        "rustc": command("rustc", &["--version"]),
        "ferrotune": command("git", &["describe", "--always", "--dirty"]),
        "environment": set,
    })
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

fn settings(arguments: &Arguments, threads: usize) -> Value {
    let mut settings = Programs::settings();
    settings["threads"] = threads.into();
    settings["train"] = json!(arguments.train.as_deref().unwrap_or(Path::new("the demo's")));
    settings["test"] = json!(arguments.test.as_deref().unwrap_or(Path::new("the demo's")));
    settings["train_examples"] = arguments.train_examples.into();
    settings["prompts"] = PROMPTS.into();
    settings["new_tokens"] = arguments.new_tokens.into();
    settings["repeats"] = arguments.repeats.into();
    settings["bf16_weights"] = arguments.bf16_weights.into();
    settings
}

/// The rows of the table, each figure with its goal.
fn rows(measurements: &Measurements) -> Vec<Row> {
    let ours = |program: &str, figure: &str| measurements.get(program, figure).cloned();
    let peer = |program: &str, figure: &str| Some((program.to_owned(), ours(program, figure)?));
    // Python's best mode for this figure.
    let best = |figure: &str, better: fn(f64, f64) -> bool| {
        let modes = [PADDED, PADDING_FREE].into_iter().filter_map(|program| peer(program, figure));
        modes.reduce(|one, other| if better(other.1.median(), one.1.median()) { other } else { one })
    };
    let more = |one: f64, other: f64| one > other;
    let less = |one: f64, other: f64| one < other;
    let row =
        |figure: &str, peer, ours, compare, goal| Row { figure: figure.into(), peer, ours, compare, goal };
    let mut rows = vec![
        row(
            "training, real tokens/s",
            best(TOKENS_PER_S, more),
            ours(OURS, TOKENS_PER_S),
            Compare::OursByPeer,
            Some(Goal::AtLeast(2.2)),
        ),
        row(GEMM_SHARE, None, ours(OURS, GEMM_SHARE), Compare::Ours(" %"), Some(Goal::AtLeast(85.0))),
        row(
            "training, peak resident memory, MiB",
            best(PEAK_MIB, less),
            ours(OURS, PEAK_MIB),
            Compare::OursByPeer,
            Some(Goal::AtMost(0.333)),
        ),
        row(
            "generation, new tokens/s of the whole call",
            peer(TRANSFORMERS, WHOLE),
            ours(OURS, WHOLE),
            Compare::OursByPeer,
            Some(Goal::AtLeast(2.2)),
        ),
        row(
            "generation, new tokens/s of decoding alone",
            peer(TRANSFORMERS, DECODING),
            ours(OURS, DECODING),
            Compare::OursByPeer,
            Some(Goal::AtLeast(3.0)),
        ),
    ];
    // Theirs is applied beside the weights, as an adapter is that one wants to change or to leave out.
    for (program, how) in [(OURS_ADAPTER, "applied"), (OURS_MERGED, "merged")] {
        for (figure, what, goal) in
            [(WHOLE, "the whole call", Some(Goal::AtLeast(5.0))), (DECODING, "decoding alone", None)]
        {
            rows.push(row(
                &format!("generation with an adapter, ours {how}, new tokens/s of {what}"),
                peer(TRANSFORMERS_PEFT, figure),
                ours(program, figure),
                Compare::OursByPeer,
                goal,
            ));
        }
    }
    for (size, by_frozen, by_peft) in [(SIZES[0], 1.15, 1.25), (SIZES[1], 1.05, 1.45)] {
        for bf16_weight in [false, true] {
            let figure = pass_ms(size, bf16_weight);
            let name = format!("LoRA linear, {figure}");
            for (program, compare, goal) in [
                (FROZEN_LINEAR, Compare::OursByPeer, Some(Goal::AtMost(by_frozen))),
                (LIBTORCH_LINEAR, Compare::OursByPeer, None),
                (PEFT_LINEAR, Compare::PeerByOurs, Some(Goal::AtLeast(by_peft))),
            ] {
                rows.push(row(&name, peer(program, &figure), ours(OURS, &figure), compare, goal));
            }
        }
    }
    rows.push(row(
        "start of the process to the first step, s",
        best(TO_FIRST_STEP_S, less),
        ours(OURS, TO_FIRST_STEP_S),
        Compare::PeerByOurs,
        Some(Goal::AtLeast(10.0)),
    ));
    rows.push(row(
        "start of the process to the end of the first step, s",
        best(TO_FIRST_STEP_END_S, less),
        ours(OURS, TO_FIRST_STEP_END_S),
        Compare::PeerByOurs,
        None,
    ));
    rows.push(row(
        "the demo, minutes",
        None,
        ours(DEMO, MINUTES),
        Compare::Ours(" min"),
        Some(Goal::AtMost(12.0)),
    ));
    rows.push(row(
        "the demo, gain in ROUGE-L, lower end of its interval",
        None,
        ours(DEMO, GAIN_LOW),
        Compare::Ours(""),
        Some(Goal::AtLeast(0.0)),
    ));
    rows
}

/// What is printed: the table, every program's figures, and what they were measured with.
fn page(all: &Value, rows: &[Row], measurements: &Measurements) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let one = |(name, value): (&String, &Value)| {
                format!("{name} {}", value.as_str().unwrap_or(&value.to_string()))
            };
            fields.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Value::Array(values) if values.is_empty() => "-".into(),
        other => other.to_string(),
    };
    let mut page = String::new();
    if all["quick"] == true {
        page += "**A quick run: it shows that everything works, and its figures say nothing.**\n\n";
    }
    page += "Medians, with the smallest and the largest round in parentheses. The ratio is that of the medians.\n\n";
    page += &table::markdown(rows);
    page += "\n| Program | Figure | Median (spread) |\n|---|---|---|\n";
    for (program, figure, samples) in measurements.all() {
        page += &format!("| {program} | {figure} | {} |\n", samples.shown());
    }
    page += "\n| What | Value |\n|---|---|\n";
    page += &format!("| Command | `{}` |\n", text(&all["command"]));
    for part in ["machine", "settings"] {
        for (name, value) in all[part].as_object().into_iter().flatten() {
            page += &format!("| {name} | {} |\n", text(value));
        }
    }
    page += &format!(
        "| load average | {} |\n| losses | {} |\n",
        text(&all["load_average"]),
        text(&all["losses"])
    );
    for note in all["notes"].as_array().into_iter().flatten() {
        page += &format!("\nNote: {}.\n", text(note));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measurements {
        let mut measurements = Measurements::default();
        for (program, figure, value) in [
            (PADDED, TOKENS_PER_S, 119.0),
            (PADDING_FREE, TOKENS_PER_S, 149.0),
            (OURS, TOKENS_PER_S, 350.0),
            (PADDED, PEAK_MIB, 4_300.0),
            (PADDING_FREE, PEAK_MIB, 4_900.0),
            (OURS, PEAK_MIB, 1_500.0),
            (FROZEN_LINEAR, "forward + backward at 576x576, ms", 4.0),
            (OURS, "forward + backward at 576x576, ms", 4.4),
            (PEFT_LINEAR, "forward + backward at 576x576, ms", 6.6),
        ] {
            measurements.add(program, figure, value);
        }
        measurements
    }

    #[test]
    fn the_peer_is_its_best_mode_for_each_figure() {
        let rows = rows(&measured());
        let find = |name: &str| rows.iter().find(|row| row.figure.starts_with(name)).unwrap();
        let speed = find("training, real");
        assert_eq!(speed.peer.as_ref().unwrap().0, PADDING_FREE);
        assert_eq!(speed.met(), Some(true));
        let memory = find("training, peak");
        assert_eq!(memory.peer.as_ref().unwrap().0, PADDED);
        assert_eq!(memory.met(), Some(false)); // 1500 of 4300 is more than a third
        let linear: Vec<_> = rows.iter().filter(|row| row.figure.contains("576x576, ms")).collect();
        assert_eq!(linear.iter().map(|row| row.met()).collect::<Vec<_>>(), [Some(true), None, Some(true)]);
        assert_eq!(find(GEMM_SHARE).met(), None);
    }

    #[test]
    fn the_page_has_the_table_the_figures_and_what_they_were_measured_with() {
        let all = json!({
            "command": "cargo xtask peers", "quick": false, "machine": {"cpu": "A CPU", "python": {"torch": "2.13.0"}},
            "settings": {"threads": 2}, "load_average": {"before": 0.1, "after": null},
            "losses": {"ferrotune": [3.5]}, "notes": ["7 of 8 answers"],
        });
        let measurements = measured();
        let text = page(&all, &rows(&measurements), &measurements);
        for part in [
            "| training, real tokens/s | TRL + PEFT, padding-free | 149 | 350 | 2.35x | ≥ 2.2x | yes |",
            "| ferrotune | peak memory, MiB | 1,500 |",
            "| Command | `cargo xtask peers` |",
            "| python | torch 2.13.0 |",
            "| threads | 2 |",
            "| losses | ferrotune [3.5] |",
            "Note: 7 of 8 answers.",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("quick"));
    }
}
