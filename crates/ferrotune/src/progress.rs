//! How a run goes on: a bar for people at a terminal, a line now and then for a log, JSON for other programs.
//!
//! [`Progress`] writes for people and never fails: a terminal that is gone must not end a run of hours.
//! [`EventWriter`] writes one JSON object a line.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::report::duration;

/// An optimizer step that is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The step, from 1.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// The mean loss of a target token.
    pub loss: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of prompts and completions a second.
    pub tokens_per_s: f64,
}

/// How far a pass of generation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generating {
    /// Prompts whose answers are known to be done; those of the last batch count when the pass ends.
    pub prompts: usize,
    /// Prompts of the whole pass.
    pub total_prompts: usize,
    /// Tokens that were generated so far.
    pub new_tokens: usize,
    /// Seconds since the pass began.
    pub seconds: f64,
}

impl Generating {
    fn new_tokens_per_s(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate of three digits")]
        let tokens = self.new_tokens as f64;
        if self.seconds > 0.0 { tokens / self.seconds } else { 0.0 }
    }
}

/// A run that goes on, shown to people.
///
/// ```
/// use ferrotune::progress::{Progress, Step};
///
/// let mut progress = Progress::stderr();
/// progress.stage("training");
/// for step in 1..=10 {
///     let loss = 4.0 / step as f64;
///     progress.step(&Step { step, total_steps: 10, loss, learning_rate: 1e-3, grad_norm: 1.0, tokens_per_s: 160.0 });
/// }
/// progress.finish();
/// ```
pub struct Progress {
    sink: Sink,
    /// When the present stage began; times left are reckoned from it.
    stage_start: Instant,
    /// When the last line of the stage was written, and how much was done then.
    last_line: Option<(Instant, usize)>,
}

enum Sink {
    /// The bar of the present stage, if it has one yet.
    Bar(Option<ProgressBar>),
    Lines {
        out: Box<dyn Write + Send>,
        every: Duration,
    },
}

impl Progress {
    /// On the standard error: a bar if it is a terminal, else a line every ten seconds.
    #[must_use]
    pub fn stderr() -> Self {
        if io::stderr().is_terminal() {
            Self::new(Sink::Bar(None))
        } else {
            Self::lines(io::stderr(), Duration::from_secs(10))
        }
    }

    /// A line at most every so often, and one at the end of each stage.
    #[must_use]
    pub fn lines(out: impl Write + Send + 'static, every: Duration) -> Self {
        Self::new(Sink::Lines { out: Box::new(out), every })
    }

    /// Shows nothing.
    #[must_use]
    pub fn hidden() -> Self {
        Self::lines(io::sink(), Duration::MAX)
    }

    fn new(sink: Sink) -> Self {
        Self { sink, stage_start: Instant::now(), last_line: None }
    }

    /// A new part of the run begins.
    pub fn stage(&mut self, name: &str) {
        self.finish();
        self.stage_start = Instant::now();
        self.last_line = None;
        self.note(name);
    }

    /// Shows a text above the bar.
    pub fn note(&mut self, text: &str) {
        // A terminal that is gone is no reason to stop.
        let _ = match &mut self.sink {
            Sink::Bar(Some(bar)) => bar.suspend(|| writeln!(io::stderr(), "{text}")),
            Sink::Bar(None) => writeln!(io::stderr(), "{text}"),
            Sink::Lines { out, .. } => writeln!(out, "{text}").and_then(|()| out.flush()),
        };
    }

    /// A step of training is done.
    pub fn step(&mut self, step: &Step) {
        let text = format!(
            "loss {:.3}  lr {}  {:.0} tokens/s",
            step.loss,
            Rate(step.learning_rate),
            step.tokens_per_s
        );
        self.show("step", step.step, step.total_steps, &text);
    }

    /// Answers are being generated.
    pub fn generating(&mut self, generating: &Generating) {
        let text = format!("{:.0} new tokens/s", generating.new_tokens_per_s());
        self.show("prompt", generating.prompts, generating.total_prompts, &text);
    }

    /// Ends the present stage; what it showed last stays to be read.
    pub fn finish(&mut self) {
        if let Sink::Bar(bar) = &mut self.sink
            && let Some(bar) = bar.take()
        {
            // Left to itself the bar would end its line only where it guesses the terminal's width right.
            let (done, total, text) = (bar.position(), bar.length().unwrap_or_default(), bar.message());
            let unit = bar.prefix();
            bar.finish_and_clear();
            let _ = writeln!(io::stderr(), "{unit} {done}/{total}  {text}");
        }
    }

    fn show(&mut self, unit: &str, done: usize, total: usize, text: &str) {
        let elapsed = self.stage_start.elapsed();
        let mut text = text.to_owned();
        if let Some(left) = seconds_left(elapsed, done, total) {
            text.push_str(&format!("  {} left", duration(left)));
        }
        match &mut self.sink {
            Sink::Bar(bar) => {
                let bar = bar.get_or_insert_with(|| new_bar(unit, total));
                bar.set_length(total as u64);
                bar.set_message(text);
                bar.set_position(done as u64);
            }
            Sink::Lines { out, every } => {
                let due = self.last_line.is_none_or(|(at, _)| at.elapsed() >= *every);
                let ended = done >= total && self.last_line.is_none_or(|(_, shown)| shown < done);
                if due || ended {
                    let _ = writeln!(out, "{unit} {done}/{total}  {text}").and_then(|()| out.flush());
                    self.last_line = Some((Instant::now(), done));
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sink = match &self.sink {
            Sink::Bar(_) => "bar",
            Sink::Lines { .. } => "lines",
        };
        f.debug_struct("Progress").field("sink", &sink).finish_non_exhaustive()
    }
}

fn new_bar(unit: &str, total: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr())
        .with_prefix(unit.to_owned());
    let template = "{bar:24.cyan/dim} {prefix} {pos}/{len}  {msg}";
    // A template of ours that does not parse would be a bar without style, not a failed run.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

/// Seconds to the end at the pace so far; unknown before the first step and after the last one.
fn seconds_left(elapsed: Duration, done: usize, total: usize) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let left = elapsed.as_secs_f64() / done as f64 * total.saturating_sub(done) as f64;
    (done > 0 && done < total).then_some(left)
}

/// A learning rate, as `2.5e-4`.
struct Rate(f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0.0 { f.write_str("0") } else { write!(f, "{:.2e}", self.0) }
    }
}

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
    fn from(step: &Step) -> Self {
        let Step { step, total_steps, loss, learning_rate, grad_norm, tokens_per_s } = *step;
        Self::Step { step, total_steps, loss, learning_rate, grad_norm, tokens_per_s }
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
    use std::sync::{Arc, Mutex};

    /// A writer whose text can be looked at.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn step(step: usize) -> Step {
        Step {
            step,
            total_steps: 80,
            loss: 2.3456,
            learning_rate: 9.5e-4,
            grad_norm: 1.5,
            tokens_per_s: 165.6,
        }
    }

    #[test]
    fn a_log_gets_the_first_and_the_last_step_and_few_between() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::from_secs(3600));
        progress.stage("training");
        (1..=80).for_each(|index| progress.step(&step(index)));
        progress.finish();
        let text = out.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "training");
        assert!(lines[1].starts_with("step 1/80  loss 2.346  lr 9.50e-4  166 tokens/s  "), "{text}");
        assert!(lines[1].ends_with(" s left"), "{text}");
        assert_eq!(lines[2], "step 80/80  loss 2.346  lr 9.50e-4  166 tokens/s");
    }

    #[test]
    fn generation_shows_its_speed_and_survives_a_first_call_without_time() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::ZERO);
        progress.generating(&Generating { prompts: 0, total_prompts: 300, new_tokens: 0, seconds: 0.0 });
        progress.generating(&Generating { prompts: 8, total_prompts: 300, new_tokens: 30, seconds: 0.5 });
        let text = out.text();
        assert!(text.starts_with("prompt 0/300  0 new tokens/s\nprompt 8/300  60 new tokens/s  "), "{text}");
    }

    #[test]
    fn a_log_gets_the_end_of_a_stage_once() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::from_secs(3600));
        for _ in 0..2 {
            progress.stage("answers");
            for (prompts, new_tokens) in [(0, 1), (0, 2), (8, 3), (16, 4), (16, 5), (16, 6)] {
                progress.generating(&Generating { prompts, total_prompts: 16, new_tokens, seconds: 1.0 });
            }
        }
        let pass = "answers\nprompt 0/16  1 new tokens/s\nprompt 16/16  4 new tokens/s\n";
        assert_eq!(out.text(), pass.repeat(2));
    }

    #[test]
    fn a_reader_that_is_gone_stops_nothing() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut progress = Progress::lines(Gone, Duration::ZERO);
        progress.stage("training");
        progress.step(&step(1));
        assert!(EventWriter::new(Gone).write(&Event::Stage { name: "x" }).is_err());
    }

    #[test]
    fn time_left_follows_the_pace() {
        assert_eq!(seconds_left(Duration::from_secs(20), 10, 40), Some(60.0));
        assert_eq!(seconds_left(Duration::from_secs(20), 0, 40), None);
        assert_eq!(seconds_left(Duration::from_secs(20), 40, 40), None);
    }

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
        let metrics = crate::report::Metrics::default();
        writer.write(&Event::Done { output_dir: "runs/x", metrics: Some(&metrics) }).unwrap();
        let text = String::from_utf8(lines).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                r#"{"event":"step","step":3,"total_steps":80,"loss":2.3456,"learning_rate":0.00095,"grad_norm":1.5,"tokens_per_s":165.6}"#,
                r#"{"event":"step","step":4,"total_steps":80,"loss":null,"learning_rate":0.00095,"grad_norm":1.5,"tokens_per_s":165.6}"#,
                r#"{"event":"note","text":"two\nlines"}"#,
                r#"{"event":"generation","prompts":8,"total_prompts":16,"new_tokens":8,"new_tokens_per_s":8.0}"#,
                r#"{"event":"generation","prompts":16,"total_prompts":16,"new_tokens":24,"new_tokens_per_s":24.0}"#,
                r#"{"event":"done","output_dir":"runs/x","metrics":{}}"#,
            ]
        );
    }
}
