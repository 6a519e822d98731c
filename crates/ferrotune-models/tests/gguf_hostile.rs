//! Damaged and malicious files: an error that says what is wrong, never a panic or an absurd allocation.

#![allow(clippy::unwrap_used)] // the allowance for tests does not reach their helpers

mod gguf_builder;

use std::path::Path;

use ferrotune_models::gguf::{Array, GgufFile, Value};
use ferrotune_models::import::import_gguf;
use gguf_builder::GgufBuilder;
use proptest::prelude::*;

fn open_error(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let message = GgufFile::open(&path).unwrap_err().to_string();
    assert!(message.starts_with(&path.display().to_string()) || message.contains("model.gguf"), "{message}");
    message
}

#[track_caller]
fn refused(change: impl FnOnce(&mut GgufBuilder), expected: &str) {
    let mut file = GgufBuilder::tiny_llama();
    change(&mut file);
    let message = open_error(&file.bytes());
    assert!(message.contains(expected), "`{expected}` is not in: {message}");
}

#[test]
fn every_metadata_type_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = GgufBuilder::empty();
    file.version = 2;
    file.set("u8", 0, vec![200]);
    file.set("i8", 1, vec![200]);
    file.set("u16", 2, 60_000_u16.to_le_bytes().to_vec());
    file.set("i16", 3, (-2_i16).to_le_bytes().to_vec());
    file.set_u32("u32", 7);
    file.set("i32", 5, (-7_i32).to_le_bytes().to_vec());
    file.set_f32("f32", 1.5);
    file.set_bool("bool", true);
    file.set_str("text", "née");
    file.set("u64", 10, u64::MAX.to_le_bytes().to_vec());
    file.set("i64", 11, i64::MIN.to_le_bytes().to_vec());
    file.set("f64", 12, 0.1_f64.to_le_bytes().to_vec());
    file.set_strs("texts", &["", "x"]);
    file.set_list("bools", 7, 2, &[0, 1]);
    // A list of two lists of u8.
    let inner = [&0_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &[1, 2]].concat();
    file.set_list("lists", 9, 2, &[inner.clone(), inner].concat());
    let file = GgufFile::open(&file.write(directory.path())).unwrap();
    let expected = [
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-56)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-2)),
        ("u32", Value::U32(7)),
        ("i32", Value::I32(-7)),
        ("f32", Value::F32(1.5)),
        ("bool", Value::Bool(true)),
        ("text", Value::String("née".into())),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(0.1)),
        ("texts", Value::Array(Array::String(vec![String::new(), "x".into()]))),
        ("bools", Value::Array(Array::Bool(vec![false, true]))),
        ("lists", Value::Array(Array::Array(vec![Array::U8(vec![1, 2]), Array::U8(vec![1, 2])]))),
    ];
    assert_eq!(file.metadata().count(), expected.len());
    for (key, value) in expected {
        assert_eq!(file.get(key), Some(&value), "{key}");
    }
    assert_eq!(file.get("none"), None);
}

#[test]
fn what_is_no_gguf_file_is_said_to_be_none() {
    assert!(open_error(b"").contains("start of the file"));
    assert!(open_error(b"GG").contains("start of the file"));
    assert!(open_error(b"PK\x03\x04 and so on").contains("the letters GGUF"));
    let directory = tempfile::tempdir().unwrap();
    let message = GgufFile::open(directory.path()).unwrap_err().to_string();
    assert!(message.contains("is a folder, expected a file"), "{message}");
    let message = GgufFile::open(&directory.path().join("absent.gguf")).unwrap_err().to_string();
    assert!(message.contains("cannot open") && message.contains("absent.gguf"), "{message}");
}

#[test]
fn other_versions_and_byte_orders_are_named() {
    refused(|file| file.version = 1, "GGUF version `1` is not supported (supported: 2, 3)");
    refused(|file| file.version = 4, "GGUF version `4`");
    refused(|file| file.version = 3_u32.swap_bytes(), "big-endian");
    refused(|file| file.set_u32("split.count", 3), "split.count `3`");
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused() {
    refused(|file| file.key_count = Some(u64::MAX), "expected");
    refused(|file| file.tensor_count = Some(u64::MAX), "expected");
    refused(|file| file.tensor_count = Some(1 << 40), "expected");
    refused(
        |file| file.set("bad", 8, u64::MAX.to_le_bytes().to_vec()),
        "metadata key `bad`: expected 18446744073709551615 bytes",
    );
    for item_type in 0..=12 {
        for count in [1 << 40, u64::MAX / 8, u64::MAX] {
            refused(
                |file| file.set_list("bad", item_type, count, &[]),
                "metadata key `bad`: expected at most",
            );
        }
    }
}

#[test]
fn malformed_metadata_is_refused() {
    refused(
        |file| file.set("bad", 13, vec![]),
        "metadata key `bad`: expected a value type from 0 to 12, found 13",
    );
    refused(|file| file.set_list("bad", 99, 0, &[]), "expected an element type from 0 to 12, found 99");
    refused(|file| file.set("bad", 7, vec![2]), "expected a truth value, 0 or 1, found 2");
    refused(|file| file.set("bad", 8, [&2_u64.to_le_bytes()[..], &[0x61, 0xff]].concat()), "UTF-8");
    refused(|file| file.metadata.push((vec![0xc3, 0x28], 0, vec![0])), "UTF-8");
    refused(
        |file| file.metadata.push((b"llama.block_count".to_vec(), 0, vec![1])),
        "`llama.block_count` a second time",
    );
    let deep = |depth: usize| {
        let mut list = [0_u32.to_le_bytes().to_vec(), 0_u64.to_le_bytes().to_vec()].concat();
        for _ in 0..depth {
            list = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &list].concat();
        }
        list
    };
    refused(|file| file.set("bad", 9, deep(4)), "lists nested at most 4 deep");
    refused(|file| file.set("bad", 9, deep(10_000)), "lists nested at most 4 deep");
    for alignment in [0, 3, 48] {
        refused(
            |file| file.set_u32("general.alignment", alignment),
            "`general.alignment`: expected a power of two",
        );
    }
}

#[test]
fn malformed_tensors_are_refused() {
    let name = "blk.0.attn_q.weight";
    refused(
        |file| file.tensor(name).dimensions = vec![],
        "tensor `blk.0.attn_q.weight`: expected 1 to 4 dimensions, found 0",
    );
    refused(|file| file.tensor(name).dimensions = vec![1; 5], "found 5");
    refused(|file| file.tensor(name).dimensions = vec![8, 0], "found 0");
    refused(|file| file.tensor(name).dimensions = vec![1 << 40, 1 << 40], "fits in memory");
    refused(|file| file.tensor(name).dimensions = vec![u64::MAX], "fits in memory");
    refused(
        |file| file.tensor(name).dimensions = vec![8, 1 << 40],
        "tensor `blk.0.attn_q.weight`: expected 35184372088832 bytes",
    );
    refused(|file| file.tensor(name).type_id = 8, "whole Q8_0 blocks of 32 elements, found rows of 8");
    refused(
        |file| file.tensor(name).type_id = 17,
        "type of tensor `blk.0.attn_q.weight` `IQ2_XS` is not supported",
    );
    refused(|file| file.tensor(name).type_id = 12345, "unknown type 12345");
    refused(|file| file.tensor(name).offset = Some(1), "an offset that is a multiple of 32");
    refused(
        |file| file.tensor(name).offset = Some(u64::MAX - 31),
        "at offset 18446744073709551584 of the data section",
    );
    refused(|file| file.tensor(name).offset = Some(0), "bytes that belong to tensor");
    refused(|file| file.tensors.push(file.tensors[0].clone()), "`token_embd.weight` a second time");
}

#[test]
fn another_alignment_is_honoured() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = GgufBuilder::empty();
    file.alignment = 128;
    file.set_u32("general.alignment", 128);
    file.add_f32_values("a", &[3], &[1.0, 2.0, 3.0]);
    file.add_f32_values("b", &[2, 1], &[-1.0, 0.5]);
    let file = GgufFile::open(&file.write(directory.path())).unwrap();
    assert_eq!(file.dequantize("a").unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(file.dequantize("b").unwrap(), [-1.0, 0.5]);
    assert_eq!(file.tensor("b").unwrap().shape(), [1, 2]);
    assert!(file.dequantize("c").unwrap_err().to_string().contains("tensor `c` is missing"));
}

fn fixture() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/import_tiny_llama/tiny.gguf"))
        .unwrap()
}

/// Opens and, where that works, imports; both may fail, neither may panic.
fn import_whatever_it_is(bytes: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let output = directory.path().join("hf");
    match import_gguf(&path, &output) {
        Ok(_) => assert!(output.join("import.json").exists()),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            // Nothing is left behind but the input.
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }
}

/// As many cases as `PROPTEST_CASES` says.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases.unwrap_or(default)) }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_truncated_file_never_panics(length in 0_usize..47_136) {
        let mut bytes = fixture();
        bytes.truncate(length);
        import_whatever_it_is(&bytes);
    }

    #[test]
    fn flipped_bytes_never_panic(flips in proptest::collection::vec((0_usize..12_000, any::<u8>()), 1..6)) {
        let mut bytes = fixture();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        import_whatever_it_is(&bytes);
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        import_whatever_it_is(&[b"GGUF\x03\0\0\0", &tail[..]].concat());
    }
}
