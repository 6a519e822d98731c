//! What is legal and may disappoint, said before the training.

use crate::recipe::TrainingSection;
use ferrotune_trainer::TrainPlan;

/// A run of fewer optimizer steps hardly changes a model.
const FEW_STEPS: usize = 50;

/// That most answers may end at `max_new_tokens`, although the references go on.
pub(super) fn short_answers(reference_tokens: &[usize], max_new_tokens: usize) -> Option<String> {
    let mut tokens = reference_tokens.to_vec();
    tokens.sort_unstable();
    // Of the references, 95 % have so many tokens or fewer.
    let most = *tokens.get((tokens.len() * 95).div_ceil(100).checked_sub(1)?)?;
    (most > max_new_tokens).then(|| {
        format!(
            "answers are cut off at {max_new_tokens} new tokens, and the references have up to {most} (95th percentile); set \
             `generation.max_new_tokens={most}` to measure whole answers"
        )
    })
}

/// That there are few optimizer steps, that none but the last is logged, and that the warm-up takes all of them.
pub(super) fn few_steps(plan: &TrainPlan, training: &TrainingSection) -> Vec<String> {
    let steps = match plan.max_steps {
        1 => "1 optimizer step".to_owned(),
        steps => format!("{steps} optimizer steps"),
    };
    let few = (plan.max_steps < FEW_STEPS).then(|| {
        let (batch, accumulation) = (training.per_device_train_batch_size, training.gradient_accumulation_steps);
        let longer = match training.max_steps {
            ..=0 => format!("raise `training.num_train_epochs` (now {})", training.num_train_epochs),
            max_steps => format!("raise `training.max_steps` (now {max_steps})"),
        };
        format!(
            "the run has {steps}, which may change little; for more, {longer}, or lower `training.gradient_accumulation_steps` \
             (now {accumulation}) or `training.per_device_train_batch_size` (now {batch})"
        )
    });
    let logging_steps = training.logging_steps;
    let waits = training.logging_strategy == "steps" && !training.logging_first_step;
    let unlogged = (waits && logging_steps > plan.max_steps).then(|| {
        format!(
            "`training.logging_steps` is {logging_steps} and the run has {steps}: metrics.json will hold the loss of the last one \
             only; the report shows every step"
        )
    });
    // Where `max_steps` is given, the recipe itself was warned of.
    let warms_up = (training.max_steps <= 0 && plan.warmup_steps >= plan.max_steps).then(|| {
        format!(
            "`training.warmup_steps` is {} and the run has {steps}: the learning rate never reaches its peak",
            training.warmup_steps
        )
    });
    [few, unlogged, warms_up].into_iter().flatten().map(|note| format!("note: {note}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_trainer::TrainingArguments;

    #[test]
    fn references_longer_than_answers_may_be_are_told() {
        assert_eq!(short_answers(&[], 1), None);
        let mut tokens = vec![10; 95];
        tokens.extend([90; 5]);
        assert_eq!(short_answers(&tokens, 10), None, "95 % fit");
        let note = short_answers(&tokens, 9).unwrap();
        assert!(
            note.contains("at 9 new tokens") && note.contains("`generation.max_new_tokens=10`"),
            "{note}"
        );
        tokens[0] = 90;
        let note = short_answers(&tokens, 32).unwrap();
        assert!(note.contains("at 32 new tokens") && note.contains("have up to 90 ("), "{note}");
    }

    #[test]
    fn few_steps_and_what_makes_more_of_them_are_told() {
        let notes = |steps: i64, training: TrainingSection| {
            let arguments = TrainingArguments { max_steps: steps, ..TrainingArguments::default() };
            few_steps(&arguments.plan(16).unwrap(), &training)
        };
        let training = || TrainingSection { logging_steps: 10, ..TrainingSection::default() };
        assert_eq!(notes(50, training()), [""; 0]);
        let few = notes(49, training());
        for part in
            ["49 optimizer steps", "`training.num_train_epochs` (now 3)", "steps` (now 8)", "size` (now 4)"]
        {
            assert!(few[0].contains(part), "{part} is not in: {few:?}");
        }
        assert_eq!(few.len(), 1, "{few:?}");
        let both = notes(1, TrainingSection { max_steps: 1, ..training() });
        assert!(both[0].contains("1 optimizer step,") && both[0].contains("`training.max_steps` (now 1)"));
        assert!(
            both[1].starts_with("note: `training.logging_steps` is 10 and the run has 1 opt"),
            "{both:?}"
        );
        let unlogged = notes(99, TrainingSection { logging_steps: 100, ..training() });
        assert!(unlogged[0].contains("`training.logging_steps` is 100 and the run has 99"), "{unlogged:?}");
        assert_eq!(notes(100, TrainingSection { logging_steps: 100, ..training() }), [""; 0]);
        for logged in [
            TrainingSection { logging_first_step: true, ..training() },
            TrainingSection { logging_strategy: "epoch".to_owned(), ..training() },
        ] {
            assert_eq!(notes(99, TrainingSection { logging_steps: 100, ..logged }), [""; 0]);
        }
    }
}
