//! The rules of the layout table and of the house style, as tests.
//!
//! Every checker is a pure function from text to findings, tested against small bad inputs;
//! `repository` runs them all over this repository. A finding names file and line, the rule,
//! and the way out. Checkers read text and manifests only: they must never build anything.

mod bounds;
mod codes;
mod docs;
mod files;
mod finding;
mod layout;
mod manifest;
mod purity;
#[cfg(test)]
mod repository;
mod size;
mod source;
mod words;

pub use bounds::{BOUNDS_LISTED_IN, check_bounds};
pub use codes::{CODES_LISTED_IN, CODES_MADE_IN, check_codes};
pub use docs::{
    EXAMPLE_COMPILED_IN, EXAMPLE_SHOWN_IN, check_example, check_module_docs, check_vocabulary,
};
pub use files::{FileKind, RepoFile, clone_root, walk};
pub use finding::{Finding, report};
pub use layout::{ALLOWED_EDGES, WRAPPED, check_edges, check_wrapped};
pub use manifest::{Manifest, ManifestError, check_guest_manifest, check_host_manifest};
pub use purity::{CORES, check_core};
pub use size::{check_file_size, check_function_sizes, over_soft_limits};
pub use source::Source;
pub use words::{check_banned_words, check_sleeps};
