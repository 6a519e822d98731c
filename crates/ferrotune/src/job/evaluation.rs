//! Answers to the test prompts and their scores.

use super::{Assistant, Observer};
use crate::{
    Result,
    progress::Generating,
    report::{GenerationMetrics, Interval, Scores},
};
use ferrotune_data::Example;
use ferrotune_metrics::{Metric, compare, evaluate, evaluate_all};
use std::time::Instant;

/// The test prompts, ready to be answered.
pub(super) struct TestSet {
    pub examples: Vec<Example>,
    pub prompts: Vec<Vec<i64>>,
    pub metrics: Vec<Metric>,
    pub max_new_tokens: usize,
    pub batch_size: usize,
}

/// Answers of one model.
pub(super) struct Pass {
    pub answers: Vec<String>,
    pub scores: Scores,
    pub generation: GenerationMetrics,
}

impl TestSet {
    /// Bytes of the prompts and references, which the predictions hold again.
    pub fn text_bytes(&self) -> u64 {
        let bytes = |example: &Example| example.prompt.text().len() + example.completion.text().len();
        self.examples.iter().map(bytes).sum::<usize>() as u64
    }

    /// Answers every prompt and scores the answers; `None` if the observer cancels.
    pub fn run(&self, assistant: &Assistant, observer: &mut dyn Observer) -> Result<Option<Pass>> {
        let start = Instant::now();
        let on_progress = &mut |progress: &Generating| {
            observer.generating(progress);
            !observer.cancelled()
        };
        let Some(answers) =
            assistant.answer_all(&self.prompts, self.max_new_tokens, self.batch_size, on_progress)?
        else {
            return Ok(None);
        };
        let seconds = start.elapsed().as_secs_f64();
        let new_tokens = answers.iter().map(|answer| answer.new_tokens as u64).sum();
        let answers_cut = answers.iter().filter(|answer| !answer.finished).count() as u64;
        let answers: Vec<String> = answers.into_iter().map(|answer| answer.text).collect();
        let references = self.examples.iter().map(|example| example.completion.text());
        let pairs: Vec<(&str, &str)> = references.zip(answers.iter().map(String::as_str)).collect();
        let mut scores = Scores::default();
        for (metric, estimate) in evaluate_all(&self.metrics, &pairs)? {
            let interval = Interval { value: estimate.value, low: estimate.low, high: estimate.high };
            scores.push(metric.to_string(), interval);
        }
        let generation = GenerationMetrics {
            prompts: self.prompts.len() as u64,
            max_new_tokens: self.max_new_tokens as u64,
            answers_cut,
            new_tokens,
            seconds,
            new_tokens_per_s: new_tokens as f64 / seconds.max(f64::MIN_POSITIVE),
        };
        Ok(Some(Pass { answers, scores, generation }))
    }

    /// What training changed, each metric with its paired interval.
    pub fn change(&self, before: &Pass, after: &Pass) -> Result<Scores> {
        let triples: Vec<(&str, &str, &str)> = (0..self.examples.len())
            .map(|i| {
                (self.examples[i].completion.text(), before.answers[i].as_str(), after.answers[i].as_str())
            })
            .collect();
        let mut scores = Scores::default();
        for &metric in &self.metrics {
            let estimate = compare(metric, &triples)?;
            let interval = Interval { value: estimate.value, low: estimate.low, high: estimate.high };
            scores.push(metric.to_string(), interval);
        }
        Ok(scores)
    }

    /// The score of one answer by the first metric; `None` without a metric.
    pub fn score(&self, index: usize, answer: &str) -> Result<Option<f64>> {
        let Some(&metric) = self.metrics.first() else { return Ok(None) };
        let pair = (self.examples[index].completion.text(), answer);
        Ok(Some(evaluate(metric, &[pair])?.value))
    }
}
