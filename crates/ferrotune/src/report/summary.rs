//! What the terminal says under the table of scores.

use super::metrics::{GenerationMetrics, Metrics};
use super::text::{duration, grouped, plural};

/// What there is to know besides the scores, a line each: answers that were cut off, the validation loss, the time.
///
/// ```
/// use ferrotune::report::{GenerationMetrics, Metrics, summary};
///
/// let generation = GenerationMetrics { prompts: 40, max_new_tokens: 32, answers_cut: 12, ..Default::default() };
/// let metrics = Metrics { generation: Some(generation), ..Metrics::default() };
/// assert!(summary(&metrics).starts_with("12 of 40 answers were cut off at 32 new tokens"));
/// ```
#[must_use]
pub fn summary(metrics: &Metrics) -> String {
    let mut lines = vec![];
    lines.extend(metrics.generation.as_ref().and_then(cut_answers));
    if let Some(validation) = &metrics.validation {
        let before = validation.loss_before.map(|loss| format!("{loss:.3} before training, "));
        lines.push(format!("validation loss {}{:.3} after", before.unwrap_or_default(), validation.loss));
    }
    if let Some(train) = &metrics.train {
        let stages: f64 = metrics.stages.iter().map(|stage| stage.seconds).sum();
        let whole = if stages > 0.0 { format!("{} in all, ", duration(stages)) } else { String::new() };
        let steps = plural(train.steps, "step");
        lines.push(format!("time {whole}{} for the {steps} of training", duration(train.seconds)));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// How many answers of the last pass ended for want of room, and what to set; nothing if none did.
pub(super) fn cut_answers(generation: &GenerationMetrics) -> Option<String> {
    let GenerationMetrics { prompts, max_new_tokens, answers_cut, .. } = *generation;
    (answers_cut > 0).then(|| {
        format!(
            "{} of {} cut off at {max_new_tokens} new tokens; a higher `generation.max_new_tokens` lets them end",
            grouped(answers_cut),
            if prompts == 1 { "1 answer was".to_owned() } else { format!("{} answers were", grouped(prompts)) },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::{StageTime, TrainMetrics, ValidationMetrics};
    use super::*;

    #[test]
    fn what_was_measured_has_a_line() {
        assert_eq!(summary(&Metrics::default()), "");
        let mut metrics = Metrics {
            generation: Some(GenerationMetrics {
                prompts: 1,
                max_new_tokens: 8,
                answers_cut: 1,
                ..Default::default()
            }),
            validation: Some(ValidationMetrics { loss: 2.25, loss_before: Some(3.5), ..Default::default() }),
            train: Some(TrainMetrics { steps: 1, seconds: 61.0, ..Default::default() }),
            stages: vec![StageTime { name: "training".to_owned(), seconds: 75.0 }; 2],
            ..Metrics::default()
        };
        assert_eq!(
            summary(&metrics),
            "1 of 1 answer was cut off at 8 new tokens; a higher `generation.max_new_tokens` lets them end\n\
             validation loss 3.500 before training, 2.250 after\n\
             time 2 min 30 s in all, 1 min 1 s for the 1 step of training\n"
        );
        metrics.generation = Some(GenerationMetrics { prompts: 300, ..Default::default() });
        metrics.validation = Some(ValidationMetrics { loss: 2.25, ..Default::default() });
        metrics.stages.clear();
        assert_eq!(
            summary(&metrics),
            "validation loss 2.250 after\ntime 1 min 1 s for the 1 step of training\n"
        );
    }
}
