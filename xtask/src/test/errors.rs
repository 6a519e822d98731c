//! Each variant of each library's error is named by a test of that library.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Compares the error enums under `crates/` with what the tests of their crates name.
///
/// # Errors
/// Names each variant that no test does.
pub fn check(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for krate in entries(&root.join("crates"))? {
        let error = krate.join("src/error.rs");
        if !error.is_file() {
            continue;
        }
        let variants = variants(&read(&error)?).with_context(|| error.display().to_string())?;
        let mut named = BTreeSet::new();
        for folder in ["src", "tests"] {
            for file in rust_files(&krate.join(folder))? {
                let within = file.strip_prefix(&krate).unwrap_or(&file);
                let is_test = within.ends_with("tests.rs") || within.iter().any(|part| part == "tests");
                let tokens = tokens(&read(&file)?).with_context(|| file.display().to_string())?;
                named_variants(tokens, is_test, &mut named);
            }
        }
        let name = krate.file_name().unwrap_or_default().to_string_lossy();
        wrong.extend(
            variants
                .into_iter()
                .filter(|variant| !named.contains(variant))
                .map(|variant| format!("{name}: no test names `Error::{variant}`")),
        );
    }
    super::none_wrong("variants of errors without a test; add one that reaches them, or delete them", wrong)
}

/// The variants of the enum `Error` in a source text.
fn variants(source: &str) -> Result<Vec<String>> {
    let file = syn::parse_file(source)?;
    let error = file.items.into_iter().find_map(|item| match item {
        syn::Item::Enum(item) if item.ident == "Error" => Some(item),
        _ => None,
    });
    let error = error.ok_or_else(|| anyhow!("there is no enum `Error`"))?;
    Ok(error.variants.iter().map(|variant| variant.ident.to_string()).collect())
}

/// Collects each `NAME` of `Error::NAME` that stands in test code: in all of it, or in what `#[cfg(test)]` stands before.
fn named_variants(tokens: TokenStream, is_test: bool, named: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut tests_follow = false;
    for (place, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) => {
                let is_attribute = group.delimiter() == Delimiter::Bracket
                    && place.checked_sub(1).is_some_and(|before| is_punct(&tokens[before], '#'));
                if is_attribute {
                    tests_follow |= group.to_string().replace(' ', "") == "[cfg(test)]";
                    continue;
                }
                named_variants(group.stream(), is_test || tests_follow, named);
                // The body ends what the attribute stood before.
                tests_follow &= group.delimiter() != Delimiter::Brace;
            }
            TokenTree::Ident(ident) if is_test && ident == "Error" => {
                if let [colon, second, TokenTree::Ident(variant), ..] = &tokens[place + 1..]
                    && is_punct(colon, ':')
                    && is_punct(second, ':')
                {
                    named.insert(variant.to_string());
                }
            }
            token => tests_follow &= !is_punct(token, ';'),
        }
    }
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn tokens(source: &str) -> Result<TokenStream> {
    source.parse().map_err(|error| anyhow!("{error}"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The Rust files below a folder, which may be absent.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if folder.is_dir() {
        for path in entries(folder)? {
            if path.is_dir() {
                files.extend(rust_files(&path)?);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod checks {
    use super::*;

    fn named(source: &str, is_test: bool) -> Vec<String> {
        let mut named = BTreeSet::new();
        named_variants(tokens(source).unwrap(), is_test, &mut named);
        named.into_iter().collect()
    }

    #[test]
    fn only_test_code_counts_and_macros_are_looked_into() {
        let source = r#"
            fn library() { Err(Error::Library) }
            #[cfg(test)]
            mod tests {
                // Error::Comment
                #[test]
                fn a() { assert!(matches!(f(), Err(crate::Error::Inside { .. })), "Error::Text"); }
            }
            fn after() { Error::After }
            #[cfg(test)]
            use a::b;
            fn later() { Error::Later }
        "#;
        assert_eq!(named(source, false), ["Inside"]);
        assert_eq!(named("fn a() { Error::Whole; Other::Name }", true), ["Whole"]);
    }

    #[test]
    fn a_variant_without_a_test_is_named_with_its_crate() {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("crates/one/src");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("error.rs"), "pub enum Error { Known, Forgotten { path: u8 } }").unwrap();
        fs::write(source.join("lib.rs"), "#[cfg(test)] mod tests { fn a() { Error::Known } }").unwrap();
        let error = check(root.path()).unwrap_err().to_string();
        assert!(
            error.contains("one: no test names `Error::Forgotten`") && !error.contains("Known"),
            "{error}"
        );
        fs::create_dir(root.path().join("crates/one/tests")).unwrap();
        fs::write(root.path().join("crates/one/tests/a.rs"), "fn a() { Error::Forgotten }").unwrap();
        check(root.path()).unwrap();
    }
}
