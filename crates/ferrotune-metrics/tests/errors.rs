//! Each error, reached.

use ferrotune_metrics::{
    Error, Estimate, Metric, compare_predictions, evaluate_all, perplexity, read_predictions, write_metrics,
};
use std::path::Path;

const NO_SCORES: &[(Metric, Estimate)] = &[];

#[test]
fn each_mistake_is_an_error_of_its_own() {
    assert!(matches!("rogue1".parse::<Metric>(), Err(Error::UnknownMetric { found }) if found == "rogue1"));
    let none: [(&str, &str); 0] = [];
    assert!(matches!(evaluate_all(&Metric::ALL, &none), Err(Error::NoExamples)));
    assert!(matches!(perplexity(1.0, 0), Err(Error::NoTargetTokens)));
    assert!(matches!(read_predictions(Path::new("no/such/file"), "prediction"), Err(Error::Read { .. })));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(read_predictions(file.path(), "prediction"), Err(Error::NoPredictions { .. })));
    std::fs::write(file.path(), "{}\n").unwrap();
    assert!(matches!(read_predictions(file.path(), "prediction"), Err(Error::BadLines { total: 1, .. })));
    assert!(matches!(write_metrics(Path::new("no/such/folder/file"), NO_SCORES), Err(Error::Write { .. })));
    std::fs::write(file.path(), "{\"reference\": \"a\", \"prediction\": \"b\"}\n").unwrap();
    let one = read_predictions(file.path(), "prediction").unwrap();
    assert!(matches!(
        compare_predictions(&Metric::ALL, &one, &[]),
        Err(Error::Unpaired { line: 1, before: Some(_), after: None })
    ));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_with_a_remedy() {
    let error = write_metrics(Path::new("/dev/full"), NO_SCORES).unwrap_err();
    assert!(error.to_string().contains("make room there"), "{error}");
}
