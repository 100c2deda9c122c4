//! How long files and functions may be. Owns the limits; judges length only.

use crate::finding::Finding;
use crate::source::{Source, closing, is_whole_word, line_of};

/// Lines of a file, without its inline tests, that nobody needs to defend.
const FILE_SOFT: usize = 600;
/// Lines of a file, without its inline tests, that are never exceeded.
const FILE_HARD: usize = 1000;
/// Lines of a file of tests, and of a file with its inline tests.
const TEST_FILE_HARD: usize = 1500;
/// Lines of a function that nobody needs to defend.
const FUNCTION_SOFT: usize = 70;
/// Lines of a function that are never exceeded.
const FUNCTION_HARD: usize = 120;

const SPLIT_FILE: &str =
    "split the file by responsibility; one file per command, table or protocol step";
const SPLIT_FUNCTION: &str = "give the steps of the function names of their own";

/// Lines without those of inline tests, and all lines.
fn lines_of(source: &Source) -> (usize, usize) {
    let all = source.raw.lines().count();
    let own = (1..=all).filter(|line| !source.is_test(*line)).count();
    (own, all)
}

/// Holds the hard limits on the length of a file.
pub fn check_file_size(path: &str, source: &Source) -> Vec<Finding> {
    let (own, all) = lines_of(source);
    let mut findings = Vec::new();
    if own > FILE_HARD {
        let rule = format!("{own} lines without tests: a file has at most {FILE_HARD}");
        findings.push(Finding::new(path, FILE_HARD, rule, SPLIT_FILE));
    }
    if all > TEST_FILE_HARD {
        let rule = format!("{all} lines with tests: a file has at most {TEST_FILE_HARD}");
        findings.push(Finding::new(path, TEST_FILE_HARD, rule, SPLIT_FILE));
    }
    findings
}

/// Functions as (name, first line, lines from signature to closing brace).
pub(crate) fn functions(source: &Source) -> Vec<(String, usize, usize)> {
    let code = &source.code;
    let mut found = Vec::new();
    for (position, _) in code.match_indices("fn ") {
        if !is_whole_word(code, position, "fn") {
            continue;
        }
        let name: String = code[position + 3..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if name.is_empty() {
            continue;
        }
        if let Some(open) = body_start(code, position) {
            let first = line_of(code, position);
            let last = line_of(code, closing(code, open).saturating_sub(1));
            found.push((name, first, last - first + 1));
        }
    }
    found
}

/// Where the body of the function at `position` opens; `None` for declarations.
fn body_start(code: &str, position: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, byte) in code.as_bytes()[position..].iter().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b';' if depth == 0 => return None,
            b'{' if depth == 0 => return Some(position + offset),
            _ => {}
        }
    }
    None
}

/// Holds the hard limit on the length of functions.
pub fn check_function_sizes(path: &str, source: &Source) -> Vec<Finding> {
    functions(source)
        .into_iter()
        .filter(|(_, _, lines)| *lines > FUNCTION_HARD)
        .map(|(name, first, lines)| {
            let rule =
                format!("`{name}` has {lines} lines: a function has at most {FUNCTION_HARD}");
            Finding::new(path, first, rule, SPLIT_FUNCTION)
        })
        .collect()
}

/// What is within the hard limits and over the soft ones, a line each: told, not refused.
pub fn over_soft_limits(path: &str, source: &Source) -> Vec<String> {
    let mut told = Vec::new();
    let (own, _) = lines_of(source);
    if own > FILE_SOFT {
        told.push(format!("{path}: {own} lines (soft limit {FILE_SOFT})"));
    }
    for (name, first, lines) in functions(source) {
        if lines > FUNCTION_SOFT {
            told.push(format!(
                "{path}:{first}: `{name}` has {lines} lines (soft limit {FUNCTION_SOFT})"
            ));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(raw: &str) -> Source {
        Source::new(raw, false)
    }

    #[test]
    fn a_long_file_is_refused_and_its_inline_tests_have_a_limit_of_their_own() {
        let long = "const A: u8 = 1;\n".repeat(FILE_HARD + 1);
        assert_eq!(check_file_size("a.rs", &source(&long)).len(), 1);
        let exact = "const A: u8 = 1;\n".repeat(FILE_HARD);
        assert_eq!(check_file_size("a.rs", &source(&exact)), []);
        let tests = format!(
            "{exact}#[cfg(test)]\nmod tests {{\n{}}}\n",
            "//\n".repeat(400)
        );
        assert_eq!(check_file_size("a.rs", &source(&tests)), []);
        let tests = format!(
            "#[cfg(test)]\nmod tests {{\n{}}}\n",
            "//\n".repeat(TEST_FILE_HARD)
        );
        assert_eq!(check_file_size("a.rs", &source(&tests)).len(), 1);
    }

    #[test]
    fn a_long_function_is_refused_with_its_name_and_line() {
        let raw = format!(
            "\nfn long<const N: usize>(a: [u8; 3]) -> u8 {{\n{}}}\n",
            "    x();\n".repeat(FUNCTION_HARD)
        );
        let findings = check_function_sizes("a.rs", &source(&raw));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 2);
        assert!(
            findings[0].rule.contains("`long` has 122 lines"),
            "{}",
            findings[0].rule
        );
    }

    #[test]
    fn declarations_and_function_pointers_are_not_functions() {
        let raw = "trait T { fn a(&self); }\ntype F = fn (u8) -> u8;\nfn b() {}\n";
        let names: Vec<_> = functions(&source(raw)).into_iter().map(|f| f.0).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn soft_limits_are_told() {
        let raw = format!("fn a() {{\n{}}}\n", "    x();\n".repeat(FILE_SOFT));
        assert_eq!(over_soft_limits("a.rs", &source(&raw)).len(), 2);
    }
}
