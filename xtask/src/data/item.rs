//! The documented items of one source file: functions, methods, structs and enums, each with its code as written.

use std::ops::Range;

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Lit, Meta};

/// A documented item.
#[derive(Debug, PartialEq)]
pub struct Item {
    /// Path inside the file, such as `parser::Parser::next`.
    pub name: String,
    /// The source text of the item, dedented, its doc comments removed.
    pub code: String,
    /// The text of its doc comment, line by line.
    pub docs: String,
}

/// All documented items of a file in their order, without tests and hidden items.
///
/// # Errors
/// The parser's error if the text is not Rust.
pub fn items(text: &str) -> syn::Result<Vec<Item>> {
    // The parser skips these two itself, and its byte ranges would count from behind them.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    let text = without_shebang(&text);
    let file = syn::parse_file(text)?;
    let mut found = Vec::new();
    if !file.attrs.iter().any(is_test) {
        let mut visitor = Items { text, scope: Vec::new(), found: Vec::new() };
        visitor.visit_file(&file);
        found = visitor.found;
    }
    Ok(found)
}

/// Frees the texts that the parser keeps for the spans of this thread. No span may be in use.
pub fn forget_spans() {
    proc_macro2::extra::invalidate_current_thread_spans();
}

fn without_shebang(text: &str) -> &str {
    if !text.starts_with("#!") || text[2..].trim_start().starts_with('[') {
        return text;
    }
    text.find('\n').map_or("", |end| &text[end..])
}

struct Items<'a> {
    text: &'a str,
    scope: Vec<String>,
    found: Vec<Item>,
}

impl Items<'_> {
    fn add(&mut self, name: String, attributes: &[Attribute], span: Span, removed: Removed) {
        if attributes.iter().any(|attribute| is_test(attribute) || is_hidden(attribute)) {
            return;
        }
        let Some(docs) = docs(attributes) else { return };
        let Some(code) = without(self.text, span.byte_range(), removed.0) else { return };
        let mut path = self.scope.clone();
        path.push(name);
        self.found.push(Item { name: path.join("::"), code, docs });
    }

    fn within(&mut self, name: String, attributes: &[Attribute], visit: impl FnOnce(&mut Self)) {
        if attributes.iter().any(|attribute| is_test(attribute) || is_hidden(attribute)) {
            return;
        }
        self.scope.push(name);
        visit(self);
        self.scope.pop();
    }
}

// Bodies of functions are not entered: an item inside one is part of its code.
impl<'ast> Visit<'ast> for Items<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let removed = Removed::collect(|removed| removed.visit_item_fn(item));
        self.add(item.sig.ident.to_string(), &item.attrs, item.span(), removed);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        let removed = Removed::collect(|removed| removed.visit_impl_item_fn(item));
        self.add(item.sig.ident.to_string(), &item.attrs, item.span(), removed);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        let removed = Removed::collect(|removed| removed.visit_trait_item_fn(item));
        self.add(item.sig.ident.to_string(), &item.attrs, item.span(), removed);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        let removed = Removed::collect(|removed| removed.visit_item_struct(item));
        self.add(item.ident.to_string(), &item.attrs, item.span(), removed);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        let removed = Removed::collect(|removed| removed.visit_item_enum(item));
        self.add(item.ident.to_string(), &item.attrs, item.span(), removed);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        if name != "test" && name != "tests" {
            self.within(name, &item.attrs, |items| visit::visit_item_mod(items, item));
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let name = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        self.within(name.unwrap_or_else(|| "_".into()), &item.attrs, |items| {
            visit::visit_item_impl(items, item)
        });
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.within(item.ident.to_string(), &item.attrs, |items| visit::visit_item_trait(items, item));
    }
}

/// The byte ranges of all doc comments in an item, those of its fields and inner items too.
#[derive(Default)]
struct Removed(Vec<Range<usize>>);

impl Removed {
    fn collect(visit: impl FnOnce(&mut Self)) -> Self {
        let mut removed = Self::default();
        visit(&mut removed);
        removed
    }
}

impl<'ast> Visit<'ast> for Removed {
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if attribute.path().is_ident("doc") || mentions(attribute, "cfg_attr", "doc") {
            self.0.push(attribute.span().byte_range());
        }
    }
}

/// The text of the outer doc comments; `None` without any, or where a macro makes it.
fn docs(attributes: &[Attribute]) -> Option<String> {
    let mut lines = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        let Meta::NameValue(pair) = &attribute.meta else { continue };
        let Expr::Lit(syn::ExprLit { lit: Lit::Str(text), .. }) = &pair.value else { return None };
        let text = text.value();
        let block = text.contains('\n');
        for line in text.lines() {
            let line = line.trim();
            let starred = line.strip_prefix("* ").or_else(|| (line == "*").then_some(""));
            lines.push(if block { starred.unwrap_or(line) } else { line }.to_string());
        }
        if text.is_empty() {
            lines.push(String::new());
        }
    }
    let docs = lines.join("\n");
    (!docs.trim().is_empty()).then_some(docs)
}

/// `text[range]` without the `removed` ranges (a line that held nothing else goes too), dedented.
fn without(text: &str, range: Range<usize>, mut removed: Vec<Range<usize>>) -> Option<String> {
    let line_start = text.get(..range.start)?.rfind('\n').map_or(0, |end| end + 1);
    let indent = text.get(line_start..range.start)?;
    let indent = &indent[..indent.len() - indent.trim_start().len()];
    removed.sort_by_key(|range| range.start);
    let mut code = String::new();
    let mut position = range.start;
    for removed in removed {
        if removed.start < position || removed.end > range.end {
            continue; // inside a removed one
        }
        let before = text.get(position..removed.start)?;
        let after = text.get(removed.end..range.end)?;
        let line = after.split('\n').next().unwrap_or_default();
        let alone = line.trim().is_empty()
            && (before.trim().is_empty() && code.is_empty()
                || before.rfind('\n').is_some_and(|start| before[start..].trim().is_empty())
                || before.trim().is_empty() && code.ends_with('\n'));
        code.push_str(if alone { before.trim_end_matches([' ', '\t']) } else { before });
        position = removed.end;
        if alone && after.len() > line.len() {
            position += line.len() + 1;
        }
    }
    code.push_str(text.get(position..range.end)?);
    let lines = code.lines().map(|line| line.strip_prefix(indent).unwrap_or(line).trim_end());
    let code = lines.collect::<Vec<_>>().join("\n");
    Some(code.trim().to_string())
}

fn tokens(attribute: &Attribute) -> Option<proc_macro2::TokenStream> {
    match &attribute.meta {
        Meta::List(list) => Some(list.tokens.clone()),
        _ => None,
    }
}

fn has_word(tokens: proc_macro2::TokenStream, word: &str) -> bool {
    tokens.into_iter().any(|token| match token {
        proc_macro2::TokenTree::Ident(ident) => ident == word,
        proc_macro2::TokenTree::Group(group) => has_word(group.stream(), word),
        _ => false,
    })
}

/// Whether the attribute is `name(...)` with `word` somewhere between the brackets.
fn mentions(attribute: &Attribute, name: &str, word: &str) -> bool {
    attribute.path().is_ident(name) && tokens(attribute).is_some_and(|tokens| has_word(tokens, word))
}

/// `#[test]` and the like, `#[bench]`, `#[cfg(test)]`.
fn is_test(attribute: &Attribute) -> bool {
    let last = attribute.path().segments.last();
    last.is_some_and(|segment| segment.ident == "test" || segment.ident == "bench")
        || mentions(attribute, "cfg", "test")
}

/// `#[doc(hidden)]`, `#[deprecated]`.
fn is_hidden(attribute: &Attribute) -> bool {
    mentions(attribute, "doc", "hidden") || attribute.path().is_ident("deprecated")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Item {
        let mut items = items(text).unwrap();
        assert_eq!(items.len(), 1, "{items:?}");
        items.remove(0)
    }

    #[test]
    fn code_is_the_source_text_without_docs_and_dedented() {
        let item = one(concat!(
            "//! Über alles: a ä non-ASCII text shifts bytes against characters.\n",
            "mod inner {\n    impl<T> Stack<T> {\n",
            "        /// Pushes a value.\n        ///\n        /// More.\n        #[inline] // fast\n",
            "        #[doc(alias = \"append\")]\n",
            "        pub fn push(&mut self, value: T) {\n            // comment\n",
            "            /// inner\n            fn helper() {}\n            self.0.push( value );\n        }\n    }\n}\n"
        ));
        assert_eq!(item.name, "inner::Stack::push");
        assert_eq!(item.docs, "Pushes a value.\n\nMore.");
        let expected = "#[inline] // fast\npub fn push(&mut self, value: T) {\n    // comment\n    fn helper() {}\n    self.0.push( value );\n}";
        assert_eq!(item.code, expected);
    }

    #[test]
    fn docs_of_fields_and_variants_go_too() {
        let item = one(
            "/** A pair.\n *\n * Of two. */\n#[derive(Debug)]\nstruct Pair {\n    /// First.\n    a: u8,\n    b: u8, /// Trailing\n    c: u8,\n}\n",
        );
        assert_eq!(
            item.code,
            "#[derive(Debug)]\nstruct Pair {\n    a: u8,\n    b: u8, \n    c: u8,\n}".replace(", \n", ",\n")
        );
        assert_eq!(item.docs.lines().next(), Some("A pair."));
        let item = one(
            "/// Kind.\n#[cfg_attr(docsrs, doc(cfg(feature = \"x\")))]\nenum Kind {\n    /// One.\n    A,\n}",
        );
        assert_eq!(item.code, "enum Kind {\n    A,\n}");
    }

    #[test]
    fn a_shebang_a_byte_order_mark_and_windows_line_ends_shift_nothing() {
        let plain = "/// Doc.\nfn f() {\n    1;\n}\n";
        let expected = "fn f() {\n    1;\n}";
        assert_eq!(one(plain).code, expected);
        assert_eq!(one(&format!("\u{feff}{plain}")).code, expected);
        assert_eq!(one(&format!("#!/usr/bin/env run\n{plain}")).code, expected);
        assert_eq!(one(&format!("#![allow(x)]\n{plain}")).code, expected);
        assert_eq!(one(&plain.replace('\n', "\r\n")).code, expected);
    }

    #[test]
    fn tests_hidden_and_undocumented_items_are_skipped() {
        for text in [
            "fn f() {}",
            "/// D.\n#[test]\nfn f() {}",
            "/// D.\n#[tokio::test]\nasync fn f() {}",
            "#[cfg(all(test, unix))]\nmod m {\n/// D.\nfn f() {}\n}",
            "mod tests {\n/// D.\nfn f() {}\n}",
            "/// D.\n#[doc(hidden)]\nfn f() {}",
            "#[doc = include_str!(\"x.md\")]\nfn f() {}",
            "///\nfn f() {}",
            "#![cfg(test)]\n/// D.\nfn f() {}",
            "fn f() {\n/// D.\nfn g() {}\n}",
        ] {
            assert_eq!(items(text).unwrap(), [], "{text}");
        }
        assert!(items("fn {").is_err());
    }
}
