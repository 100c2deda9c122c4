//! What must be written down: module docs in every Rust file, and the vocabulary.

use std::path::Path;

use crate::finding::Finding;

/// Shorter docs than this say nothing about what a file owns. Characters.
const DOCS_MIN: usize = 24;

/// The document that shows a scheduler.
pub const EXAMPLE_SHOWN_IN: &str = "README.md";
/// The guest that is compiled and run in its stead.
pub const EXAMPLE_COMPILED_IN: &str = "tests/guests/readme/src/lib.rs";

const COMPILE_IT: &str = "copy the first block of Rust of README.md into the guest, and build it";

const WRITE_DOCS: &str =
    "open the file with `//!`: what it owns, its invariants, what it must never do";

/// Refuses an example that is not, word by word, what is compiled; there has to be one.
pub fn check_example(document: &str, guest: &str) -> Vec<Finding> {
    let block = document.split_once("\n```rust\n");
    let block = block.and_then(|(_, rest)| rest.split_once("```\n"));
    match block {
        Some((example, _)) if guest.ends_with(example) => Vec::new(),
        _ => vec![Finding::new(
            EXAMPLE_COMPILED_IN,
            0,
            format!("the guest is not the scheduler of {EXAMPLE_SHOWN_IN}"),
            COMPILE_IT,
        )],
    }
}

/// Refuses a Rust file that does not open with docs.
pub fn check_module_docs(path: &str, raw: &str) -> Vec<Finding> {
    let lines = raw
        .lines()
        .skip_while(|line| line.trim().is_empty() || line.starts_with("#!"));
    let docs: Vec<_> = lines
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim)
        .collect();
    if docs.is_empty() {
        vec![Finding::new(
            path,
            1,
            "the file does not open with module docs",
            WRITE_DOCS,
        )]
    } else if docs.join(" ").chars().count() < DOCS_MIN {
        vec![Finding::new(
            path,
            1,
            "the module docs say nothing",
            WRITE_DOCS,
        )]
    } else {
        Vec::new()
    }
}

/// Refuses a repository without its documents.
pub fn check_vocabulary(root: &Path) -> Vec<Finding> {
    ["docs/vocabulary.md", "docs/architecture.md"]
        .into_iter()
        .filter(|path| !root.join(path).is_file())
        .map(|path| {
            Finding::new(
                path,
                0,
                "the document is missing",
                "write it; it is the authority on its subject",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_that_nobody_compiles_is_refused() {
        let document = "text\n\n```rust\nfn a() {}\n```\n\n```rust\nfn b() {}\n```\n";
        assert_eq!(check_example(document, "//! Docs.\n\nfn a() {}\n"), []);
        for (document, guest) in [(document, "fn b() {}\n"), ("text\n", "fn a() {}\n")] {
            assert_eq!(check_example(document, guest).len(), 1, "{guest}");
        }
    }

    #[test]
    fn missing_or_empty_docs_are_refused() {
        assert_eq!(check_module_docs("a.rs", "use x;\n").len(), 1);
        assert_eq!(
            check_module_docs("a.rs", "// what this owns and more\n").len(),
            1
        );
        assert_eq!(check_module_docs("a.rs", "//! Things.\n").len(), 1);
        assert_eq!(check_module_docs("a.rs", "").len(), 1);
        assert_eq!(
            check_module_docs("a.rs", "\n//! Owns the table of frameworks.\n"),
            []
        );
    }

    #[test]
    fn missing_documents_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check_vocabulary(dir.path()).len(), 2);
    }
}
