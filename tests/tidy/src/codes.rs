//! The codes of errors in the API's document against those in the code, both ways.
//!
//! Owns the choice of files that make codes, and what a code looks like; knows no meanings.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::source::Source;

/// The document that lists the codes, in the first column of tables.
pub const CODES_LISTED_IN: &str = "docs/api.md";
/// Where codes are made: a file, or a folder.
pub const CODES_MADE_IN: [&str; 4] = [
    "master/src/api/codes.rs",
    "master/src/api/error.rs",
    "master/src/node_loop.rs",
    "master/core/src/leader/",
];
/// Shorter words in capitals are names of something else.
const CODE_MIN: usize = 5;
/// Names of bounds look like codes.
const BOUND: &str = "_MAX";

const LIST_IT: &str = "list it in docs/api.md with its HTTP status and when it comes";
const REMOVE_IT: &str = "remove it from docs/api.md, or name it as the code does";

fn is_code(text: &str) -> bool {
    text.len() >= CODE_MIN
        && !text.ends_with(BOUND)
        && text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// Refuses codes that are made and not listed, and those that are listed and not made.
pub fn check_codes<'a>(
    document: &str,
    sources: impl IntoIterator<Item = (&'a str, &'a Source)>,
) -> Vec<Finding> {
    let mut listed = BTreeMap::new();
    for (at, line) in document.lines().enumerate() {
        let first = line
            .strip_prefix('|')
            .and_then(|row| row.split('|').next())
            .unwrap_or_default();
        let codes = first.split('`').filter(|text| is_code(text));
        listed.extend(codes.map(|code| (code, at + 1)));
    }
    let mut made = BTreeMap::new();
    for (path, source) in sources {
        for (at, line) in source.raw.lines().enumerate() {
            // Every second part stands between quotes.
            let literals = line.split('"').skip(1).step_by(2);
            let codes = literals.filter(|text| is_code(text) && !source.is_test(at + 1));
            made.extend(codes.map(|code| (code, (path, at + 1))));
        }
    }
    let unlisted = made.iter().filter(|(code, _)| !listed.contains_key(*code));
    let unlisted = unlisted.map(|(code, (path, line))| {
        Finding::new(
            path,
            *line,
            format!("the code `{code}` is not listed"),
            LIST_IT,
        )
    });
    let unmade = listed.iter().filter(|(code, _)| !made.contains_key(*code));
    let unmade = unmade.map(|(code, line)| {
        Finding::new(
            CODES_LISTED_IN,
            *line,
            format!("nothing answers `{code}`"),
            REMOVE_IT,
        )
    });
    unlisted.chain(unmade).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str =
        "| code | HTTP |\n|---|---|\n| `ONE_THING`, `OTHER` | 500 |\n\nNot `THIS_ONE`.\n";

    #[test]
    fn codes_are_held_against_the_list() {
        let whole = "new(1, \"ONE_THING\");\nfail(\n    \"OTHER\", \"a text\",\n    bound(\"THINGS_MAX\"));\n";
        let tested = "#[cfg(test)]\nmod tests {\n    const A: &str = \"IN_TESTS\";\n}\n";
        let cases = [
            (format!("{whole}{tested}"), ""),
            (
                format!("{whole}refuse(\"MORE\"); refuse(\"A_THIRD\");"),
                "a.rs:5: the code `A_THIRD` is not listed",
            ),
            (
                "new(1, \"ONE_THING\")".to_owned(),
                "docs/api.md:3: nothing answers `OTHER`",
            ),
        ];
        for (text, expected) in cases {
            let found = check_codes(DOCUMENT, [("a.rs", &Source::new(&text, false))]);
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            let first = found.first().and_then(|text| text.lines().next());
            assert_eq!(first.unwrap_or_default(), expected);
            assert!(found.len() <= 1, "{found:?}");
        }
    }
}
