//! The result of a run in plain words: what moved, by how much, and whether that may be chance.

use super::metrics::{Metrics, ValidationMetrics};
use super::scores::Interval;
use super::table::{metric_name, rows};
use super::text::{plural, signed};

/// From so many prompts on an interval from resampled prompts is to be relied on.
const ENOUGH_PROMPTS: u64 = 30;

/// The result as a sentence without its full stop, and what there is to say about it.
pub(super) struct Words {
    pub(super) sentence: String,
    pub(super) detail: String,
}

/// The most telling result that was measured: the first metric, else the validation loss, else the training loss.
pub(super) fn words(metrics: &Metrics) -> Words {
    let (sentence, detail) =
        scores(metrics).or_else(|| validation(metrics)).or_else(|| training(metrics)).unwrap_or_default();
    Words { sentence, detail }
}

fn scores(metrics: &Metrics) -> Option<(String, String)> {
    let rows = rows(metrics);
    let row = rows.first()?;
    let name = metric_name(row.metric);
    let prompts = metrics.generation.as_ref().map_or(0, |generation| generation.prompts);
    let on = if prompts > 0 { format!(" on {}", plural(prompts, "test prompt")) } else { String::new() };
    let (before, after) = match (row.before, row.after) {
        (Some(before), Some(after)) => (before.value, after.value),
        (None, Some(after)) => {
            let detail = "It was not measured before training, so what training changed is not known.";
            return Some((format!("{name} is {:.1}{on} after training", after.value), detail.into()));
        }
        (Some(before), None) => {
            let detail = "It was not measured after training, so what training changed is not known.";
            return Some((format!("{name} was {:.1}{on} before training", before.value), detail.into()));
        }
        (None, None) => return None,
    };
    let (from, to) = different(before, after, 1);
    let change = signed(row.change?);
    let ends = |interval: Interval| format!("{} to {}", signed(interval.low), signed(interval.high));
    let few = (1..ENOUGH_PROMPTS).contains(&prompts);
    Some(match row.change_interval.filter(is_finite) {
        Some(interval) if interval.low > 0.0 || interval.high < 0.0 => {
            let worse =
                if interval.high < 0.0 { " By this measure training made the answers worse." } else { "" };
            let caution = if few { " On so few prompts the interval itself is uncertain." } else { "" };
            let detail = format!(
                "The change is {change} points, with a 95 % interval of {}, paired prompt by prompt.{worse}{caution}",
                ends(interval)
            );
            (format!("{name} {} from {from} to {to}{on}", verb(before, after)), detail)
        }
        Some(Interval { low: 0.0, high: 0.0, .. }) => {
            let detail = format!("It is {from} before and after training: no answer changed its score.");
            (format!("No change in {name}{on}"), detail)
        }
        Some(interval) => {
            let few = if few { " So few prompts cannot tell: test on more." } else { "" };
            let detail = format!(
                "It was {from} before training and is {to} after. The change of {change} points may be chance: its 95 % interval, {}, \
                 includes zero.{few}",
                ends(interval)
            );
            (format!("No clear change in {name}{on}"), detail)
        }
        None => {
            let detail = "The change has no interval, so it may be chance.".to_owned();
            (moved(&name, (before, after), (&from, &to), &on), detail)
        }
    })
}

fn validation(metrics: &Metrics) -> Option<(String, String)> {
    let ValidationMetrics { loss, loss_before, examples, .. } = metrics.validation.as_ref()?;
    let over = format!(
        "The mean negative log-likelihood of a target token over {}; no answers were generated.",
        plural(*examples, "validation example")
    );
    Some(match loss_before {
        Some(before) => {
            let (from, to) = different(*before, *loss, 2);
            let perplexity = format!(" Perplexity: {:.1} before, {:.1} after.", before.exp(), loss.exp());
            (moved("The validation loss", (*before, *loss), (&from, &to), ""), over + &perplexity)
        }
        None => (format!("The validation loss is {loss:.2} after training"), over),
    })
}

fn training(metrics: &Metrics) -> Option<(String, String)> {
    let train = metrics.train.as_ref()?;
    let detail =
        "Nothing was held out: how the model does on what it has not seen was not measured.".to_owned();
    let steps = plural(train.steps, "step");
    Some(match train.loss.as_slice() {
        [first, .., last] => {
            let (from, to) = different(first.loss, last.loss, 2);
            (
                moved("The training loss", (first.loss, last.loss), (&from, &to), &format!(" in {steps}")),
                detail,
            )
        }
        [only] => (format!("The training loss is {:.2} after {steps}", only.loss), detail),
        [] => (format!("Trained for {steps}"), detail),
    })
}

fn moved(what: &str, (before, after): (f64, f64), (from, to): (&str, &str), rest: &str) -> String {
    match verb(before, after) {
        "is unchanged" => format!("{what} is unchanged{rest}, at {to}"),
        verb => format!("{what} {verb} from {from} to {to}{rest}"),
    }
}

fn verb(before: f64, after: f64) -> &'static str {
    match after.partial_cmp(&before) {
        Some(std::cmp::Ordering::Greater) => "rose",
        Some(std::cmp::Ordering::Less) => "fell",
        Some(std::cmp::Ordering::Equal) => "is unchanged",
        None => "went",
    }
}

/// Two numbers with so many decimals, or one more if they would look the same.
fn different(a: f64, b: f64, decimals: usize) -> (String, String) {
    let shown = |decimals: usize| (format!("{a:.decimals$}"), format!("{b:.decimals$}"));
    let (from, to) = shown(decimals);
    if from == to && a != b { shown(decimals + 1) } else { (from, to) }
}

fn is_finite(interval: &Interval) -> bool {
    interval.low.is_finite() && interval.high.is_finite()
}

#[cfg(test)]
mod tests {
    use super::super::{GenerationMetrics, LoggedStep, Scores, TrainMetrics};
    use super::*;

    fn of(metrics: &Metrics) -> String {
        let Words { sentence, detail } = words(metrics);
        format!("{sentence}. {detail}")
    }

    fn one(value: f64, low: f64, high: f64) -> Option<Scores> {
        Some([("rougeL", Interval { value, low, high })].into_iter().collect())
    }

    fn compared(before: f64, after: f64, low: f64, high: f64) -> Metrics {
        Metrics {
            before: one(before, 0.0, 99.0),
            after: one(after, 0.0, 99.0),
            change: one(after - before, low, high),
            generation: Some(GenerationMetrics { prompts: 300, ..Default::default() }),
            ..Metrics::default()
        }
    }

    #[test]
    fn a_change_is_said_with_its_direction_and_its_interval() {
        assert_eq!(
            of(&compared(13.4, 31.3, 16.1, 19.7)),
            "ROUGE-L rose from 13.4 to 31.3 on 300 test prompts. The change is +17.9 points, with a 95 % interval of \
             +16.1 to +19.7, paired prompt by prompt."
        );
        assert_eq!(
            of(&compared(31.3, 13.4, -19.7, -16.1)),
            "ROUGE-L fell from 31.3 to 13.4 on 300 test prompts. The change is −17.9 points, with a 95 % interval of \
             −19.7 to −16.1, paired prompt by prompt. By this measure training made the answers worse."
        );
    }

    #[test]
    fn a_change_that_may_be_chance_is_no_success() {
        let chance = compared(31.3, 31.9, -0.4, 1.6);
        assert_eq!(
            of(&chance),
            "No clear change in ROUGE-L on 300 test prompts. It was 31.3 before training and is 31.9 after. The change of +0.6 points \
             may be chance: its 95 % interval, −0.4 to +1.6, includes zero."
        );
        let touching = of(&compared(31.3, 31.9, 0.0, 1.6));
        assert!(touching.starts_with("No clear change"), "{touching}");
        let on = |prompts| {
            let generation = Some(GenerationMetrics { prompts, ..Default::default() });
            of(&Metrics { generation, ..chance.clone() })
        };
        assert!(on(29).ends_with(" includes zero. So few prompts cannot tell: test on more."), "{}", on(29));
        assert!(on(30).ends_with(" includes zero.") && on(0).ends_with(" includes zero."), "{}", on(30));
        let generation = Some(GenerationMetrics { prompts: 4, ..Default::default() });
        let clear = of(&Metrics { generation, ..compared(13.4, 31.3, 16.1, 19.7) });
        assert!(clear.ends_with("On so few prompts the interval itself is uncertain."), "{clear}");
        let unmeasured = Metrics { change: None, ..compared(31.3, 31.9, 0.0, 0.0) };
        assert!(
            of(&unmeasured)
                .contains("rose from 31.3 to 31.9 on 300 test prompts. The change has no interval")
        );
    }

    #[test]
    fn answers_of_the_same_scores_are_no_change() {
        assert_eq!(
            of(&compared(31.3, 31.3, 0.0, 0.0)),
            "No change in ROUGE-L on 300 test prompts. It is 31.3 before and after training: no answer changed its score."
        );
        // Here some rose and others fell.
        assert!(of(&compared(31.3, 31.3, -0.5, 0.5)).starts_with("No clear change"));
    }

    #[test]
    fn small_differences_are_not_rounded_away() {
        assert!(of(&compared(31.32, 31.34, 0.01, 0.03)).starts_with("ROUGE-L rose from 31.32 to 31.34"));
    }

    #[test]
    fn one_side_alone_tells_no_change() {
        let metrics = Metrics { before: None, change: None, ..compared(0.0, 31.3, 0.0, 0.0) };
        assert!(
            of(&metrics).starts_with(
                "ROUGE-L is 31.3 on 300 test prompts after training. It was not measured before"
            )
        );
        let metrics = Metrics { after: None, change: None, ..compared(13.4, 0.0, 0.0, 0.0) };
        assert!(
            of(&metrics).starts_with(
                "ROUGE-L was 13.4 on 300 test prompts before training. It was not measured after"
            )
        );
    }

    #[test]
    fn without_scores_the_losses_speak() {
        let validation = |loss_before, loss| {
            Some(ValidationMetrics { loss, loss_before, examples: 1, ..Default::default() })
        };
        let metrics = |validation| Metrics { validation, ..Metrics::default() };
        let text = of(&metrics(validation(Some(3.5), 2.25)));
        assert!(text.starts_with("The validation loss fell from 3.50 to 2.25. "), "{text}");
        assert!(
            text.contains("over 1 validation example;") && text.contains("33.1 before, 9.5 after"),
            "{text}"
        );
        assert!(of(&metrics(validation(Some(2.25), 3.5))).contains("loss rose from 2.25 to 3.50"));
        assert!(of(&metrics(validation(Some(2.25), 2.25))).contains("loss is unchanged, at 2.25"));
        assert!(of(&metrics(validation(None, 2.25))).contains("loss is 2.25 after training"));
        let logged = |losses: &[f64]| {
            let loss = losses.iter().map(|&loss| LoggedStep { loss, ..Default::default() }).collect();
            Metrics {
                train: Some(TrainMetrics { steps: 1, loss, ..Default::default() }),
                ..Metrics::default()
            }
        };
        assert!(
            of(&logged(&[3.0, 2.0]))
                .starts_with("The training loss fell from 3.00 to 2.00 in 1 step. Nothing")
        );
        assert!(
            of(&logged(&[3.0])).starts_with("The training loss is 3.00 after 1 step. Nothing was held out")
        );
        assert!(of(&logged(&[])).starts_with("Trained for 1 step. "));
        assert!(of(&logged(&[3.0, f64::NAN])).contains("went from 3.00 to NaN"));
        assert_eq!(of(&Metrics::default()), ". ");
    }
}
