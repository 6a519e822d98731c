//! Precision, recall and F against rouge-score, to the last bit.

use std::num::NonZeroUsize;

use ferrotune_metrics::evaluate;
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

#[test]
fn corpus_values_are_plain_means() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/rouge/scores.json")).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    let text = |case: &Value, key: &str| case[key].as_str().unwrap().to_owned();
    let pairs: Vec<_> =
        cases.iter().map(|case| (text(case, "reference"), text(case, "prediction"))).collect();
    for (index, name) in fixture["types"].as_array().unwrap().iter().enumerate() {
        let fmeasure = |case: &Value| -> f64 {
            case["scores"][index].as_str().unwrap().rsplit(' ').next().unwrap().parse().unwrap()
        };
        let mean = 100.0 * cases.iter().map(fmeasure).sum::<f64>() / cases.len() as f64;
        let found = evaluate(name.as_str().unwrap().parse().unwrap(), &pairs).unwrap();
        assert!((found.value - mean).abs() < 1e-12, "{name}: expected {mean}, found {}", found.value);
        assert!(found.low <= found.value && found.value <= found.high, "{name}: {found:?}");
    }
}
