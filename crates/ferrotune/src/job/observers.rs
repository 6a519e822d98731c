//! Observers for people and for programs.

use super::Observer;
use crate::{
    progress::{Event, EventWriter, Generating, Progress, Step, Validated},
    report::{LoggedStep, StageTime},
};
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

    fn generating(&mut self, generating: &Generating) {
        self.observer.generating(generating);
    }

    fn cancelled(&self) -> bool {
        self.observer.cancelled()
    }
}
