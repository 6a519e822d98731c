//! Precision, recall and F against rouge-score, to the last bit.

use std::num::NonZeroUsize;

use ferrotune_metrics::rouge::TextPair;
use serde_json::Value;

#[test]
fn scores_equal_rouge_score() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/rouge/scores.json")).unwrap();
    let types: Vec<&str> =
        fixture["types"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let (reference, prediction) =
            (case["reference"].as_str().unwrap(), case["prediction"].as_str().unwrap());
        let pair = TextPair::new(reference, prediction);
        for (name, expected) in types.iter().zip(case["scores"].as_array().unwrap()) {
            let score = match *name {
                "rougeL" => pair.rouge_l(),
                "rougeLsum" => pair.rouge_lsum(),
                _ => pair.rouge_n(name["rouge".len()..].parse::<NonZeroUsize>().unwrap()),
            };
            let found = [score.precision, score.recall, score.fmeasure];
            let expected: Vec<f64> =
                expected.as_str().unwrap().split(' ').map(|value| value.parse().unwrap()).collect();
            assert_eq!(found.as_slice(), expected, "{name} of {reference:?} and {prediction:?}");
        }
    }
}
