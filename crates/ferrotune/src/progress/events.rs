//! What happens in a run, for other programs.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use ferrotune_trainer::Finding;
use serde::Serialize;

use super::{Generating, RangeStep, RolledBack, Step, Validated};

/// What happens in a run, for other programs: `{"event": "step", "step": 1, ...}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event<'a> {
    /// A new part of the run begins.
    Stage {
        /// Its name.
        name: &'a str,
    },
    /// Something to be read: a warning, the check of the data.
    Note {
        /// The text.
        text: &'a str,
    },
    /// A step of training is done. A number that is not finite is `null`.
    Step {
        /// The step, from 1.
        step: usize,
        /// Steps of the whole run.
        total_steps: usize,
        /// The mean loss of a target token.
        loss: f64,
        /// The learning rate of the step.
        learning_rate: f64,
        /// The norm of the gradient before clipping.
        grad_norm: f64,
        /// Tokens of prompts and completions a second.
        tokens_per_s: f64,
        /// Share of the step's time that its matrix products take where nothing comes between them; null where it was not measured,
        /// and for the first step, after which the machine's rate is measured.
        gemm_share: Option<f64>,
        /// Passes over the training data that are done, as a fraction.
        epoch: f64,
        /// The memory that the process holds, in MiB; null where the system does not tell.
        memory_mib: Option<f64>,
    },
    /// The validation loss was measured.
    Validation {
        /// Steps done; 0 before the first.
        step: usize,
        /// Steps of the whole run.
        total_steps: usize,
        /// The mean loss of a target token of the validation data.
        loss: f64,
        /// Seconds that it took.
        seconds: f64,
        /// The scores of the answers to its prompts, by metric.
        metrics: &'a BTreeMap<String, f64>,
    },
    /// A watcher found a fault of the training.
    Finding {
        /// The watcher.
        watcher: &'a str,
        /// The step at which it was found.
        step: usize,
        /// What is done about it: `say`, `skip`, `roll_back` or `stop`.
        action: &'a str,
        /// What was seen, with its numbers.
        what: &'a str,
        /// What helps.
        advice: &'a str,
    },
    /// The training went back to a checkpoint.
    RollBack {
        /// The steps that are done now.
        step: usize,
        /// Steps of the whole run.
        total_steps: usize,
        /// What the schedule's learning rate is multiplied by from here on.
        learning_rate_factor: f64,
    },
    /// A step of a learning-rate range test is done.
    RangeStep {
        /// The step, from 1.
        step: usize,
        /// Steps of the whole test, which may end before.
        total_steps: usize,
        /// The rate that the step was done with.
        learning_rate: f64,
        /// The loss before it.
        loss: f64,
        /// The exponential mean of the losses so far.
        smoothed_loss: f64,
    },
    /// A range test is done, and its files are written.
    FindLr {
        /// Where they are.
        output_dir: &'a str,
        /// The rate at which the loss falls most steeply; null if it never falls.
        steepest: Option<f64>,
        /// A tenth of the rate at which the loss is lowest.
        minimum_tenth: Option<f64>,
        /// Whether the loss ran away before the last rate.
        diverged: bool,
    },
    /// Answers are being generated.
    Generation {
        /// Prompts whose answers are known to be done; those of the last batch count when the pass ends.
        prompts: usize,
        /// Prompts of the whole pass.
        total_prompts: usize,
        /// Tokens generated so far.
        new_tokens: usize,
        /// Tokens generated a second.
        new_tokens_per_s: f64,
    },
    /// The run is done, and its files are written.
    Done {
        /// Where they are.
        output_dir: &'a str,
        /// All numbers, as in `metrics.json`.
        metrics: Option<&'a crate::report::Metrics>,
    },
    /// The run was interrupted; what it has written is whole.
    Interrupted,
    /// The run failed.
    Error {
        /// Why.
        message: &'a str,
    },
}

impl From<&Step> for Event<'_> {
    fn from(step_done: &Step) -> Self {
        let Step { step, total_steps, loss, learning_rate, grad_norm, tokens_per_s, gemm_share, .. } =
            *step_done;
        let Step { epoch, memory_mib, .. } = *step_done;
        Self::Step {
            step,
            total_steps,
            loss,
            learning_rate,
            grad_norm,
            tokens_per_s,
            gemm_share,
            epoch,
            memory_mib,
        }
    }
}

impl<'a> From<&'a Validated> for Event<'a> {
    fn from(validated: &'a Validated) -> Self {
        let Validated { step, total_steps, loss, seconds, ref metrics, .. } = *validated;
        Self::Validation { step, total_steps, loss, seconds, metrics }
    }
}

impl<'a> From<&'a Finding> for Event<'a> {
    fn from(finding: &'a Finding) -> Self {
        Self::Finding {
            watcher: finding.watcher.name(),
            step: finding.step,
            action: finding.action.name(),
            what: &finding.what,
            advice: &finding.advice,
        }
    }
}

impl From<&RolledBack> for Event<'_> {
    fn from(rolled_back: &RolledBack) -> Self {
        let RolledBack { step, total_steps, learning_rate_factor } = *rolled_back;
        Self::RollBack { step, total_steps, learning_rate_factor }
    }
}

impl From<&RangeStep> for Event<'_> {
    fn from(step: &RangeStep) -> Self {
        let RangeStep { step, total_steps, learning_rate, loss, smoothed_loss } = *step;
        Self::RangeStep { step, total_steps, learning_rate, loss, smoothed_loss }
    }
}

impl From<&Generating> for Event<'_> {
    fn from(generating: &Generating) -> Self {
        let Generating { prompts, total_prompts, new_tokens, .. } = *generating;
        Self::Generation {
            prompts,
            total_prompts,
            new_tokens,
            new_tokens_per_s: generating.new_tokens_per_s(),
        }
    }
}

/// Writes [`Event`]s, one JSON object a line, each as soon as it happens.
///
/// ```
/// use ferrotune::progress::{Event, EventWriter};
///
/// let mut lines = vec![];
/// EventWriter::new(&mut lines).write(&Event::Stage { name: "training" })?;
/// assert_eq!(lines, b"{\"event\":\"stage\",\"name\":\"training\"}\n");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct EventWriter<W> {
    out: W,
    /// Prompts of the last event of generation, which comes with every token.
    last_prompts: Option<usize>,
}

impl<W: Write> EventWriter<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, last_prompts: None }
    }

    /// Writes one event and flushes. Of [`Event::Generation`] only those are written whose number of prompts is
    /// new, for they come with every token.
    ///
    /// # Errors
    /// Those of the writer, as when the program that reads is gone.
    pub fn write(&mut self, event: &Event<'_>) -> io::Result<()> {
        let prompts = match event {
            Event::Generation { prompts, .. } => Some(*prompts),
            _ => None,
        };
        if prompts.is_some() && prompts == self.last_prompts {
            return Ok(());
        }
        self.last_prompts = prompts;
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::step;

    #[test]
    fn events_are_one_json_object_a_line() {
        let mut lines = vec![];
        let mut writer = EventWriter::new(&mut lines);
        writer.write(&(&step(3)).into()).unwrap();
        writer.write(&(&Step { loss: f64::NAN, ..step(4) }).into()).unwrap();
        writer.write(&Event::Note { text: "two\nlines" }).unwrap();
        for (prompts, new_tokens) in [(8, 8), (8, 16), (16, 24)] {
            let generating = Generating { prompts, total_prompts: 16, new_tokens, seconds: 1.0 };
            writer.write(&(&generating).into()).unwrap();
        }
        let metrics = [("rougeL".to_owned(), 23.5)].into();
        let validated =
            Validated { step: 4, total_steps: 80, loss: 2.5, seconds: 1.5, metrics, evaluations_left: 1 };
        writer.write(&(&validated).into()).unwrap();
        let metrics = crate::report::Metrics::default();
        writer.write(&Event::Done { output_dir: "runs/x", metrics: Some(&metrics) }).unwrap();
        let text = String::from_utf8(lines).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                r#"{"event":"step","step":3,"total_steps":80,"loss":2.3456,"learning_rate":0.00095,"grad_norm":1.5,"tokens_per_s":165.6,"gemm_share":0.875,"epoch":0.075,"memory_mib":1617.0}"#,
                r#"{"event":"step","step":4,"total_steps":80,"loss":null,"learning_rate":0.00095,"grad_norm":1.5,"tokens_per_s":165.6,"gemm_share":0.875,"epoch":0.1,"memory_mib":1617.0}"#,
                r#"{"event":"note","text":"two\nlines"}"#,
                r#"{"event":"generation","prompts":8,"total_prompts":16,"new_tokens":8,"new_tokens_per_s":8.0}"#,
                r#"{"event":"generation","prompts":16,"total_prompts":16,"new_tokens":24,"new_tokens_per_s":24.0}"#,
                r#"{"event":"validation","step":4,"total_steps":80,"loss":2.5,"seconds":1.5,"metrics":{"rougeL":23.5}}"#,
                r#"{"event":"done","output_dir":"runs/x","metrics":{}}"#,
            ]
        );
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        assert!(EventWriter::new(Gone).write(&Event::Stage { name: "x" }).is_err());
    }
}
