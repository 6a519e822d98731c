//! The stemmer against NLTK's on some thousand words.

use ferrotune_metrics::rouge::stem;
use serde_json::Value;

#[test]
fn stems_equal_nltk() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/porter/stems.json")).unwrap();
    let stems = fixture["stems"].as_object().unwrap();
    assert!(stems.len() > 4000);
    let different: Vec<String> = stems
        .iter()
        .map(|(word, expected)| (word, expected.as_str().unwrap(), stem(word)))
        .filter(|(_, expected, found)| expected != found)
        .map(|(word, expected, found)| format!("{word}: expected {expected}, found {found}"))
        .collect();
    assert!(different.is_empty(), "{} words differ:\n{}", different.len(), different.join("\n"));
}
