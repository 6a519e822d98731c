//! `{% generation %}` blocks, which transformers adds to Jinja to mark the assistant's words.

/// Replaces the tags by a `with` block, which renders the same and has the same scope. White space control is kept.
pub(crate) fn replace(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let length = match rest.as_bytes().get(1) {
            Some(b'%') => {
                let length = code_end(rest, "%}");
                let tag = &rest[..length];
                let name = tag.trim_matches(['{', '%', '}']).trim_matches(['-', '+']).trim();
                match name {
                    "raw" => raw = true,
                    "endraw" => raw = false,
                    "endgeneration" if !raw => {
                        out.push_str(&tag.replacen("endgeneration", "endwith", 1));
                        rest = &rest[length..];
                        continue;
                    }
                    "generation" if !raw => {
                        out.push_str(&tag.replacen("generation", "with", 1));
                        rest = &rest[length..];
                        continue;
                    }
                    _ => {}
                }
                length
            }
            Some(b'{') if !raw => code_end(rest, "}}"),
            Some(b'#') if !raw => rest.find("#}").map_or(rest.len(), |end| end + 2),
            _ => 1,
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// Length of the code up to and with `close`, which does not count inside quotes.
fn code_end(code: &str, close: &str) -> usize {
    let mut quote = None;
    let mut chars = code.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, _) if code[at..].starts_with(close) => return at + close.len(),
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn only_the_tags_change() {
        assert_eq!(
            replace("a {%- generation -%} b {% endgeneration +%} c"),
            "a {%- with -%} b {% endwith +%} c"
        );
        for untouched in [
            "{{ '{% generation %}' }}",
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% set generation = 1 %}{{ generation }}",
            "{% if x == '%} {% generation' %}",
            "{ {% ",
            "é{",
        ] {
            assert_eq!(replace(untouched), untouched);
        }
    }
}
