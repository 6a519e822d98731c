//! A run that goes on, shown to people.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use ferrotune_trainer::Finding;
use indicatif::ProgressDrawTarget;

use super::bars::Bars;
use super::pace::Pace;
use super::{Evaluating, Generating, RangeStep, RolledBack, Step, Validated};
use crate::report::{duration, visible};

/// A log gets a line when this share of the stage was done since the last one, ...
const SHARE_OF_A_LINE: f64 = 0.02;
/// ... or when nothing was said for so long.
const LONGEST_SILENCE: Duration = Duration::from_secs(300);

/// A run that goes on, shown to people.
///
/// ```
/// use ferrotune::progress::{Progress, Step};
///
/// let mut progress = Progress::stderr();
/// progress.stage("training");
/// for step in 1..=10 {
///     let loss = 4.0 / step as f64;
///     progress.step(&Step { step, total_steps: 10, loss, learning_rate: 1e-3, grad_norm: 1.0, tokens_per_s: 160.0, gemm_share: None,
///         epoch: step as f64 / 10.0, total_epochs: 1, is_logged: true, memory_mib: None });
/// }
/// progress.finish();
/// ```
pub struct Progress {
    sink: Sink,
    /// How far the present stage is.
    course: Course,
    /// How far the answers of an evaluation are, which is going on within the stage.
    evaluation: Option<Course>,
    /// The last validation loss that was measured between steps of the present stage, and after which.
    validation: Option<(usize, f64)>,
}

/// How far some work is, and what was said of it.
struct Course {
    begun: Instant,
    pace: Pace,
    /// When the last line was written, and how much was done then.
    last_line: Option<(Instant, usize)>,
}

impl Course {
    fn new() -> Self {
        let begun = Instant::now();
        Self { begun, pace: Pace::new(begun), last_line: None }
    }

    /// Whether a log that has a line after each `apart` should have one now.
    fn is_due(&self, done: usize, total: usize, apart: Duration, now: Instant) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let due = match self.last_line {
            None => done > 0 || now - self.begun >= LONGEST_SILENCE,
            Some((at, shown)) => {
                let silence = now - at;
                let advanced = done.saturating_sub(shown) as f64 >= SHARE_OF_A_LINE * total as f64;
                silence >= apart && (advanced || silence >= LONGEST_SILENCE)
            }
        };
        due || (done >= total && self.last_line.is_none_or(|(_, shown)| shown < done))
    }
}

enum Sink {
    Bars(Bars),
    Lines { out: Box<dyn Write + Send>, apart: Duration },
}

impl Progress {
    /// On the standard error: bars if it is a terminal, else [`lines`](Self::lines) at least ten seconds apart.
    #[must_use]
    pub fn stderr() -> Self {
        if io::stderr().is_terminal() {
            Self::new(Sink::Bars(Bars::new(ProgressDrawTarget::stderr())))
        } else {
            Self::lines(io::stderr(), Duration::from_secs(10))
        }
    }

    /// A line for every step that is logged; and for every fiftieth of a stage or every five minutes, yet no two of these within `apart`, and
    /// one at the end of each stage.
    /// Control characters are written as visible codes.
    #[must_use]
    pub fn lines(out: impl Write + Send + 'static, apart: Duration) -> Self {
        Self::new(Sink::Lines { out: Box::new(out), apart })
    }

    /// Shows nothing.
    #[must_use]
    pub fn hidden() -> Self {
        Self::lines(io::sink(), Duration::MAX)
    }

    fn new(sink: Sink) -> Self {
        Self { sink, course: Course::new(), evaluation: None, validation: None }
    }

    /// A new part of the run begins.
    pub fn stage(&mut self, name: &str) {
        self.finish();
        (self.course, self.evaluation, self.validation) = (Course::new(), None, None);
        self.note(name);
    }

    /// Shows a text above the bar.
    pub fn note(&mut self, text: &str) {
        // Data may be shown: what would move the cursor or change the colours must not.
        let text = visible(text);
        // A terminal that is gone is no reason to stop.
        let _ = match &mut self.sink {
            Sink::Bars(bars) => bars.print(&text),
            Sink::Lines { out, .. } => writeln!(out, "{text}").and_then(|()| out.flush()),
        };
    }

    /// A step of training is done.
    pub fn step(&mut self, step: &Step) {
        let Step { loss, learning_rate, tokens_per_s, gemm_share, epoch, total_epochs, .. } = *step;
        let validation = self.validation.map(|(at, loss)| format!("  validation {loss:.3} at step {at}"));
        let validation = validation.unwrap_or_default();
        let share = gemm_share.map(|share| format!(" ({:.0} % of the GEMM limit)", 100.0 * share));
        let share = share.unwrap_or_default();
        let memory = step.memory_mib.map(|mib| format!("  {mib:.0} MiB")).unwrap_or_default();
        let mut text = format!(
            "loss {loss:.3}{validation}  lr {}  {tokens_per_s:.0} tokens/s{share}{memory}",
            Rate(learning_rate)
        );
        match &mut self.sink {
            Sink::Bars(bars) => bars.epoch(epoch, total_epochs),
            Sink::Lines { .. } => text.insert_str(0, &format!("epoch {epoch:.2}/{total_epochs}  ")),
        }
        if self.course.pace.is_unused() {
            // A run that goes on from a checkpoint has done the steps before in another life.
            self.course.pace.begin_after(step.step.saturating_sub(1));
        }
        self.show("step", step.step, step.total_steps, &text, step.is_logged);
    }

    /// The validation loss is being measured.
    pub fn evaluating(&mut self, evaluating: &Evaluating) {
        self.evaluation = Some(Course::new());
        if let Sink::Bars(bars) = &mut self.sink {
            bars.evaluation("examples", evaluating.examples, evaluating.total_examples);
        }
    }

    /// The validation loss was measured. Between steps it stands beside the loss of those that follow, with the step that it is of;
    /// before the first and after the last it has a line of its own.
    pub fn validated(&mut self, validated: &Validated) {
        let Validated { step, total_steps, loss, seconds, ref metrics, evaluations_left } = *validated;
        let length = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        if let Sink::Bars(bars) = &mut self.sink {
            bars.end_evaluation();
        }
        self.evaluation = None;
        self.course.pace.paused(length, evaluations_left, Instant::now());
        if step == 0 {
            self.note(&format!("validation loss {loss:.3} before training"));
        } else if step >= total_steps {
            self.finish();
            self.note(&format!("validation loss {loss:.3} after training"));
        } else {
            self.validation = Some((step, loss));
        }
        if !metrics.is_empty() {
            let scores: Vec<String> =
                metrics.iter().map(|(name, value)| format!("{name} {value:.1}")).collect();
            self.note(&format!("validation answers at step {step}: {}", scores.join(", ")));
        }
    }

    /// A watcher found a fault of the training.
    pub fn finding(&mut self, finding: &Finding) {
        self.note(&format!("warning: {}, {finding}", finding.watcher.name().replace('_', " ")));
    }

    /// The training went back to a checkpoint.
    pub fn rolled_back(&mut self, rolled_back: &RolledBack) {
        let RolledBack { step, learning_rate_factor, .. } = *rolled_back;
        self.course.pace = Pace::after(step, Instant::now());
        self.course.last_line = None;
        self.note(&format!(
            "back to step {step}, and on with {learning_rate_factor} times the learning rate"
        ));
    }

    /// A step of a range test is done.
    pub fn range_step(&mut self, step: &RangeStep) {
        let text = format!("lr {}  loss {:.3}", Rate(step.learning_rate), step.smoothed_loss);
        self.show("step", step.step, step.total_steps, &text, false);
    }

    /// Answers are being generated.
    pub fn generating(&mut self, generating: &Generating) {
        let (prompts, total) = (generating.prompts, generating.total_prompts);
        if let (Sink::Bars(bars), Some(_)) = (&mut self.sink, &self.evaluation) {
            return bars.evaluation("prompts", prompts, total);
        }
        // Before the first answer is done, most of the time went to reading the prompts, and the rate tells nothing.
        let text = match generating.prompts {
            0 => String::new(),
            _ => format!("{:.0} new tokens/s", generating.new_tokens_per_s()),
        };
        self.show("prompt", prompts, total, &text, false);
    }

    /// Ends the present stage; what it showed last stays to be read.
    pub fn finish(&mut self) {
        if let Sink::Bars(bars) = &mut self.sink
            && let Some(line) = bars.finish()
        {
            // Left to itself the bar would end its line only where it guesses the terminal's width right.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// `must`: a log gets a line of it in any case.
    fn show(&mut self, unit: &str, done: usize, total: usize, text: &str, must: bool) {
        let now = Instant::now();
        let course = self.evaluation.as_mut().unwrap_or(&mut self.course);
        course.pace.advance(done, now);
        let mut text = text.to_owned();
        if let Some(left) = course.pace.left(total, now) {
            text.push_str(&format!("  {} left", duration(left.as_secs_f64())));
        }
        match &mut self.sink {
            Sink::Bars(bars) => bars.stage(unit, done, total, text),
            Sink::Lines { out, apart } => {
                if must || course.is_due(done, total, *apart, now) {
                    let line = format!("{unit} {done}/{total}  {text}");
                    let _ = writeln!(out, "{}", line.trim_end()).and_then(|()| out.flush());
                    course.last_line = Some((now, done));
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
            Sink::Bars(_) => "bars",
            Sink::Lines { .. } => "lines",
        };
        f.debug_struct("Progress").field("sink", &sink).finish_non_exhaustive()
    }
}

/// A learning rate, as `2.5e-4`.
struct Rate(f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0.0 { f.write_str("0") } else { write!(f, "{:.2e}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::step;
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
        assert!(
            lines[1]
                .starts_with("step 1/80  epoch 0.03/2  loss 2.346  lr 9.50e-4  166 tokens/s (88 % of the GEMM limit)  1617 MiB  "),
            "{text}"
        );
        assert!(lines[1].ends_with(" s left"), "{text}");
        assert_eq!(
            lines[2],
            "step 80/80  epoch 2.00/2  loss 2.346  lr 9.50e-4  166 tokens/s (88 % of the GEMM limit)  1617 MiB"
        );
    }

    #[test]
    fn a_log_gets_a_line_of_each_step_that_is_logged() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::from_secs(3600));
        (1..=80).for_each(|index| progress.step(&Step { is_logged: index % 20 == 0, ..step(index) }));
        let text = out.text();
        let lines: Vec<&str> = text.lines().map(|line| line.split("  ").next().unwrap()).collect();
        assert_eq!(lines, ["step 1/80", "step 20/80", "step 40/80", "step 60/80", "step 80/80"]);
    }

    #[test]
    fn generation_shows_its_speed_once_an_answer_is_done() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::ZERO);
        progress.generating(&Generating { prompts: 0, total_prompts: 300, new_tokens: 0, seconds: 0.0 });
        assert_eq!(out.text(), "", "nothing is done, and there is nothing to say");
        progress.generating(&Generating { prompts: 8, total_prompts: 300, new_tokens: 30, seconds: 0.5 });
        let text = out.text();
        assert!(text.starts_with("prompt 8/300  60 new tokens/s  "), "{text}");
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
        let pass = "answers\nprompt 8/16  3 new tokens/s  0.0 s left\nprompt 16/16  4 new tokens/s\n";
        assert_eq!(out.text(), pass.repeat(2));
    }

    #[test]
    fn a_log_has_some_fifty_lines_a_stage_however_long() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::ZERO);
        (1..=5000).for_each(|index| progress.step(&Step { total_steps: 5000, ..step(index) }));
        assert_eq!(out.text().lines().count(), 51, "the first, and every hundredth");
    }

    #[test]
    fn the_validation_loss_stands_beside_the_loss_with_its_step() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::ZERO);
        progress.stage("training");
        progress.validated(&validated(0, 3.5));
        progress.step(&step(40));
        progress.validated(&validated(40, 2.75));
        progress.step(&step(80));
        progress.validated(&validated(80, 2.5));
        let lines: Vec<String> =
            out.text().lines().map(|line| line.split("  lr").next().unwrap().to_owned()).collect();
        assert_eq!(
            lines,
            [
                "training",
                "validation loss 3.500 before training",
                "step 40/80  epoch 1.00/2  loss 2.346",
                "step 80/80  epoch 2.00/2  loss 2.346  validation 2.750 at step 40",
                "validation loss 2.500 after training",
            ]
        );
    }

    #[test]
    fn a_run_that_goes_back_says_so_and_shows_its_next_step() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::from_secs(3600));
        progress.step(&step(1));
        progress.step(&step(2));
        progress.rolled_back(&RolledBack { step: 0, total_steps: 80, learning_rate_factor: 0.5 });
        progress.step(&step(1));
        let text = out.text();
        let lines: Vec<&str> = text.lines().map(|line| line.split("  epoch").next().unwrap()).collect();
        assert_eq!(
            lines,
            ["step 1/80", "back to step 0, and on with 0.5 times the learning rate", "step 1/80"]
        );
    }

    fn validated(step: usize, loss: f64) -> Validated {
        let metrics = std::collections::BTreeMap::new();
        Validated { step, total_steps: 80, loss, seconds: 0.0, metrics, evaluations_left: 1 }
    }

    #[test]
    fn answers_of_an_evaluation_are_no_steps() {
        let out = Shared::default();
        let mut progress = Progress::lines(out.clone(), Duration::from_secs(3600));
        progress.stage("training");
        progress.evaluating(&Evaluating { examples: 100, total_examples: 100 });
        progress.generating(&Generating { prompts: 100, total_prompts: 100, new_tokens: 100, seconds: 1.0 });
        assert!(out.text().ends_with("prompt 100/100  100 new tokens/s\n"), "{}", out.text());
        progress.validated(&validated(0, 3.5));
        progress.step(&step(1));
        let text = out.text();
        assert!(text.lines().last().unwrap().starts_with("step 1/80") && text.ends_with(" left\n"), "{text}");
    }

    #[test]
    fn text_of_the_data_cannot_drive_the_terminal() {
        let out = Shared::default();
        Progress::lines(out.clone(), Duration::ZERO).note("a\u{1b}[2J\r\n\tb\u{202e}");
        assert_eq!(out.text(), "a⟨U+001B⟩[2J\n\tb⟨U+202E⟩\n");
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
    }
}
