//! Observers for people and for programs.

use super::Observer;
use crate::{
    progress::{
        Evaluating, Event, EventWriter, Generating, Progress, RangeStep, RolledBack, Step, Validated,
    },
    report::{LoggedStep, StageTime},
};
use ferrotune_trainer::Finding;
use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Shows a run to a person: a bar on a terminal, a line now and then elsewhere.
#[derive(Debug)]
pub struct ForPeople {
    progress: Progress,
    cancelled: Arc<AtomicBool>,
}

impl ForPeople {
    /// Shows progress; the run stops when `cancelled` becomes true.
    pub fn new(progress: Progress, cancelled: Arc<AtomicBool>) -> Self {
        Self { progress, cancelled }
    }
}

impl Observer for ForPeople {
    fn stage(&mut self, name: &str) {
        self.progress.stage(name);
    }

    fn note(&mut self, text: &str) {
        self.progress.note(text);
    }

    fn step(&mut self, step: &Step) {
        self.progress.step(step);
    }

    fn validated(&mut self, validated: &Validated) {
        self.progress.validated(validated);
    }

    fn evaluating(&mut self, evaluating: &Evaluating) {
        self.progress.evaluating(evaluating);
    }

    fn finding(&mut self, finding: &Finding) {
        self.progress.finding(finding);
    }

    fn rolled_back(&mut self, rolled_back: &RolledBack) {
        self.progress.rolled_back(rolled_back);
    }

    fn range_step(&mut self, step: &RangeStep) {
        self.progress.range_step(step);
    }

    fn generating(&mut self, generating: &Generating) {
        self.progress.generating(generating);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Tells a run to a program, one JSON object a line; a program that stopped reading ends the run.
#[derive(Debug)]
pub struct ForPrograms<W> {
    events: EventWriter<W>,
    cancelled: Arc<AtomicBool>,
}

impl<W: Write> ForPrograms<W> {
    /// Writes to `out`; the run stops when `cancelled` becomes true.
    pub fn new(out: W, cancelled: Arc<AtomicBool>) -> Self {
        Self { events: EventWriter::new(out), cancelled }
    }

    /// Writes one event.
    pub fn tell(&mut self, event: &Event) {
        if self.events.write(event).is_err() {
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

impl<W: Write> Observer for ForPrograms<W> {
    fn stage(&mut self, name: &str) {
        self.tell(&Event::Stage { name });
    }

    fn note(&mut self, text: &str) {
        self.tell(&Event::Note { text });
    }

    fn step(&mut self, step: &Step) {
        self.tell(&Event::from(step));
    }

    fn validated(&mut self, validated: &Validated) {
        self.tell(&Event::from(validated));
    }

    fn finding(&mut self, finding: &Finding) {
        self.tell(&Event::from(finding));
    }

    fn rolled_back(&mut self, rolled_back: &RolledBack) {
        self.tell(&Event::from(rolled_back));
    }

    fn range_step(&mut self, step: &RangeStep) {
        self.tell(&Event::from(step));
    }

    fn generating(&mut self, generating: &Generating) {
        self.tell(&Event::from(generating));
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Passes everything on, and keeps what the report shows: the time of the stages, and every step.
pub(super) struct Recorder<'a> {
    observer: &'a mut dyn Observer,
    /// The stages that have ended.
    ended: Vec<StageTime>,
    present: Option<(String, Instant)>,
    /// The steps of the training.
    steps: Vec<LoggedStep>,
}

impl<'a> Recorder<'a> {
    pub fn new(observer: &'a mut dyn Observer) -> Self {
        Self { observer, ended: vec![], present: None, steps: vec![] }
    }

    /// The steps that were made before the run went on from a checkpoint, as far as it knows of them.
    pub fn begin_with(&mut self, steps: Vec<LoggedStep>) {
        self.steps = steps;
    }

    /// The stages that have ended, in order.
    pub fn times(&self) -> Vec<StageTime> {
        self.ended.clone()
    }

    /// The steps that were made, in order.
    pub fn steps(&self) -> Vec<LoggedStep> {
        self.steps.clone()
    }
}

impl Observer for Recorder<'_> {
    fn stage(&mut self, name: &str) {
        if let Some((name, start)) = self.present.replace((name.to_owned(), Instant::now())) {
            self.ended.push(StageTime { name, seconds: start.elapsed().as_secs_f64() });
        }
        self.observer.stage(name);
    }

    fn note(&mut self, text: &str) {
        self.observer.note(text);
    }

    fn step(&mut self, step: &Step) {
        let Step { step: number, loss, learning_rate, grad_norm, .. } = *step;
        self.steps.push(LoggedStep { step: number as u64, loss, learning_rate, grad_norm });
        self.observer.step(step);
    }

    fn validated(&mut self, validated: &Validated) {
        self.observer.validated(validated);
    }

    fn evaluating(&mut self, evaluating: &Evaluating) {
        self.observer.evaluating(evaluating);
    }

    fn finding(&mut self, finding: &Finding) {
        self.observer.finding(finding);
    }

    fn rolled_back(&mut self, rolled_back: &RolledBack) {
        self.steps.retain(|step| step.step <= rolled_back.step as u64);
        self.observer.rolled_back(rolled_back);
    }

    fn generating(&mut self, generating: &Generating) {
        self.observer.generating(generating);
    }

    fn cancelled(&self) -> bool {
        self.observer.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_begins_where_the_run_began_and_has_no_step_that_was_given_up() {
        struct Deaf;
        impl Observer for Deaf {}
        let mut deaf = Deaf;
        let mut recorder = Recorder::new(&mut deaf);
        recorder.begin_with((1..=4).map(|step| LoggedStep { step, ..LoggedStep::default() }).collect());
        let step = |step| Step {
            step,
            total_steps: 9,
            loss: 1.0,
            learning_rate: 1.0,
            grad_norm: 1.0,
            tokens_per_s: 1.0,
            gemm_share: None,
            epoch: 0.0,
            total_epochs: 1,
            is_logged: false,
            memory_mib: None,
        };
        (5..=8).for_each(|index| recorder.step(&step(index)));
        recorder.rolled_back(&RolledBack { step: 6, total_steps: 9, learning_rate_factor: 0.5 });
        (7..=9).for_each(|index| recorder.step(&step(index)));
        assert!(recorder.steps().iter().map(|step| step.step).eq(1..=9));
    }
}
