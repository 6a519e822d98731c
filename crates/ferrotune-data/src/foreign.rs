//! Files of another kind, told by how they begin: one answer in place of an error for every line.

/// How to make one JSON object a line of a JSON file.
const JQ_ITEMS: &str = "write its items one a line: jq -c '.[]' FILE > FILE.jsonl";
const JQ_COMPACT: &str = "write each object on one line: jq -c . FILE > FILE.jsonl";
const UTF_8: &str = "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > FILE.jsonl";
const UNPACK: &str = "unpack it first";
const CONVERT: &str = "convert it first, in Python with datasets: Dataset.to_json(\"FILE.jsonl\")";

/// How files begin that are no text.
const SIGNATURES: [(&[u8], &str, &str); 13] = [
    (b"\xff\xfe", "UTF-16 text", UTF_8),
    (b"\xfe\xff", "UTF-16 text", UTF_8),
    (b"{\0", "UTF-16 text", UTF_8),
    (b"\0{", "UTF-16 text", UTF_8),
    (b"\x1f\x8b", "a gzip file", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", UNPACK),
    (b"BZh", "a bzip2 file", UNPACK),
    (b"\xfd7zXZ\0", "an xz file", UNPACK),
    (b"PK\x03\x04", "a zip file, as spreadsheets are", UNPACK),
    (b"PAR1", "a Parquet file", CONVERT),
    (b"ARROW1", "an Arrow file", CONVERT),
    (b"\xff\xff\xff\xff", "an Arrow stream", CONVERT),
    (b"SQLite format 3\0", "an SQLite database", CONVERT),
];

/// What a file is that begins with these bytes, and how to mend it, if it is known to be no JSONL. `first_line` is its first line
/// that is not blank.
pub(crate) fn recognise(start: &[u8], first_line: &str) -> Option<(&'static str, &'static str)> {
    let signature = SIGNATURES.into_iter().find(|(signature, ..)| start.starts_with(signature));
    if let Some((_, found, help)) = signature {
        return Some((found, help));
    }
    let line = first_line.trim_start_matches('\u{feff}').trim();
    match line.chars().next()? {
        '[' => Some(("a JSON array", JQ_ITEMS)),
        '{' if line == "{" => Some(("JSON over several lines", JQ_COMPACT)),
        '{' => None,
        _ if is_table_head(line) => {
            let help = "convert it first, in Python with pandas: \
                        read_csv(\"FILE\").to_json(\"FILE.jsonl\", orient=\"records\", lines=True)";
            Some(("a CSV or TSV table", help))
        }
        _ => None,
    }
}

/// Whether a line names columns, one of which is a field that we know.
fn is_table_head(line: &str) -> bool {
    const FIELDS: [&str; 6] = ["instruction", "output", "prompt", "completion", "messages", "text"];
    [',', ';', '\t'].into_iter().any(|separator| {
        let mut columns = line.split(separator).map(|column| column.trim().trim_matches('"'));
        line.contains(separator) && columns.any(|column| FIELDS.contains(&column))
    })
}

#[cfg(test)]
mod tests {
    use super::recognise;

    fn found(text: &str) -> Option<&'static str> {
        recognise(text.as_bytes(), text.lines().next().unwrap_or_default()).map(|(found, _)| found)
    }

    #[test]
    fn tables_and_json_files_are_told_from_bad_lines() {
        assert_eq!(found("instruction,output\na,b\n"), Some("a CSV or TSV table"));
        assert_eq!(found("\"id\";\"prompt\";\"completion\"\n"), Some("a CSV or TSV table"));
        assert_eq!(found("messages\tid\n"), Some("a CSV or TSV table"));
        assert_eq!(found("\u{feff} [\n"), Some("a JSON array"));
        assert_eq!(found("{\n  \"prompt\": 1\n}\n"), Some("JSON over several lines"));
        for text in ["", "{}", "not JSON, of course", "{\"prompt\": \"a\", \"output\"", "instruction", "5"] {
            assert_eq!(found(text), None, "{text}");
        }
    }
}
