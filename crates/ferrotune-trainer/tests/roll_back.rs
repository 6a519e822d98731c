//! A run that goes back to a checkpoint after a planted fault, killed or not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of a test panics as the test does")]

mod common;

use std::cell::{Cell, RefCell};

use common::{Disturbed, Examples, TokenModel};
use ferrotune_precision::DtypePolicy;
use ferrotune_trainer::{
    Action, BoxError, Callback, Checkpoint, Checkpointer, CsvReporter, Error, Finding, OptimizerState,
    Reporting, SavedRun, StepRecord, TrainOutcome, TrainableModel, Trainer, TrainerState, TrainingArguments,
    WatchActions,
};
use tch::Tensor;

struct Kept {
    state: String,
    parameters: Vec<(String, Tensor)>,
    optimizer: OptimizerState,
}

impl Kept {
    fn restored(&self) -> SavedRun {
        let copied = |tensors: &[(String, Tensor)]| {
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect::<Vec<_>>()
        };
        SavedRun {
            state: serde_json::from_str(&self.state).unwrap(),
            parameters: copied(&self.parameters),
            optimizer: OptimizerState { step: self.optimizer.step, tensors: copied(&self.optimizer.tensors) },
        }
    }
}

/// Checkpoints in memory, the oldest first.
#[derive(Default)]
struct Memory(RefCell<Vec<Kept>>);

impl Checkpointer for &Memory {
    fn save(&mut self, checkpoint: Checkpoint<'_>) -> Result<(), BoxError> {
        let mut kept = self.0.borrow_mut();
        kept.retain(|kept| kept.restored().state.global_step < checkpoint.state.global_step);
        kept.push(Kept {
            state: serde_json::to_string(checkpoint.state)?,
            parameters: checkpoint
                .parameters
                .iter()
                .map(|(name, t)| (name.clone(), t.detach().copy()))
                .collect(),
            optimizer: checkpoint.optimizer,
        });
        Ok(())
    }

    fn load_best(&mut self, _: usize) -> Result<Option<Vec<(String, Tensor)>>, BoxError> {
        Ok(None)
    }

    fn load_before(&mut self, step: usize) -> Result<Option<SavedRun>, BoxError> {
        let kept = self.0.borrow();
        Ok(kept.iter().rev().map(Kept::restored).find(|saved| saved.state.global_step < step))
    }
}

/// Where the run is, for the model; and what was heard.
struct Follow<'a> {
    done: &'a Cell<usize>,
    roll_backs: &'a Cell<usize>,
    heard: &'a RefCell<Vec<String>>,
    /// The run is left after this many further steps.
    steps_left: Option<usize>,
}

impl Callback for Follow<'_> {
    fn on_train_begin(
        &mut self,
        _: &ferrotune_trainer::TrainPlan,
        state: &TrainerState,
    ) -> Result<(), BoxError> {
        self.done.set(state.global_step);
        self.roll_backs.set(state.roll_backs.len());
        Ok(())
    }
    fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
        self.done.set(record.global_step);
        self.heard.borrow_mut().push(format!("step {} at {:e}", record.global_step, record.learning_rate));
        match &mut self.steps_left {
            Some(0) => return Err("left".into()),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }
    fn on_finding(&mut self, finding: &Finding) -> Result<(), BoxError> {
        self.heard.borrow_mut().push(format!("found at {}: {}", finding.step, finding.what));
        Ok(())
    }
    fn on_roll_back(&mut self, state: &TrainerState) -> Result<(), BoxError> {
        self.done.set(state.global_step);
        self.roll_backs.set(state.roll_backs.len());
        self.heard.borrow_mut().push(format!("back to {}", state.global_step));
        Ok(())
    }
}

struct Run {
    outcome: Result<TrainOutcome, Error>,
    heard: Vec<String>,
    values: Vec<(String, Vec<f32>)>,
}

/// A run in f32.
fn run(
    memory: &Memory,
    faults: &[(usize, usize)],
    steps_left: Option<usize>,
    reporting: Option<Reporting>,
) -> Run {
    run_in(false, memory, faults, steps_left, reporting)
}

/// 20 steps with checkpoints every 4, from the newest of `memory`. The loss of the step of a fault is NaN as long as the run
/// went back fewer than so many times.
fn run_in(
    fp16: bool,
    memory: &Memory,
    faults: &[(usize, usize)],
    steps_left: Option<usize>,
    reporting: Option<Reporting>,
) -> Run {
    let (done, roll_backs, heard) = (Cell::new(0), Cell::new(0), RefCell::default());
    let mut dataset = Examples::patterned(16);
    let count = dataset.examples.len();
    dataset.orders = (0..9).map(|epoch| (0..count).map(|i| (i + 3 * epoch) % count).collect()).collect();
    let policy = DtypePolicy::from_flags(false, fp16).unwrap();
    let model = TokenModel { noise: 0.4, policy, ..TokenModel::small() };
    let factor = || {
        let (step, times) = (done.get() + 1, roll_backs.get());
        let is_bad = faults.iter().any(|(at, until)| *at == step && times < *until);
        if is_bad { f64::NAN } else { 1.0 }
    };
    let model = Disturbed { model, factor };
    let arguments = TrainingArguments {
        learning_rate: 1e-2,
        per_device_train_batch_size: 4,
        max_steps: 20,
        save_steps: 4.0,
        logging_steps: 1.0,
        fp16,
        ..Default::default()
    };
    let actions = WatchActions { non_finite: Some(Action::RollBack), ..Default::default() };
    let follow = Follow { done: &done, roll_backs: &roll_backs, heard: &heard, steps_left };
    let mut trainer = Trainer::new(&model, arguments, &dataset)
        .unwrap()
        .with_watch_actions(actions)
        .unwrap()
        .with_callback(follow)
        .with_checkpointer(memory);
    if let Some(reporting) = reporting {
        trainer = trainer.with_callback(reporting);
    }
    let newest = memory.0.borrow().last().map(Kept::restored);
    if let Some(SavedRun { state, parameters, optimizer }) = newest {
        tch::no_grad(|| {
            for (name, value) in &parameters {
                model.model.get(name).shallow_clone().copy_(value);
            }
        });
        trainer.resume(state, &optimizer).unwrap();
    }
    let outcome = trainer.train();
    drop(trainer);
    let values = model.model.values();
    Run { outcome, heard: heard.into_inner(), values }
}

/// `linear` over 20 steps.
fn rate(step: usize, halvings: i32) -> String {
    format!("step {step} at {:e}", 1e-2 * ((20 - (step - 1)) as f64 / 20.0) * 0.5_f64.powi(halvings))
}

#[test]
fn a_fault_sends_the_run_back_to_the_last_checkpoint_and_on_with_half_the_rate() {
    let run = run(&Memory::default(), &[(11, 1)], None, None);
    let outcome = run.outcome.unwrap();
    assert_eq!((outcome.global_step, outcome.findings.len(), outcome.ended_by), (20, 1, None));
    let mut expected: Vec<String> = (1..=10).map(|step| rate(step, 0)).collect();
    assert!(run.heard[10].starts_with("found at 11: the loss is NaN"), "{:?}", run.heard);
    assert!(run.heard[10].contains("train.jsonl:"), "{}", run.heard[10]);
    expected.extend([run.heard[10].clone(), "back to 8".to_owned()]);
    expected.extend((9..=20).map(|step| rate(step, 1)));
    assert_eq!(run.heard, expected);
    let steps: Vec<usize> = outcome.history.iter().map(|record| record.step).collect();
    assert_eq!(steps, (1..=20).collect::<Vec<_>>(), "each step is logged once");
}

#[test]
fn without_a_checkpoint_the_run_goes_back_to_its_start_and_does_what_a_new_one_does() {
    let run_back = run(&Memory::default(), &[(3, 1)], None, None);
    assert_eq!(run_back.heard[3], "back to 0");
    assert_eq!(run_back.heard[4..], (1..=20).map(|step| rate(step, 1)).collect::<Vec<_>>());
    // As if it had been begun with that rate.
    let memory = Memory::default();
    let state = serde_json::from_str::<TrainerState>(
        r#"{"roll_backs": [{"from": 3, "to": 0}], "train_batch_size": 4}"#,
    )
    .unwrap();
    let parameters = TokenModel::small().trainable_parameters();
    let zeros = |kind: &str| {
        let zero =
            |(name, tensor): &(String, Tensor)| (format!("{name}.{kind}"), tensor.detach().zeros_like());
        parameters.iter().map(zero).collect::<Vec<_>>()
    };
    let tensors = zeros("exp_avg").into_iter().chain(zeros("exp_avg_sq")).collect();
    memory.0.borrow_mut().push(Kept {
        state: serde_json::to_string(&state).unwrap(),
        parameters: parameters.iter().map(|(name, t)| (name.clone(), t.detach().copy())).collect(),
        optimizer: OptimizerState { step: 0, tensors },
    });
    assert_eq!(run(&memory, &[], None, None).values, run_back.values);
}

#[test]
fn a_fault_that_comes_again_ends_the_run_with_clear_words() {
    let run = run(&Memory::default(), &[(11, 9)], None, None);
    let error = run.outcome.unwrap_err();
    let Error::RollBacksSpent { roll_backs, ref finding, .. } = error else { panic!("{error}") };
    assert_eq!((roll_backs, finding.step), (3, 11));
    let message = error.to_string();
    for words in [
        "went back 3 times",
        "half the learning rate",
        "non_finite",
        "step 11: the loss is NaN",
        "far below 1e-2",
    ] {
        assert!(message.contains(words), "{words} in {message}");
    }
    let back: Vec<&String> = run.heard.iter().filter(|heard| heard.starts_with("back")).collect();
    assert_eq!(back, ["back to 8", "back to 4", "back to 0"]);
    assert!(run.values.iter().all(|(_, values)| values.iter().all(|value| value.is_finite())));
}

#[test]
fn a_checkpoint_right_before_the_fault_is_none_to_go_back_to() {
    // The step is made from its parameters, whatever the rate.
    let run = run(&Memory::default(), &[(9, 1)], None, None);
    assert!(run.outcome.is_ok());
    assert!(run.heard.contains(&"back to 4".to_owned()), "{:?}", run.heard);
}

#[test]
fn killed_after_any_step_it_goes_the_way_of_the_unbroken_run() {
    let faults = [(3, 1), (11, 2), (18, 3)];
    for fp16 in [false, true] {
        let unbroken = run_in(fp16, &Memory::default(), &faults, None, None);
        let expected = unbroken.outcome.unwrap();
        let count = |what: &str| unbroken.heard.iter().filter(|heard| heard.starts_with(what)).count();
        assert_eq!(count("back"), 3, "{:?}", unbroken.heard);
        for left in 0..count("step") {
            let memory = Memory::default();
            let killed = run_in(fp16, &memory, &faults, Some(left), None);
            assert!(matches!(killed.outcome, Err(Error::Callback { .. })), "{left}");
            let resumed = run_in(fp16, &memory, &faults, None, None);
            assert_eq!(
                resumed.values, unbroken.values,
                "killed after {left} steps, fp16 {fp16}: {:?}",
                resumed.heard
            );
            let outcome = resumed.outcome.unwrap();
            assert_eq!(
                (outcome.history, outcome.findings),
                (expected.history.clone(), expected.findings.clone()),
                "{left}"
            );
        }
    }
}

#[test]
fn reporters_have_each_step_once() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("roll_back");
    let _ = std::fs::remove_dir_all(&folder);
    let memory = Memory::default();
    let reporting = || {
        let arguments = TrainingArguments { report_to: vec!["jsonl".into()], ..Default::default() };
        Reporting::new(&arguments, &folder).unwrap().with_reporter(CsvReporter::new(&folder))
    };
    let killed = run(&memory, &[(11, 1)], Some(16), Some(reporting()));
    assert!(killed.outcome.is_err());
    let resumed = run(&memory, &[(11, 1)], None, Some(reporting()));
    let expected: Vec<f64> = resumed.outcome.unwrap().history.iter().map(|record| record.loss).collect();
    let csv = std::fs::read_to_string(folder.join("log.csv")).unwrap();
    let cells = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let losses = cells.filter(|cells| cells[2] == "train/loss").map(|cells| cells[3].parse().unwrap());
    assert_eq!(losses.collect::<Vec<f64>>(), expected);
    let jsonl = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let lines = jsonl.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let losses = lines.filter(|line| line["tag"] == "train/loss").map(|line| line["value"].as_f64().unwrap());
    assert_eq!(losses.collect::<Vec<f64>>(), expected);
}
