//! Rust text made ready for checkers. Owns the split of a file into code on the one side and
//! comments and literals on the other, and knows which lines are test code.
//!
//! Invariant: blanking keeps every line break, so that line numbers stay true. It is a
//! scanner, not a parser: it must never be asked about the meaning of code.

/// A Rust file.
#[derive(Debug)]
pub struct Source {
    /// The text as written.
    pub raw: String,
    /// The same text with comments and the content of literals blanked.
    pub code: String,
    /// For each line, whether it is test code.
    test_lines: Vec<bool>,
}

impl Source {
    /// Scans a file. `all_test` marks files that are test code as a whole.
    pub fn new(raw: &str, all_test: bool) -> Self {
        let code = blank_comments_and_literals(raw);
        let mut test_lines = vec![all_test; code.lines().count() + 1];
        for (start, end) in test_regions(&code) {
            for line in &mut test_lines[start - 1..end] {
                *line = true;
            }
        }
        Self {
            raw: raw.to_owned(),
            code,
            test_lines,
        }
    }

    /// Whether the line, counted from 1, is test code.
    pub fn is_test(&self, line: usize) -> bool {
        self.test_lines
            .get(line.wrapping_sub(1))
            .copied()
            .unwrap_or(false)
    }

    /// Lines of code as (line, text), counted from 1.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code
            .lines()
            .enumerate()
            .map(|(index, text)| (index + 1, text))
    }

    /// Modules that are declared as `#[cfg(test)] mod name;` and so live in other files.
    pub fn test_modules(&self) -> Vec<String> {
        let mut modules = Vec::new();
        for (position, _) in self.code.match_indices("#[cfg(test)]") {
            let rest = self.code[position + "#[cfg(test)]".len()..].trim_start();
            let rest = rest.strip_prefix("pub(crate) ").unwrap_or(rest);
            let Some(rest) = rest.strip_prefix("mod ") else {
                continue;
            };
            let name: String = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if rest[name.len()..].trim_start().starts_with(';') {
                modules.push(name);
            }
        }
        modules
    }
}

/// The line, counted from 1, of a byte position.
pub(crate) fn line_of(text: &str, position: usize) -> usize {
    text[..position].matches('\n').count() + 1
}

/// Byte position just behind the bracket that closes the one at `open`; the end of the text
/// when it is never closed.
pub(crate) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return open + offset + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Whether `code` has `word` as a whole word at `position`.
pub(crate) fn is_whole_word(code: &str, position: usize, word: &str) -> bool {
    let is_name = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = code.as_bytes();
    let before = position.checked_sub(1).and_then(|at| bytes.get(at));
    !is_name(before) && !is_name(bytes.get(position + word.len()))
}

/// First and last line of every item under `#[cfg(test)]` or `#[test]`.
fn test_regions(code: &str) -> Vec<(usize, usize)> {
    let mut regions = Vec::new();
    for marker in ["#[cfg(test)]", "#[test]", "#[tokio::test"] {
        for (position, _) in code.match_indices(marker) {
            let rest = &code[position..];
            let semicolon = rest.find(';').unwrap_or(rest.len());
            let Some(brace) = rest.find('{').filter(|brace| *brace < semicolon) else {
                continue;
            };
            let end = closing(code, position + brace);
            regions.push((
                line_of(code, position),
                line_of(code, end.saturating_sub(1)),
            ));
        }
    }
    regions
}

fn blank_comments_and_literals(raw: &str) -> String {
    let mut scanner = Scanner {
        bytes: raw.as_bytes(),
        at: 0,
        out: Vec::with_capacity(raw.len()),
    };
    scanner.run();
    // Only ASCII was written in place of other bytes, and whole characters were copied.
    String::from_utf8_lossy(&scanner.out).into_owned()
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    out: Vec<u8>,
}

impl Scanner<'_> {
    fn run(&mut self) {
        while self.at < self.bytes.len() {
            let rest = &self.bytes[self.at..];
            if rest.starts_with(b"//") {
                let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                self.blank(end);
            } else if rest.starts_with(b"/*") {
                let length = block_comment_length(rest);
                self.blank(length);
            } else if let Some(length) = self.raw_string_length(rest) {
                self.blank(length);
            } else if rest[0] == b'"' {
                let length = quoted_length(rest, b'"');
                self.blank(length);
            } else if let Some(length) = char_length(rest) {
                self.blank(length);
            } else {
                self.out.push(rest[0]);
                self.at += 1;
            }
        }
    }

    fn blank(&mut self, length: usize) {
        let end = (self.at + length).min(self.bytes.len());
        for byte in &self.bytes[self.at..end] {
            self.out.push(if *byte == b'\n' { b'\n' } else { b' ' });
        }
        self.at = end;
    }

    /// Length of a raw string that starts here, be it `r`, `br` or `cr`.
    fn raw_string_length(&self, rest: &[u8]) -> Option<usize> {
        let in_name = self.at > 0
            && (self.bytes[self.at - 1].is_ascii_alphanumeric() || self.bytes[self.at - 1] == b'_');
        if in_name {
            return None;
        }
        let prefix = usize::from(matches!(rest[0], b'b' | b'c'));
        if rest.get(prefix) != Some(&b'r') {
            return None;
        }
        let hashes = rest[prefix + 1..]
            .iter()
            .take_while(|b| **b == b'#')
            .count();
        let open = prefix + 1 + hashes;
        if rest.get(open) != Some(&b'"') {
            return None;
        }
        let close: Vec<u8> = std::iter::once(b'"')
            .chain(std::iter::repeat_n(b'#', hashes))
            .collect();
        let body = &rest[open + 1..];
        let end = body.windows(close.len()).position(|window| window == close);
        Some(end.map_or(rest.len(), |end| open + 1 + end + close.len()))
    }
}

/// Block comments nest in Rust.
fn block_comment_length(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn quoted_length(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of a character literal that starts here; `None` for lifetimes.
fn char_length(rest: &[u8]) -> Option<usize> {
    if rest[0] != b'\'' {
        return None;
    }
    if rest.get(1) == Some(&b'\\') {
        return Some(quoted_length(rest, b'\''));
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)]);
    let valid = text.map_or_else(|error| error.valid_up_to(), str::len);
    let first = std::str::from_utf8(&rest[1..1 + valid])
        .ok()?
        .chars()
        .next()?;
    let length = 1 + first.len_utf8();
    (rest.get(length) == Some(&b'\'')).then_some(length + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lines_kept() {
        let raw = "let a = \"HashMap\\\"x\"; // Instant\n/* f32 /* f64 */ */ let b = r#\"todo \" \n \"#;\nlet c = '\"'; let d: &'static str = x;\n";
        let source = Source::new(raw, false);
        for word in ["HashMap", "Instant", "f32", "f64", "todo"] {
            assert!(!source.code.contains(word), "{word} in {}", source.code);
        }
        assert!(source.code.contains("&'static str = x;"), "{}", source.code);
        assert_eq!(source.code.lines().count(), raw.lines().count());
    }

    #[test]
    fn test_code_is_told_apart() {
        let raw = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
        let source = Source::new(raw, false);
        let marks: Vec<bool> = (1..=6).map(|line| source.is_test(line)).collect();
        assert_eq!(marks, [false, true, true, true, true, false]);
    }

    #[test]
    fn test_modules_in_other_files_are_found() {
        let source = Source::new(
            "#[cfg(test)]\nmod golden;\n#[cfg(test)]\nmod inline { }\n",
            false,
        );
        assert_eq!(source.test_modules(), ["golden"]);
    }

    #[test]
    fn unfinished_text_ends_quietly() {
        for raw in [
            "\"abc",
            "/* abc",
            "r#\"abc",
            "'",
            "'\\",
            "fn a() {",
            "#[cfg(test)]\nmod t {",
        ] {
            let source = Source::new(raw, false);
            assert_eq!(source.code.lines().count(), raw.lines().count(), "{raw}");
        }
    }
}
