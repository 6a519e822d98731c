//! Bars on a terminal: the present stage, and in a training the epoch and the evaluation under it.

use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Positions of the bar of an epoch.
const EPOCH: u64 = 1000;

/// The bars of the present stage, as far as it has them yet.
#[derive(Debug)]
pub(super) struct Bars {
    all: MultiProgress,
    stage: Option<ProgressBar>,
    epoch: Option<ProgressBar>,
    evaluation: Option<ProgressBar>,
}

impl Bars {
    pub(super) fn new(target: ProgressDrawTarget) -> Self {
        Self { all: MultiProgress::with_draw_target(target), stage: None, epoch: None, evaluation: None }
    }

    /// Shows how far the stage is.
    pub(super) fn stage(&mut self, unit: &str, done: usize, total: usize, text: String) {
        let bar = self.stage.get_or_insert_with(|| self.all.insert(0, new_bar(unit)));
        set(bar, done as u64, total as u64, text);
    }

    /// Shows how far the epoch is, and which one of how many.
    pub(super) fn epoch(&mut self, epochs_done: f64, total: usize) {
        let present = epochs_done.ceil().max(1.0);
        let share = epochs_done - (present - 1.0);
        let bar = self.epoch.get_or_insert_with(|| self.all.add(new_bar("epoch")));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
        let position = (share * EPOCH as f64).round() as u64;
        set(bar, position, EPOCH, format!("{present:.0}/{total}"));
    }

    /// Shows how far an evaluation is, in examples or prompts.
    pub(super) fn evaluation(&mut self, unit: &str, done: usize, total: usize) {
        let bar = self.evaluation.get_or_insert_with(|| self.all.add(new_bar("evaluation")));
        set(bar, done as u64, total as u64, format!("{done}/{total} {unit}"));
    }

    /// Takes the bar of the evaluation away.
    pub(super) fn end_evaluation(&mut self) {
        if let Some(bar) = self.evaluation.take() {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }

    /// Writes above the bars.
    pub(super) fn print(&self, text: &str) -> io::Result<()> {
        self.all.suspend(|| writeln!(io::stderr(), "{text}"))
    }

    /// Takes all bars away; what that of the stage showed last.
    pub(super) fn finish(&mut self) -> Option<String> {
        self.end_evaluation();
        if let Some(bar) = self.epoch.take() {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        let bar = self.stage.take()?;
        let (done, total) = (bar.position(), bar.length().unwrap_or_default());
        let line = format!("{} {done}/{total}  {}", bar.prefix(), bar.message());
        bar.finish_and_clear();
        self.all.remove(&bar);
        Some(line.trim_end().to_owned())
    }
}

fn set(bar: &ProgressBar, done: u64, total: u64, text: String) {
    bar.set_length(total);
    bar.set_message(text);
    bar.set_position(done);
}

fn new_bar(unit: &str) -> ProgressBar {
    let bar = ProgressBar::hidden().with_prefix(unit.to_owned());
    let template = match unit {
        // What their texts say is position and length.
        "epoch" | "evaluation" => "{bar:24.cyan/dim} {prefix} {msg}",
        _ => "{bar:24.cyan/dim} {prefix} {pos}/{len}  {msg}",
    };
    // A template of ours that does not parse would be a bar without style, not a failed run.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_counted_and_the_evaluation_comes_and_goes() {
        let mut bars = Bars::new(ProgressDrawTarget::hidden());
        let shown = |bar: &Option<ProgressBar>| bar.as_ref().map(|bar| (bar.position(), bar.message()));
        for (epochs_done, position, text) in
            [(0.0, 0, "1/3"), (0.25, 250, "1/3"), (1.0, 1000, "1/3"), (1.5, 500, "2/3"), (3.0, 1000, "3/3")]
        {
            bars.epoch(epochs_done, 3);
            assert_eq!(shown(&bars.epoch), Some((position, text.to_owned())));
        }
        bars.evaluation("examples", 8, 20);
        assert_eq!(shown(&bars.evaluation), Some((8, "8/20 examples".to_owned())));
        bars.end_evaluation();
        assert_eq!(shown(&bars.evaluation), None);
        bars.stage("step", 3, 80, "loss 2.3".to_owned());
        assert_eq!(bars.finish().as_deref(), Some("step 3/80  loss 2.3"));
        assert_eq!((bars.finish(), shown(&bars.epoch)), (None, None));
    }
}
