//! The learning-rate range test.

use serde::Serialize;

use crate::error::Place;
use crate::{Dataset, Error, Gradients, Result, TrainableModel, Trainer, TrainingArguments, best};

/// The sweep of a range test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RangeTest {
    /// The rate of the first step.
    pub start_lr: f64,
    /// The rate of the last one.
    pub end_lr: f64,
    /// Steps.
    pub steps: usize,
}

impl Default for RangeTest {
    /// From 1e-7 to 1 in 100 steps.
    fn default() -> Self {
        Self { start_lr: 1e-7, end_lr: 1.0, steps: 100 }
    }
}

/// A step of a range test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RangePoint {
    /// The rate that the step was done with.
    pub learning_rate: f64,
    /// The loss before it.
    pub loss: f64,
    /// The exponential mean of the losses so far.
    pub smoothed_loss: f64,
}

/// What a range test found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RangeOutcome {
    /// The steps, in order.
    pub points: Vec<RangePoint>,
    /// The rate at which the smoothed loss falls most steeply, by the logarithm of the rate; `None` if it never falls.
    pub steepest: Option<f64>,
    /// A tenth of the rate at which the smoothed loss is lowest.
    pub minimum_tenth: Option<f64>,
    /// Whether the loss ran away before the last rate.
    pub diverged: bool,
}

/// The share of the old mean in the smoothed loss.
const DECAY: f64 = 0.9;
/// From so many times the lowest smoothed loss on the test is over.
const DIVERGED: f64 = 4.0;

/// Finds a learning rate: trains with one that grows by the same factor from step to step, and sees where the loss falls and where it
/// runs away.
///
/// Step `i` of `n` has the rate `start (end / start)^(i / (n - 1))`. The losses are smoothed by `m <- 0.9 m + 0.1 loss`, divided by
/// `1 - 0.9^(i + 1)`. The test ends after `n` steps, at a loss that is not finite, or when the smoothed loss is more than 4 times the
/// lowest. Two suggestions are usual: the rate at which the smoothed loss falls most steeply, and a tenth of that at which it is lowest; the
/// points of the run-away count for neither. `on_point` hears of each step, and `false` ends the test there. Batches, optimizer and clipping are those of `arguments`; the parameters are left as they were.
///
/// ```no_run
/// # fn example<M: ferrotune_trainer::TrainableModel>(model: &M, train: &dyn ferrotune_trainer::Dataset<Batch = M::Batch>) -> ferrotune_trainer::Result<()> {
/// use ferrotune_trainer::{RangeTest, TrainingArguments, find_lr};
/// let on_point = |point: &ferrotune_trainer::RangePoint| {
///     println!("{:e}: {}", point.learning_rate, point.loss);
///     true
/// };
/// let found = find_lr(model, &TrainingArguments::default(), train, RangeTest::default(), on_point)?;
/// println!("{:?}", found.steepest);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] for rates that do not grow from above 0 or fewer than 10 steps; as [`Trainer::train`], except that a loss or
/// gradient that is not finite ends the test and no more.
///
/// # References
/// Smith 2017, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.3.
pub fn find_lr<M: TrainableModel>(
    model: &M,
    arguments: &TrainingArguments,
    train: &dyn Dataset<Batch = M::Batch>,
    test: RangeTest,
    mut on_point: impl FnMut(&RangePoint) -> bool,
) -> Result<RangeOutcome> {
    let RangeTest { start_lr, end_lr, steps } = test;
    if !(start_lr > 0.0 && start_lr < end_lr && end_lr.is_finite()) {
        let expected = "two finite rates, the first above 0 and below the second";
        return Err(Error::InvalidArgument {
            field: "start_lr, end_lr",
            found: format!("{start_lr}, {end_lr}"),
            expected,
        });
    }
    if steps < 10 {
        return Err(Error::InvalidArgument {
            field: "steps",
            found: steps.to_string(),
            expected: "at least 10",
        });
    }
    let max_steps = i64::try_from(steps).unwrap_or(i64::MAX);
    let arguments = TrainingArguments { max_steps, ..arguments.clone() };
    let mut trainer = Trainer::new(model, arguments, train)?;
    let before = best::copies(trainer.optimizer.parameters())?;
    let swept = trainer.sweep(test, &mut on_point);
    best::restore(trainer.optimizer.parameters(), &before)?;
    let (points, diverged) = swept?;
    Ok(outcome(points, diverged))
}

impl<M: TrainableModel> Trainer<'_, M> {
    /// The steps of a range test, and whether it diverged.
    fn sweep(
        &mut self,
        test: RangeTest,
        on_point: &mut dyn FnMut(&RangePoint) -> bool,
    ) -> Result<(Vec<RangePoint>, bool)> {
        let (mut points, mut mean, mut lowest) = (Vec::new(), 0.0, f64::INFINITY);
        let growth = (test.end_lr / test.start_lr).ln() / (test.steps - 1) as f64;
        for epoch in 0.. {
            let order = self.train.order(epoch);
            if order.len() != self.plan.examples {
                return Err(Error::OrderLength { epoch, found: order.len(), expected: self.plan.examples });
            }
            let micro_batches: Vec<&[usize]> = order
                .chunks(self.plan.per_device_train_batch_size)
                .take(self.plan.batches_per_epoch)
                .collect();
            for group in micro_batches.chunks(self.plan.gradient_accumulation_steps) {
                let step = points.len();
                let learning_rate = test.start_lr * (growth * step as f64).exp();
                let loss = match self.step_at(epoch, step, group, learning_rate) {
                    Err(Error::NonFiniteLoss { .. } | Error::NonFiniteGradient { .. }) => {
                        return Ok((points, true));
                    }
                    loss => loss?,
                };
                mean = DECAY * mean + (1.0 - DECAY) * loss;
                let smoothed_loss = mean / (1.0 - DECAY.powf((step + 1) as f64));
                let point = RangePoint { learning_rate, loss, smoothed_loss };
                points.push(point);
                let goes_on = on_point(&point);
                lowest = smoothed_loss.min(lowest);
                if smoothed_loss > DIVERGED * lowest {
                    return Ok((points, true));
                }
                if points.len() == test.steps || !goes_on {
                    return Ok((points, false));
                }
            }
        }
        Ok((points, false))
    }

    fn step_at(&mut self, epoch: usize, step: usize, group: &[&[usize]], learning_rate: f64) -> Result<f64> {
        let mut accumulated = self.accumulate(epoch, step, group)?;
        let place = || Place { step: Some(step + 1), examples: accumulated.examples.clone() };
        if self.overflows(&mut accumulated.gradients).map_err(|error| error.at(place()))? {
            return Ok(accumulated.loss);
        }
        let grad_norm = accumulated.gradients.norm().map_err(|error| error.at(place()))?;
        let scale = match self.arguments.max_grad_norm {
            max_norm if max_norm > 0.0 => Gradients::clip_coefficient(max_norm, grad_norm),
            _ => 1.0,
        };
        self.optimizer.step_scaled(&accumulated.gradients, learning_rate, scale)?;
        Ok(accumulated.loss)
    }
}

/// The suggestions of a curve.
fn outcome(points: Vec<RangePoint>, diverged: bool) -> RangeOutcome {
    let minimum = points
        .iter()
        .enumerate()
        .min_by(|(_, a), (_, b)| a.smoothed_loss.total_cmp(&b.smoothed_loss))
        .map(|(index, point)| (index, point.learning_rate));
    let descent = points.get(..=minimum.map_or(0, |(index, _)| index)).unwrap_or_default();
    // The rates are equally spaced by their logarithm.
    let steepest = descent
        .windows(3)
        .map(|three| (three[1].learning_rate, three[2].smoothed_loss - three[0].smoothed_loss))
        .filter(|(_, slope)| *slope < 0.0)
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(learning_rate, _)| learning_rate);
    let minimum_tenth = steepest.and(minimum).map(|(_, learning_rate)| learning_rate / 10.0);
    RangeOutcome { points, steepest, minimum_tenth, diverged }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(losses: &[f64]) -> Vec<RangePoint> {
        let point = |(index, &loss): (usize, &f64)| RangePoint {
            learning_rate: 10f64.powf(index as f64 - 5.0),
            loss,
            smoothed_loss: loss,
        };
        losses.iter().enumerate().map(point).collect()
    }

    #[test]
    fn suggestions_are_the_steepest_descent_and_a_tenth_of_the_minimum() {
        // Falls most from index 2 to 4, is lowest at 5; the fall after the hill does not count.
        let found = outcome(curve(&[3.0, 2.9, 2.8, 2.0, 1.3, 1.2, 4.0, 2.0]), true);
        assert!((found.steepest.unwrap() / 10f64.powi(-2) - 1.0).abs() < 1e-12, "{found:?}");
        assert!((found.minimum_tenth.unwrap() / 10f64.powi(-1) - 1.0).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn a_loss_that_never_falls_suggests_nothing() {
        for losses in [&[][..], &[1.0], &[1.0, 2.0, 3.0]] {
            let found = outcome(curve(losses), false);
            assert_eq!((found.steepest, found.minimum_tenth), (None, None));
        }
    }
}
