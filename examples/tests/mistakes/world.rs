//! What is wrong with the folders and files around a run.

use crate::{
    common::{Job, snapshot},
    refused,
};
use std::fs;

#[test]
fn output_directories_that_cannot_be_are_told_first() {
    let job = Job::new();
    job.write("file", "");
    refused(&job, &["output_dir=file"], &["`output_dir`", "is a file"]);
    refused(&job, &["output_dir=file/run"], &["file/run"]);
    refused(&job, &["output_dir=train.jsonl"], &["`output_dir`", "`data.train`"]);
    // Where results would replace what is no result.
    fs::create_dir_all(job.path("out/report.html/mine")).unwrap();
    refused(&job, &["overwrite_output_dir=true"], &["report.html"]);
    for tool in ["generate", "score"] {
        for output in ["file/o.jsonl", ".", "out"] {
            let run = job.tool(tool, &["--input", "test.jsonl", "--output", output]);
            run.refused(&[output]);
            assert!(!run.stderr.contains("prompt "), "before the work begins: {run}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_result_never_replaces_its_input() {
    let job = Job::new();
    let before = snapshot(job.folder());
    std::os::unix::fs::symlink("test.jsonl", job.path("link.jsonl")).unwrap();
    for output in ["test.jsonl", "./test.jsonl", "link.jsonl"] {
        for tool in ["generate", "score"] {
            job.tool(tool, &["--input", "test.jsonl", "--output", output])
                .refused(&[output, "it is the input"]);
        }
        let run = job.run("evaluate", &["--input", "test.jsonl", "--output", output]);
        run.refused(&[output, "it is the input"]);
    }
    fs::remove_file(job.path("link.jsonl")).unwrap();
    assert!(before == snapshot(job.folder()));
}
