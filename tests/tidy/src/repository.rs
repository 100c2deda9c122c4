//! All rules over this repository. Owns the choice of files for each rule; has no rules of
//! its own apart from the absence of built guests.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use crate::files::{self, FileKind, RepoFile, clone_root, walk};
use crate::words::{check_banned_words, check_marks, check_sleeps};
use crate::{
    BOUNDS_LISTED_IN, CODES_LISTED_IN, CODES_MADE_IN, CORES, EXAMPLE_COMPILED_IN, EXAMPLE_SHOWN_IN,
    Finding, Manifest, Source, check_bounds, check_codes, check_core, check_edges, check_example,
    check_file_size, check_function_sizes, check_guest_manifest, check_host_manifest,
    check_module_docs, check_vocabulary, check_wrapped, manifest, over_soft_limits, report,
};

/// Text of a file; bytes that are not UTF-8 are no concern of these rules.
fn text_of(file: &RepoFile) -> String {
    String::from_utf8_lossy(&fs::read(&file.absolute).unwrap()).into_owned()
}

fn is_rust(file: &RepoFile) -> bool {
    matches!(file.kind, FileKind::HostRust | FileKind::GuestRust)
}

/// Whether a file is test code as a whole by its place alone.
fn is_test_file(path: &str) -> bool {
    let in_tests = path.starts_with("tests/") && !files::is_guest(path);
    in_tests
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.contains("/benches/")
}

/// Rust files with their text made ready. Modules declared under `#[cfg(test)]` in one file
/// make test code of another one.
fn sources() -> Vec<(RepoFile, Source)> {
    let files: Vec<_> = walk(&clone_root())
        .unwrap()
        .into_iter()
        .filter(is_rust)
        .collect();
    let mut test_paths = BTreeSet::new();
    for file in &files {
        let folder = module_folder(&file.path);
        for module in Source::new(&text_of(file), false).test_modules() {
            test_paths.insert(format!("{folder}/{module}.rs"));
            test_paths.insert(format!("{folder}/{module}/"));
        }
    }
    let all_test = |path: &str| {
        is_test_file(path)
            || test_paths
                .iter()
                .any(|test| path == test || (test.ends_with('/') && path.starts_with(test)))
    };
    files
        .into_iter()
        .map(|file| {
            let source = Source::new(&text_of(&file), all_test(&file.path));
            (file, source)
        })
        .collect()
}

/// Where the modules declared in a file live.
fn module_folder(path: &str) -> String {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    match stem.rsplit_once('/') {
        Some((folder, "lib" | "main" | "mod")) => folder.to_owned(),
        _ => stem.to_owned(),
    }
}

fn manifests() -> Vec<Manifest> {
    walk(&clone_root())
        .unwrap()
        .iter()
        .filter(|file| file.kind == FileKind::Manifest)
        .map(|file| {
            Manifest::parse(&file.path, &text_of(file))
                .unwrap_or_else(|error| panic!("{}", error.0))
        })
        .filter(|manifest| !manifest.name.is_empty())
        .collect()
}

#[track_caller]
fn expect_none(findings: Vec<Finding>) {
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        findings.len(),
        report(&findings)
    );
}

#[test]
fn crates_use_only_what_stands_above_them() {
    expect_none(manifests().iter().flat_map(check_edges).collect());
}

#[test]
fn heavy_and_dangerous_crates_stay_in_their_wrappers() {
    expect_none(manifests().iter().flat_map(check_wrapped).collect());
}

#[test]
fn manifests_inherit_versions_lints_and_features() {
    let check = |manifest: &Manifest| {
        if files::is_guest(&manifest.path) {
            check_guest_manifest(manifest)
        } else if manifest.name == manifest::FEATURE_CRATE {
            // Generated: its versions are the point of it.
            Vec::new()
        } else {
            check_host_manifest(manifest)
        }
    };
    expect_none(manifests().iter().flat_map(check).collect());
}

#[test]
fn files_and_functions_are_of_readable_size() {
    let sources = sources();
    let told: Vec<_> = sources
        .iter()
        .flat_map(|(file, source)| over_soft_limits(&file.path, source))
        .collect();
    // Written past the test harness, which would swallow what a passing test prints.
    let mut terminal = std::io::stderr().lock();
    for line in &told {
        writeln!(terminal, "tidy: {line}").unwrap();
    }
    expect_none(
        sources
            .iter()
            .flat_map(|(file, source)| {
                let mut findings = check_file_size(&file.path, source);
                findings.extend(check_function_sizes(&file.path, source));
                findings
            })
            .collect(),
    );
}

#[test]
fn every_rust_file_opens_with_its_docs() {
    expect_none(
        sources()
            .iter()
            .flat_map(|(file, source)| check_module_docs(&file.path, &source.raw))
            .collect(),
    );
}

#[test]
fn cores_are_pure() {
    let sources = sources();
    for core in CORES {
        assert!(
            sources.iter().any(|(file, _)| file.path.starts_with(core)),
            "no files in {core}"
        );
    }
    expect_none(
        sources
            .iter()
            .filter(|(file, _)| CORES.iter().any(|core| file.path.starts_with(core)))
            .flat_map(|(file, source)| check_core(&file.path, source))
            .collect(),
    );
}

#[test]
fn nothing_is_left_unfinished() {
    let mut findings: Vec<_> = sources()
        .iter()
        .flat_map(|(file, source)| check_banned_words(&file.path, source))
        .collect();
    for file in walk(&clone_root()).unwrap() {
        if matches!(file.kind, FileKind::Text | FileKind::Manifest) {
            findings.extend(check_marks(&file.path, &text_of(&file)));
        }
    }
    expect_none(findings);
}

#[test]
fn tests_wait_for_conditions_and_never_sleep() {
    expect_none(
        sources()
            .iter()
            .filter(|(file, _)| file.kind == FileKind::HostRust)
            .flat_map(|(file, source)| check_sleeps(&file.path, source))
            .collect(),
    );
}

#[test]
fn no_built_guest_is_committed() {
    let way_out = "remove it: scripts/build-guests builds every guest from source";
    expect_none(
        walk(&clone_root())
            .unwrap()
            .iter()
            .filter(|file| file.path.ends_with(".wasm"))
            .map(|file| Finding::new(&file.path, 0, "a built guest stands in the tree", way_out))
            .collect(),
    );
}

#[test]
fn the_documents_of_record_exist() {
    expect_none(check_vocabulary(&clone_root()));
}

#[test]
fn codes_of_errors_are_listed() {
    let document = fs::read_to_string(clone_root().join(CODES_LISTED_IN)).unwrap();
    let sources = sources();
    let makers: Vec<_> = sources
        .iter()
        .map(|(file, source)| (file.path.as_str(), source))
        .filter(|(path, _)| CODES_MADE_IN.iter().any(|made| path.starts_with(made)))
        .collect();
    for made in CODES_MADE_IN {
        assert!(
            makers.iter().any(|(path, _)| path.starts_with(made)),
            "no files in {made}"
        );
    }
    expect_none(check_codes(&document, makers));
}

#[test]
fn the_example_is_compiled() {
    let read = |path: &str| fs::read_to_string(clone_root().join(path)).unwrap();
    let (shown, compiled) = (read(EXAMPLE_SHOWN_IN), read(EXAMPLE_COMPILED_IN));
    expect_none(check_example(&shown, &compiled));
}

#[test]
fn fixed_bounds_are_listed() {
    let page = fs::read_to_string(clone_root().join(BOUNDS_LISTED_IN)).unwrap();
    let sources = sources();
    let read = |path: &str| {
        let found = sources.iter().find(|(file, _)| file.path == path);
        found.map(|(_, source)| source.raw.as_str())
    };
    expect_none(check_bounds(&page, read));
}
