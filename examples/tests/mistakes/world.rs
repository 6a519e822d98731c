//! What is wrong with the folders and files around a run.

#[cfg(target_os = "linux")]
use crate::common::{COPY_OUT, on_small_disk};
use crate::{
    common::{self, Job, Run, program, snapshot},
    refused,
};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

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

#[test]
fn what_is_not_a_runs_is_never_replaced_with_it() {
    let job = Job::new();
    job.finetune(&["evaluation.before=false", "evaluation.after=false"]).succeeded();
    for foreign in
        ["adapter/precious.txt", "adapter/README.md", "adapter/model/config.json", "unfinished/notes"]
    {
        let path = job.path("out").join(foreign);
        let folder = path.parent().unwrap().to_owned();
        let made = !folder.exists();
        fs::create_dir_all(&folder).unwrap();
        fs::write(&path, "mine").unwrap();
        let named = format!("out/{}", foreign.trim_end_matches("/config.json"));
        refused(&job, &["overwrite_output_dir=true"], &[&named, "is in the way", "move it away"]);
        fs::remove_file(&path).unwrap();
        if made {
            fs::remove_dir(folder).unwrap();
        }
    }
    // An input under a name that a run itself might have used.
    fs::create_dir(job.path("out/unfinished")).unwrap();
    fs::copy(job.path("train.jsonl"), job.path("out/unfinished/predictions.jsonl")).unwrap();
    let settings = ["overwrite_output_dir=true", "data.train=out/unfinished/predictions.jsonl"];
    refused(&job, &settings, &["out/unfinished/predictions.jsonl", "no input of the run"]);
    job.finetune(&["overwrite_output_dir=true"]).succeeded();
    assert!(!job.path("out/unfinished").exists());
}

#[test]
fn a_second_run_in_the_same_directory_is_refused() {
    let job = Job::new();
    let long = ["--json", "recipe.toml", "--set", "training.max_steps=1000000"];
    let mut command = common::command("finetune", job.folder(), &long);
    let mut first = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut events = BufReader::new(first.stdout.take().unwrap());
    events.read_line(&mut String::new()).unwrap();
    for overwrite in ["overwrite_output_dir=true", "overwrite_output_dir=false"] {
        job.finetune(&[overwrite]).refused(&["another run is writing to out", "`output_dir`"]);
    }
    first.kill().unwrap();
    first.wait().unwrap();
    // The lock of a dead process is none.
    job.finetune(&["evaluation.before=false", "evaluation.after=false"]).succeeded();
    assert!(job.path("out/adapter").is_dir() && !job.path("out/.ferrotune-lock").exists());
}

#[test]
fn an_adapter_that_the_last_step_spoils_is_told_by_the_training() {
    let job = Job::new();
    let settings =
        ["training.max_steps=1", "training.learning_rate=1e39", "training.lr_scheduler_type=constant"];
    let run = job.finetune(&[&settings[..], &["evaluation.before=false"]].concat());
    run.ended_with(1);
    for words in ["step 1", "q_proj", "lower the learning rate"] {
        assert!(run.stderr.contains(words), "{words} is not in: {run}");
    }
    assert!(!job.path("out").exists());
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
    // Nor the model or the adapter that made it.
    job.own_model();
    let before = snapshot(job.folder());
    for tool in ["generate", "score"] {
        for output in ["model/model.safetensors", "model/config.json"] {
            let files = ["--model", "model", "--input", "test.jsonl", "--output", output];
            job.run(tool, &files).refused(&[output, "in use", "name another file"]);
        }
    }
    assert!(before == snapshot(job.folder()));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_what_was_there_and_loses_no_training() {
    let job = Job::new();
    // Checkpoints are files of the run, and would change what is written when.
    job.finetune(&["training.save_strategy=no"]).succeeded();
    let old = snapshot(&job.path("out"));
    fs::create_dir(job.path("tmp")).unwrap();
    let finetune = format!(
        "cp -r out disk/out && {} recipe.toml --set output_dir=disk/out --set overwrite_output_dir=true \
         --set training.save_strategy=no; {COPY_OUT}",
        program("finetune").display()
    );
    // In pages of 4 KiB, as the file system counts. The new run takes as much as the old one: from no room at all to all but enough.
    let taken = old.values().flatten().map(|bytes| 4 * bytes.len().div_ceil(4096) as u32).sum::<u32>();
    for (kib, words) in [
        (taken, "the results of this run need at least"),
        (taken + 8, "adapter_model.safetensors"),
        (taken + 12, "recipe.toml"),
        (taken + 20, "metrics.json"),
        (2 * taken - 4, "report.html"),
    ] {
        let before_training = words.contains("need at least");
        let Some(run) = on_small_disk(&job, kib, &format!("export TMPDIR=$PWD/tmp; {finetune}")) else {
            return;
        };
        run.refused(&["disk/out", words, "make room there"]);
        assert_eq!(run.stderr.lines().any(|line| line == "training"), !before_training, "{run}");
        let mut found = snapshot(&job.path("found/out"));
        let kept = found.keys().any(|path| path.ends_with("unfinished/adapter/adapter_model.safetensors"));
        found.retain(|path, _| !path.to_string_lossy().contains("unfinished"));
        let relative = |files: &std::collections::BTreeMap<std::path::PathBuf, _>, root: &str| {
            files.keys().map(|path| path.strip_prefix(job.path(root)).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(relative(&found, "found/out"), relative(&old, "out"), "at {kib} KiB");
        assert!(found.values().eq(old.values()), "the earlier results have changed at {kib} KiB");
        // The adapter is beside the old one, or else in the temporary folder.
        let rescued = fs::read_dir(job.path("tmp")).unwrap().map(|entry| entry.unwrap().path()).next();
        if before_training {
            assert!(!kept && rescued.is_none());
            continue;
        }
        assert!(run.stderr.contains("the training is not lost"), "{run}");
        let adapter = match &rescued {
            Some(folder) => folder.clone(),
            None => job.path("found/out/unfinished/adapter"),
        };
        assert!(kept != rescued.is_some());
        let adapter = adapter.to_str().unwrap();
        job.tool("generate", &["--adapter", adapter, "--prompt", "the cat", "--max-new-tokens", "2"])
            .succeeded();
        if let Some(folder) = rescued {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_gets_no_half_of_a_tools_result() {
    let job = Job::new();
    let tools = [
        ("generate", "--input test.jsonl --max-new-tokens 2"),
        ("score", "--input test.jsonl"),
        ("evaluate", "--input lines.jsonl"),
        ("import", ""),
    ];
    job.write("lines.jsonl", "{\"reference\": \"a b\", \"prediction\": \"a\"}\n");
    for (tool, arguments) in tools {
        let model = match tool {
            "generate" | "score" => format!("--model {} --threads 1", common::model().display()),
            "import" => format!("--gguf {}", common::tiny_gguf().display()),
            _ => String::new(),
        };
        let script = format!(
            "head -c 64k /dev/zero > disk/filler; {} {model} {arguments} --output disk/result; {COPY_OUT}",
            program(tool).display()
        );
        let Some(run) = on_small_disk(&job, 64, &script) else { return };
        run.refused(&["disk/result", "make room there"]);
        let left: Vec<_> = snapshot(&job.path("found")).into_keys().collect();
        assert_eq!(left, [job.path("found/filler")], "{tool} left something");
    }
}

#[cfg(unix)]
#[test]
fn a_limit_on_the_size_of_files_is_an_error_like_any_other() {
    let job = Job::new();
    job.write("lines.jsonl", "{\"reference\": \"a b\", \"prediction\": \"a\"}\n");
    let model = common::model().to_str().unwrap();
    let limited = |blocks: u32, name: &str, arguments: &[&str]| {
        // A block has 512 bytes in POSIX, 1024 in some shells.
        let script = format!("ulimit -f {blocks} && exec \"$0\" \"$@\"");
        let program = program(name);
        let arguments = [&["-c", &script, program.to_str().unwrap()], arguments].concat();
        let mut command = Command::new("sh");
        command.args(arguments).current_dir(job.folder()).env("XDG_CACHE_HOME", job.path("cache"));
        let output = command.env("TMPDIR", job.folder()).env("GOMP_SPINCOUNT", "0").output().unwrap();
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    };
    let before = snapshot(job.folder());
    let tool = ["--model", model, "--threads", "1", "--input", "test.jsonl", "--output", "o"];
    for (name, arguments) in [
        ("finetune", &["recipe.toml"][..]),
        ("generate", &[&tool[..], &["--max-new-tokens", "2"]].concat()),
        ("score", &tool),
        ("evaluate", &["--input", "lines.jsonl", "--output", "o"]),
        ("import", &["--gguf", common::tiny_gguf().to_str().unwrap(), "--output", "o"]),
    ] {
        limited(0, name, arguments).refused(&["ulimit -f"]);
        assert!(before == snapshot(job.folder()), "{name} left something behind");
    }
    // Enough for the small files of an import, too little for its weights.
    let gguf = common::tiny_gguf();
    let run = limited(80, "import", &["--gguf", gguf.to_str().unwrap(), "--output", "o"]);
    run.refused(&["o/model.safetensors", "ulimit -f"]);
    assert!(before == snapshot(job.folder()), "import left something behind");
    // Enough for the adapter, too little for the page.
    let run = limited(16, "finetune", &["recipe.toml"]);
    run.refused(&["report.html", "ulimit -f", "its adapter is in out/adapter"]);
    let names: Vec<_> =
        fs::read_dir(job.path("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "adapter and recipe.toml: {names:?}");
}

/// The program as a user who may not write where it is told to: as we are, or as nobody where we are root.
#[cfg(unix)]
fn without_rights(job: &Job, name: &str, arguments: &[&str]) -> Option<Run> {
    let is_root = fs::write(job.path("forbidden/probe"), "").is_ok();
    let mut command = if is_root {
        let _ = fs::remove_file(job.path("forbidden/probe"));
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program(name));
        command
    } else {
        Command::new(program(name))
    };
    command.args(arguments).current_dir(job.folder()).env("GOMP_SPINCOUNT", "0");
    let output = command.output().ok()?;
    let run = Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    // 126 and 127: nobody may not even start the program where it lies.
    if is_root && (run.code.is_none_or(|code| code > 2) || run.stderr.starts_with("setpriv")) {
        eprintln!("skipped: {run}");
        return None;
    }
    Some(run)
}

#[cfg(unix)]
#[test]
fn a_place_without_the_right_to_write_is_told_first() {
    use std::os::unix::fs::PermissionsExt as _;
    let job = Job::new();
    job.own_model();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(job.folder(), 0o755);
    fs::create_dir(job.path("forbidden")).unwrap();
    mode(&job.path("forbidden"), 0o555);
    for setting in ["output_dir=forbidden", "output_dir=forbidden/deep/run"] {
        let Some(run) = without_rights(&job, "finetune", &["recipe.toml", "--set", setting]) else { return };
        run.refused(&[setting.trim_start_matches("output_dir="), "Permission denied"]);
        assert!(!run.stderr.contains("reading data"), "before the work begins: {run}");
    }
    for tool in ["generate", "score"] {
        let arguments = ["--model", "model", "--input", "test.jsonl", "--output", "forbidden/o.jsonl"];
        let Some(run) = without_rights(&job, tool, &arguments) else { return };
        run.refused(&["forbidden/o.jsonl", "Permission denied"]);
    }
    assert_eq!(fs::read_dir(job.path("forbidden")).unwrap().count(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_only_disk_is_told_first() {
    let job = Job::new();
    for (name, arguments, place) in [
        ("finetune", "recipe.toml --set output_dir=disk/run", "disk/run"),
        ("finetune", "recipe.toml --set output_dir=disk", "disk"),
        ("score", "--input test.jsonl --model x --output disk/o.jsonl", "disk/o.jsonl"),
    ] {
        let script = format!("mount -o remount,ro disk && {} {arguments}", program(name).display());
        let Some(run) = on_small_disk(&job, 64, &script) else { return };
        run.refused(&[place, "Read-only file system"]);
    }
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_no_place() {
    let job = Job::new();
    std::os::unix::fs::symlink("nowhere", job.path("link")).unwrap();
    refused(&job, &["output_dir=link"], &["link", "leads nowhere"]);
    job.tool("score", &["--input", "test.jsonl", "--output", "link"]).refused(&["link", "leads nowhere"]);
    // One that leads to a folder is one.
    fs::create_dir(job.path("nowhere")).unwrap();
    job.finetune(&["output_dir=link", "evaluation.before=false", "evaluation.after=false"]).succeeded();
    assert!(job.path("link").is_symlink() && job.path("nowhere/adapter").is_dir());
}

/// The tiny model, widened to weights of 400 MiB that no file holds: the file has a hole in their place.
#[cfg(target_os = "linux")]
fn wide_model(job: &Job) {
    let model = job.own_model();
    let path = model.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = 3_276_800.into();
    fs::write(&path, config.to_string()).unwrap();
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, _) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let mut offset = 0_u64;
    let mut names: Vec<String> = header.as_object().unwrap().keys().cloned().collect();
    names.retain(|name| name != "__metadata__");
    for name in names {
        let tensor = &mut header[&name];
        for (index, size) in tensor["shape"].as_array_mut().unwrap().iter_mut().enumerate() {
            if (name.contains("embed_tokens") || name.contains("lm_head")) && index == 0 {
                *size = 3_276_800.into();
            }
        }
        let elements: u64 =
            tensor["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).product();
        // Zeros of f32 would be kept in few bits.
        tensor["dtype"] = "F16".into();
        tensor["data_offsets"] = serde_json::json!([offset, offset + 2 * elements]);
        offset += 2 * elements;
    }
    let header = header.to_string();
    let file = fs::File::create(&path).unwrap();
    use std::io::Write as _;
    (&file).write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    (&file).write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + offset).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn too_little_memory_is_told_before_the_model_is_read() {
    let job = Job::new();
    wide_model(&job);
    let limited = |name: &str, arguments: &[&str]| {
        // Enough for the program and libtorch, too little for the weights beside them.
        let script = "ulimit -v 900000 && exec \"$0\" \"$@\"";
        let program = program(name);
        let mut command = Command::new("sh");
        command.args(["-c", script, program.to_str().unwrap()]).args(arguments).current_dir(job.folder());
        let output = command.env("GOMP_SPINCOUNT", "0").output().unwrap();
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    };
    let before = fs::read_dir(job.folder()).unwrap().count();
    let tool = ["--model", "model", "--threads", "1", "--input", "test.jsonl", "--output", "o.jsonl"];
    for (name, arguments) in [("finetune", &["recipe.toml"][..]), ("generate", &tool), ("score", &tool)] {
        limited(name, arguments).refused(&[
            "loading model",
            "weights 400.1 MiB",
            "ulimit -v",
            "smaller model",
        ]);
        assert_eq!(fs::read_dir(job.folder()).unwrap().count(), before, "{name} left something behind");
    }
}
