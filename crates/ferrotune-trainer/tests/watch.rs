//! Each watcher fires on its fault, and all are silent on healthy runs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of a test panics as the test does")]

mod common;

use std::cell::{Cell, RefCell};
use std::ops::RangeInclusive;

use common::{Disturbed, Examples, TokenModel};
use ferrotune_trainer::{
    Action, BoxError, Callback, Error, EvaluationRecord, Finding, IntervalStrategy, LogEntry, Observation,
    ParameterNorm, RandomKey, SchedulerType, StepRecord, StepSignals, TrainOutcome, Trainer,
    TrainingArguments, WatchActions, WatcherKind, Watchers,
};

/// Numbers of a normal distribution, drawn from a seed.
struct Noise(RandomKey, u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(RandomKey::from_seed(seed), 0)
    }

    fn uniform(&mut self) -> f64 {
        self.1 += 1;
        f64::from(self.0.fold(self.1).uniform(1)[0])
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }
}

/// A run as its curves, each a function of the step.
struct Simulation<'a> {
    seed: u64,
    max_steps: usize,
    /// Deviation of the noise, as a share of the loss.
    noise: f64,
    loss: &'a dyn Fn(f64) -> f64,
    validation: &'a dyn Fn(f64) -> f64,
    rate: &'a dyn Fn(f64) -> f64,
    norms: &'a dyn Fn(f64) -> Vec<(&'static str, f64)>,
}

/// Falls from 3 to 1, most of it in a quarter of the run.
fn falling(step: f64, max_steps: usize) -> f64 {
    1.0 + 2.0 * (-4.0 * step / max_steps as f64).exp()
}

/// Warm-up over 5 % of the run, then linear to 0.
fn linear(step: f64, max_steps: usize) -> f64 {
    let share = (step - 1.0) / max_steps as f64;
    2e-4 * (share / 0.05).min((1.0 - share) / 0.95)
}

const NAMES: [&str; 4] =
    ["0.q_proj.lora_B.weight", "0.v_proj.lora_B.weight", "1.q_proj.lora_B.weight", "1.v_proj.lora_B.weight"];

fn growing(step: f64) -> Vec<(&'static str, f64)> {
    NAMES.iter().zip(1u8..).map(|(name, index)| (*name, 0.01 * f64::from(index) * step.sqrt())).collect()
}

impl Simulation<'_> {
    fn observe(&self, watchers: &mut Watchers, steps: RangeInclusive<usize>) -> Vec<Finding> {
        let actions = &WatchActions::default();
        let mut found = Vec::new();
        for step in steps {
            let at = step as f64;
            let mut noise = Noise(RandomKey::from_seed(self.seed).fold(step as u64), 0);
            let mut loss = (self.loss)(at) * (self.noise * noise.normal()).exp();
            if noise.uniform() < 0.01 {
                loss *= 1.3; // A hard batch.
            }
            let signals = StepSignals {
                step,
                max_steps: self.max_steps,
                loss,
                grad_norm: 1.0,
                learning_rate: (self.rate)(at),
            };
            found.extend(watchers.observe(Observation::Step(signals), actions));
            if step % (self.max_steps / 40).max(1) == 0 {
                let norm =
                    |(name, norm): (&str, f64)| ParameterNorm { name: name.into(), elements: 64, norm };
                let norms: Vec<_> = (self.norms)(at).into_iter().map(norm).collect();
                found.extend(watchers.observe(Observation::Norms { step, norms: &norms }, actions));
            }
            if step % (self.max_steps / 10) == 0 {
                let loss = (self.validation)(at) * (1.0 + 0.003 * noise.normal());
                let record = evaluation(step, loss);
                found.extend(watchers.observe(Observation::Evaluation(&record), actions));
            }
        }
        found
    }

    fn findings(&self) -> Vec<Finding> {
        self.observe(&mut Watchers::default(), 1..=self.max_steps)
    }

    fn kinds(&self) -> Vec<WatcherKind> {
        self.findings().iter().map(|finding| finding.watcher).collect()
    }
}

fn evaluation(step: usize, loss: f64) -> EvaluationRecord {
    // Read as from a checkpoint: the types cannot be built outside of their crate.
    let text = format!(
        r#"{{"step":{step},"epoch":0.0,"eval_loss":{loss:e},"eval_nll":1.0,"eval_target_tokens":1,"eval_examples":1,
            "eval_runtime":0.0,"evaluations_left":0}}"#
    );
    match serde_json::from_str(&text).unwrap() {
        LogEntry::Evaluation(record) => record,
        other => panic!("{other:?}"),
    }
}

/// A healthy run; a fault changes what it likes of it.
fn healthy<R>(seed: u64, change: impl FnOnce(Simulation<'_>) -> R) -> R {
    let max_steps = 1000;
    change(Simulation {
        seed,
        max_steps,
        noise: 0.08,
        loss: &|step| falling(step, max_steps),
        validation: &|step| 1.1 * falling(step, max_steps),
        rate: &|step| linear(step, max_steps),
        norms: &growing,
    })
}

#[test]
fn twenty_healthy_runs_of_all_lengths_and_noises_are_silent() {
    for seed in 0..20 {
        let mut draw = Noise::new(1000 + seed);
        let max_steps = [120, 300, 500, 1000, 2500][seed as usize % 5];
        let (lowest, height) = (draw.between(0.3, 2.0), draw.between(0.8, 3.0));
        let pace = draw.between(2.0, 6.0) / max_steps as f64;
        let curve = |step: f64| lowest + height * (-pace * step).exp();
        let rate = |step: f64| match seed % 3 {
            0 => linear(step, max_steps),
            1 => 1e-4 * 0.5 * (1.0 + (std::f64::consts::PI * step / max_steps as f64).cos()),
            _ => 1e-3,
        };
        let noise = draw.between(0.02, 0.2);
        let run = Simulation {
            seed,
            max_steps,
            noise,
            loss: &curve,
            validation: &|step| 1.05 * curve(step),
            rate: &rate,
            norms: &growing,
        };
        assert_eq!(run.findings(), [], "seed {seed}, {max_steps} steps, noise {noise:.2}, pace {pace:.4}");
    }
}

#[test]
fn true_runs_of_a_small_model_are_silent() {
    let dataset = Examples::patterned(48);
    for (seed, scheduler) in
        [(1, SchedulerType::Linear), (2, SchedulerType::Cosine), (3, SchedulerType::Linear)]
    {
        let model = TokenModel { noise: 0.3, ..TokenModel::small() };
        let arguments = TrainingArguments {
            learning_rate: 5e-3,
            lr_scheduler_type: scheduler,
            warmup_steps: 0.05,
            per_device_train_batch_size: 4,
            max_steps: 250,
            logging_steps: 10.0,
            eval_strategy: IntervalStrategy::Steps,
            eval_steps: Some(25.0),
            seed,
            ..Default::default()
        };
        let outcome =
            Trainer::new(&model, arguments, &dataset).unwrap().with_validation(&dataset).train().unwrap();
        let losses: Vec<f64> = outcome.history.iter().map(|record| record.loss).collect();
        assert!(losses[24] < 0.6 * losses[0], "it learns: {losses:?}");
        assert_eq!(outcome.findings, [], "seed {seed}: {losses:?}");
    }
}

#[test]
fn a_spike_is_found_at_its_step_and_nothing_else_is() {
    for seed in 0..10 {
        healthy(seed, |run| {
            let loss = |step: f64| (run.loss)(step) * if step == 400.0 { 3.5 } else { 1.0 };
            let found = Simulation { loss: &loss, ..run }.findings();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].watcher, found[0].step), (WatcherKind::LossSpike, 400));
        });
    }
}

#[test]
fn a_loss_that_fell_and_falls_no_more_is_a_plateau() {
    for seed in 0..10 {
        healthy(seed, |run| {
            let loss = |step: f64| 1.5 + 1.5 * (-step / 30.0).exp();
            let kinds = Simulation { loss: &loss, validation: &loss, rate: &|_| 1e-3, ..run }.kinds();
            assert!(kinds.contains(&WatcherKind::Plateau), "seed {seed}: {kinds:?}");
            assert!(kinds.iter().all(|kind| *kind == WatcherKind::Plateau), "{kinds:?}");
        });
    }
}

#[test]
fn a_validation_loss_that_rises_while_the_training_loss_falls_is_overfitting() {
    for seed in 0..10 {
        healthy(seed, |run| {
            let validation = |step: f64| 2.0 + 0.4 * (step / 1000.0 - 0.3).abs() * 2.0;
            let found = Simulation { validation: &validation, ..run }.findings();
            assert_eq!(found.len(), 1, "said once: {found:?}");
            assert_eq!((found[0].watcher, found[0].step), (WatcherKind::Overfitting, 500));
            assert!(found[0].what.contains("lowest after step 300"), "{}", found[0]);
        });
    }
}

#[test]
fn adapters_that_stay_zero_or_explode_are_named() {
    healthy(0, |run| {
        let norms = |step: f64| {
            let mut norms = growing(step);
            norms[2].1 = 0.0;
            norms
        };
        let found = Simulation { norms: &norms, ..run }.findings();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].watcher, found[0].step), (WatcherKind::DeadParameter, 25));
        assert!(found[0].what.contains("zero after 24 steps: 1.q_proj.lora_B.weight"), "{}", found[0]);
    });
    let explosions: [&dyn Fn(f64) -> f64; 2] =
        [&|step| if step < 500.0 { 1.0 } else { 100.0 }, &|step| (step / 25.0 - 20.0).max(0.0).exp()];
    for explosion in explosions {
        healthy(0, |run| {
            let norms = |step: f64| {
                let mut norms = growing(step);
                norms[1].1 *= explosion(step);
                norms
            };
            let found = Simulation { norms: &norms, ..run }.findings();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].watcher, WatcherKind::DeadParameter);
            assert!(found[0].what.contains("explodes: 0.v_proj.lora_B.weight"), "{}", found[0]);
        });
    }
}

#[test]
fn a_rate_that_is_too_high_or_too_low_is_found() {
    for seed in 0..10 {
        healthy(seed, |run| {
            let loss = |step: f64| falling(step, 1000) + (step - 300.0).clamp(0.0, 50.0) / 20.0;
            let kinds = Simulation { loss: &loss, validation: &loss, ..run }.kinds();
            assert!(kinds.contains(&WatcherKind::LearningRate), "seed {seed}: {kinds:?}");
        });
        healthy(seed, |run| {
            let loss = |step: f64| 3.0 - 1e-5 * step;
            let found = Simulation { loss: &loss, validation: &loss, ..run }.findings();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].watcher, WatcherKind::LearningRate);
            assert!(found[0].advice.contains("too low") && found[0].step <= 500, "{}", found[0]);
        });
        // However long the run is.
        healthy(seed, |run| {
            let loss = |step: f64| 3.0 - 1e-6 * step;
            let rate = |step| linear(step, 12_000);
            let run = Simulation { max_steps: 12_000, loss: &loss, validation: &loss, rate: &rate, ..run };
            let found = run.findings();
            let low = found.iter().find(|finding| finding.watcher == WatcherKind::LearningRate);
            assert!(low.is_some_and(|low| low.advice.contains("too low") && low.step <= 2700), "{found:?}");
        });
    }
}

#[test]
fn watchers_from_a_checkpoint_say_what_those_of_the_unbroken_run_say() {
    healthy(3, |run| {
        let loss = |step: f64| (run.loss)(step) * if step % 300.0 == 0.0 { 4.0 } else { 1.0 };
        let run = Simulation { loss: &loss, ..run };
        let unbroken = run.findings();
        assert_eq!(unbroken.len(), 3, "{unbroken:?}");
        let mut watchers = Watchers::default();
        let mut found = run.observe(&mut watchers, 1..=450);
        let saved = serde_json::to_string(&watchers).unwrap();
        let mut resumed: Watchers = serde_json::from_str(&saved).unwrap();
        assert_eq!(resumed, watchers);
        found.extend(run.observe(&mut resumed, 451..=1000));
        assert_eq!(found, unbroken);
    });
}

type Steps = Vec<(usize, f64)>;

/// 60 steps of one batch each, with the steps and their rates and the findings that callbacks heard of.
fn train(
    factor: fn(usize) -> f64,
    actions: WatchActions,
) -> (Result<TrainOutcome, Error>, Steps, Vec<String>) {
    #[derive(Default)]
    struct Heard {
        steps: Steps,
        findings: Vec<String>,
    }
    struct Hear<'a>(&'a RefCell<Heard>);
    impl Callback for Hear<'_> {
        fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
            self.0.borrow_mut().steps.push((record.global_step, record.learning_rate));
            Ok(())
        }
        fn on_finding(&mut self, finding: &Finding) -> Result<(), BoxError> {
            self.0.borrow_mut().findings.push(finding.to_string());
            Ok(())
        }
    }
    let heard = RefCell::new(Heard::default());
    let dataset = Examples::patterned(8);
    let passes = Cell::new(0);
    let factor = || {
        passes.set(passes.get() + 1);
        factor(passes.get())
    };
    let model = Disturbed { model: TokenModel::small(), factor };
    let arguments = TrainingArguments {
        learning_rate: 1e-2,
        per_device_train_batch_size: 8,
        max_steps: 60,
        logging_steps: 1.0,
        ..Default::default()
    };
    let outcome = Trainer::new(&model, arguments, &dataset)
        .unwrap()
        .with_validation(&dataset)
        .with_watch_actions(actions)
        .unwrap()
        .with_callback(Hear(&heard))
        .train();
    let values = model.model.values();
    assert!(values.iter().all(|(_, values)| values.iter().all(|value| value.is_finite())));
    let heard = heard.into_inner();
    (outcome, heard.steps, heard.findings)
}

#[test]
fn a_step_that_is_left_out_counts_but_not_for_the_schedule() {
    let nan_twice = |pass| if pass == 20 || pass == 31 { f64::NAN } else { 1.0 };
    let actions = WatchActions { non_finite: Some(Action::Skip), ..Default::default() };
    let (outcome, steps, findings) = train(nan_twice, actions);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.global_step, steps.len(), outcome.findings.len()), (60, 58, 2));
    assert!(steps.iter().all(|(step, _)| *step != 20 && *step != 31), "{steps:?}");
    let expected = |done: usize| 1e-2 * (60 - done) as f64 / 60.0;
    for (done, (step, rate)) in steps.iter().enumerate() {
        assert!((rate - expected(done)).abs() < 1e-12, "step {step}: {rate}");
    }
    assert!(findings[0].contains("step 20") && findings[0].contains("train.jsonl:1"), "{findings:?}");
    let (ended, steps, _) = train(nan_twice, WatchActions::default());
    assert!(matches!(ended, Err(Error::NonFiniteLoss { .. })));
    assert_eq!(steps.len(), 19);
}

#[test]
fn leaving_out_steps_ends_when_it_does_not_help() {
    let actions = WatchActions { non_finite: Some(Action::Skip), ..Default::default() };
    let (ended, steps, findings) = train(|pass| if pass > 10 { f64::NAN } else { 1.0 }, actions);
    let Err(Error::NonFiniteLoss { place, .. }) = ended else { panic!("{ended:?}") };
    assert_eq!((steps.len(), findings.len(), place.step), (10, 6, Some(16)));
    assert!(findings[5].contains("not the examples"), "{findings:?}");
}

#[test]
fn a_spike_is_left_out_or_ends_the_run_as_told() {
    let spike = |pass| if pass == 45 { 30.0 } else { 1.0 };
    for action in [Action::Say, Action::Skip, Action::RollBack, Action::Stop] {
        let (outcome, steps, _) =
            train(spike, WatchActions { loss_spike: Some(action), ..Default::default() });
        if action == Action::RollBack {
            // The fault is planted at a pass, not at a step: it comes once.
            let outcome = outcome.unwrap();
            assert_eq!((outcome.global_step, steps.len()), (60, 44 + 60));
            continue;
        }
        let outcome = outcome.unwrap();
        let ended = outcome.ended_by.as_ref().map(|finding| (finding.watcher, finding.step, finding.action));
        let (done, expected_end) = match action {
            Action::Say => (60, None),
            Action::Skip => (59, None),
            _ => (44, Some((WatcherKind::LossSpike, 45, action))),
        };
        assert_eq!((steps.len(), ended), (done, expected_end));
        assert_eq!(outcome.findings[0].step, 45, "{:?}", outcome.findings);
        assert!(outcome.findings[0].what.contains("examples: train.jsonl:1, "), "{:?}", outcome.findings);
        assert!(!outcome.cancelled);
        // Wherever a run ends, its last step is evaluated.
        let evaluated: Vec<_> = outcome.evaluations.iter().map(|at| (at.step, at.evaluations_left)).collect();
        assert_eq!((evaluated, outcome.validation.is_some()), (vec![(outcome.global_step, 0)], true));
    }
    let (outcome, ..) = train(spike, WatchActions::none());
    assert_eq!(outcome.unwrap().findings, []);
}

#[test]
fn an_action_that_makes_no_sense_is_refused_by_name() {
    let skip = Some(Action::Skip);
    for (field, actions) in [
        ("watch.non_finite", WatchActions { non_finite: Some(Action::Say), ..Default::default() }),
        ("watch.plateau", WatchActions { plateau: skip, ..Default::default() }),
        ("watch.overfitting", WatchActions { overfitting: skip, ..Default::default() }),
        ("watch.dead_parameter", WatchActions { dead_parameter: skip, ..Default::default() }),
        ("watch.learning_rate", WatchActions { learning_rate: skip, ..Default::default() }),
    ] {
        let error = actions.validate().unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { field: found, .. } if found == field), "{error}");
    }
}
