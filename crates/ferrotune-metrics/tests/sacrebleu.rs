//! BLEU and chrF of whole corpora against sacrebleu.

use ferrotune_metrics::{Metric, evaluate};
use serde_json::Value;

#[test]
fn scores_equal_sacrebleu() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/sacrebleu/scores.json")).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let pairs: Vec<(String, String)> = serde_json::from_value(case["pairs"].clone()).unwrap();
        for metric in [Metric::Bleu, Metric::Chrf] {
            let expected: f64 = case[metric.name()].as_str().unwrap().parse().unwrap();
            let found = evaluate(metric, &pairs).unwrap();
            let close = (found.value - expected).abs() <= 1e-12 * expected.abs();
            assert!(close, "{metric} of {}: expected {expected}, found {}", case["name"], found.value);
            assert!(
                (0.0..=100.0 + 1e-9).contains(&found.low) && found.low <= found.high,
                "{metric}: {found:?}"
            );
        }
    }
}
