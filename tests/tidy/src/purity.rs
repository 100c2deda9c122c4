//! The pure cores. Owns the list of cores and of what none of them may name: clocks,
//! randomness, hash order, floats, files, sockets, threads, async and log output. Test code
//! of a core is free of these rules.

use crate::finding::Finding;
use crate::source::{Source, is_whole_word};

/// Source folders of the crates that must give the same result on every replica.
pub const CORES: [&str; 3] = ["proto/types/src/", "master/core/src/", "agent/core/src/"];

const TAKE_NOW: &str = "take `now` as an argument";
const TAKE_ID: &str = "take fresh ids and seeds as arguments";
const USE_TREE: &str = "use BTreeMap or BTreeSet: hash order differs between replicas";
const USE_INTEGER: &str = "use integers in the smallest unit";
const RETURN_EFFECT: &str = "return an effect and let the crate around the core perform it";

const BANNED: &[(&str, &str)] = &[
    ("Instant", TAKE_NOW),
    ("SystemTime", TAKE_NOW),
    ("UNIX_EPOCH", TAKE_NOW),
    ("rand", TAKE_ID),
    ("getrandom", TAKE_ID),
    ("HashMap", USE_TREE),
    ("HashSet", USE_TREE),
    ("RandomState", USE_TREE),
    ("f32", USE_INTEGER),
    ("f64", USE_INTEGER),
    ("tokio", RETURN_EFFECT),
    ("async", RETURN_EFFECT),
    ("tracing", RETURN_EFFECT),
    ("println", RETURN_EFFECT),
    ("eprintln", RETURN_EFFECT),
];
/// Modules of std, by any way of importing them.
const BANNED_STD: [&str; 7] = ["fs", "net", "env", "process", "thread", "os", "io"];

/// Refuses impure code in a file of a core.
pub fn check_core(path: &str, source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, text) in source
        .code_lines()
        .filter(|(line, _)| !source.is_test(*line))
    {
        for (word, way_out) in BANNED {
            if text
                .match_indices(word)
                .any(|(at, _)| is_whole_word(text, at, word))
            {
                findings.push(Finding::new(
                    path,
                    line,
                    format!("a core must not name {word}"),
                    way_out,
                ));
            }
        }
    }
    for (position, module) in std_modules(&source.code) {
        let line = crate::source::line_of(&source.code, position);
        if BANNED_STD.contains(&module) && !source.is_test(line) {
            findings.push(Finding::new(
                path,
                line,
                format!("a core must not use std::{module}"),
                RETURN_EFFECT,
            ));
        }
    }
    findings
}

/// First segments behind `std::`, braces included, with their byte positions.
fn std_modules(code: &str) -> Vec<(usize, &str)> {
    let mut modules = Vec::new();
    for (position, _) in code.match_indices("std::") {
        if !is_whole_word(code, position, "std") {
            continue;
        }
        let start = position + "std::".len();
        if code[start..].starts_with('{') {
            let end = crate::source::closing(code, start);
            first_level_names(code, start + 1, end.saturating_sub(1), &mut modules);
        } else {
            modules.push((start, leading_name(&code[start..])));
        }
    }
    modules
}

fn first_level_names<'a>(code: &'a str, from: usize, to: usize, into: &mut Vec<(usize, &'a str)>) {
    let mut depth = 0_usize;
    let mut expects_name = true;
    for (offset, character) in code[from..to].char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => expects_name = true,
            c if depth == 0 && expects_name && !c.is_whitespace() => {
                into.push((from + offset, leading_name(&code[from + offset..])));
                expects_name = false;
            }
            _ => {}
        }
    }
}

fn leading_name(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(raw: &str) -> Vec<usize> {
        check_core("a.rs", &Source::new(raw, false))
            .into_iter()
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn each_impurity_is_refused() {
        for (word, _) in BANNED {
            assert_eq!(
                lines(&format!("fn a() {{}}\nuse x::{word};\n")),
                [2],
                "{word}"
            );
        }
    }

    #[test]
    fn std_is_seen_through_every_import() {
        for raw in [
            "use std::fs;",
            "use std::fs::File;",
            "let x = std::fs::read(p);",
            "use std::{fmt, fs};",
            "use std::{collections::{self, BTreeMap}, net::IpAddr};",
        ] {
            assert_eq!(lines(raw), [1], "{raw}");
        }
        assert_eq!(
            lines("use std::{collections::{BTreeMap, fs}, fmt};\nuse std::sync::Arc;\n"),
            []
        );
    }

    #[test]
    fn tests_comments_and_longer_words_are_free() {
        let raw = "// HashMap\nstruct Instants;\nlet operand = \"f64\";\n#[cfg(test)]\nmod tests {\n use std::fs;\n}\n";
        assert_eq!(lines(raw), []);
    }
}
