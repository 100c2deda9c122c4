//! Words that appear nowhere: unfinished work and debugging in any file, sleeping in tests.
//! Owns the lists; the words are put together here from parts, so that this file passes.

use crate::finding::Finding;
use crate::size::functions;
use crate::source::{Source, is_whole_word};

/// Macros that stand for code that was not written, or was left behind.
const BANNED_MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];
/// Marks of unfinished work, in comments and documents as well.
const MARKS: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];
/// Files that hold the polling helper of a crate, which must pause between looks.
const POLLING_FILES: [&str; 2] = ["wait.rs", "poll.rs"];

const FINISH: &str = "finish it, or refuse what is not built with an error that says so";
const WAIT: &str = "wait for a condition: look in a loop that ends at a `deadline`";

/// Refuses macros of unfinished code and leftover debugging.
pub fn check_banned_words(path: &str, source: &Source) -> Vec<Finding> {
    let mut findings = check_marks(path, &source.raw);
    for (line, text) in source.code_lines() {
        for name in BANNED_MACROS {
            let call = format!("{name}!");
            let found = text
                .match_indices(&call)
                .any(|(at, _)| is_whole_word(text, at, name));
            if found {
                findings.push(Finding::new(
                    path,
                    line,
                    format!("`{call}` is never committed"),
                    FINISH,
                ));
            }
        }
    }
    findings
}

/// Refuses marks of unfinished work in any text.
pub(crate) fn check_marks(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for mark in MARKS {
            if line
                .match_indices(mark)
                .any(|(at, _)| is_whole_word(line, at, mark))
            {
                let rule = format!("the mark {mark} is never committed");
                findings.push(Finding::new(path, index + 1, rule, FINISH));
            }
        }
    }
    findings
}

/// Refuses sleeping in test code, except between the looks of a loop that has a deadline.
pub fn check_sleeps(path: &str, source: &Source) -> Vec<Finding> {
    if POLLING_FILES
        .iter()
        .any(|file| path.ends_with(&format!("/{file}")))
    {
        return Vec::new();
    }
    source
        .code_lines()
        .filter(|(line, text)| source.is_test(*line) && has_word(text, "sleep", "sleep("))
        .filter(|(line, _)| !polls(source, *line))
        .map(|(line, _)| Finding::new(path, line, "a test sleeps", WAIT))
        .collect()
}

/// Whether the innermost function around the line looks in a loop until a deadline.
fn polls(source: &Source, line: usize) -> bool {
    let around = functions(source)
        .into_iter()
        .filter(|(_, first, lines)| (*first..first + lines).contains(&line))
        .min_by_key(|(_, _, lines)| *lines);
    let Some((_, first, lines)) = around else {
        return false;
    };
    let (mut loops, mut ends) = (false, false);
    for text in source.code.lines().skip(first - 1).take(lines) {
        loops |= has_word(text, "loop", "loop") || has_word(text, "while", "while");
        ends |= has_word(text, "deadline", "deadline");
    }
    loops && ends
}

/// Whether `text` has `pattern`, which begins with the whole word `word`.
fn has_word(text: &str, word: &str, pattern: &str) -> bool {
    text.match_indices(pattern)
        .any(|(at, _)| is_whole_word(text, at, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_code_is_refused_and_words_that_only_look_like_it_are_not() {
        let raw = format!(
            "fn a() {{ {}!() }}\n// {}: later\nfn my_{}() {{}}\n",
            "todo", MARKS[0], "todo"
        );
        let lines: Vec<_> = check_banned_words("a.rs", &Source::new(&raw, false))
            .iter()
            .map(|f| f.line)
            .collect();
        assert_eq!(lines, [2, 1]);
        assert_eq!(
            check_banned_words("a.rs", &Source::new("let s = \"dbg!(1)\";\n", false)),
            []
        );
    }

    #[test]
    fn marks_are_refused_in_any_text() {
        let text = format!("ok\n# {} repair\n{}ED\n", MARKS[1], MARKS[1]);
        let findings = check_marks("a.toml", &text);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 2);
    }

    #[test]
    fn a_sleeping_test_is_refused_and_sleeping_code_is_not() {
        let raw =
            "fn a() { thread::sleep(d) }\n#[test]\nfn b() {\n    tokio::time::sleep(d).await;\n}\n";
        let findings = check_sleeps("a/b.rs", &Source::new(raw, false));
        assert_eq!(findings.iter().map(|f| f.line).collect::<Vec<_>>(), [4]);
        assert_eq!(
            check_sleeps("tests/cluster/src/wait.rs", &Source::new(raw, true)),
            []
        );
    }

    #[test]
    fn a_loop_with_a_deadline_may_pause() {
        let poll = "fn wait() {\n    while now() < deadline {\n        sleep(PAUSE);\n    }\n}\n";
        assert_eq!(check_sleeps("a/b.rs", &Source::new(poll, true)), []);
        let endless = poll.replace("now() < deadline", "!done()");
        assert_eq!(
            check_sleeps("a/b.rs", &Source::new(&endless, true)).len(),
            1
        );
        let outside = format!("fn a() {{ sleep(d); }}\n{poll}");
        assert_eq!(
            check_sleeps("a/b.rs", &Source::new(&outside, true)).len(),
            1
        );
    }
}
