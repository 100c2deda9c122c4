//! The layout table: which crate may use which, and where heavy or dangerous third-party
//! crates may appear. Owns both tables; a change of the architecture is a change here.
//!
//! Invariant: every arrow points up the list of crates, which a test holds against the table
//! itself.

use crate::finding::Finding;
use crate::manifest::{FEATURE_CRATE, Manifest};

/// Which of our crates each crate may use, in the order of the layout table.
pub const ALLOWED_EDGES: &[(&str, &[&str])] = &[
    ("tessera-types", &[]),
    ("tessera-wire", &["tessera-types"]),
    ("tessera-telemetry", &[]),
    ("tessera-wit-host", &["tessera-types", "tessera-wire"]),
    ("tessera-master-core", &["tessera-types", "tessera-wire"]),
    ("tessera-replica", &[]),
    ("tessera-agent-core", &["tessera-types", "tessera-wire"]),
    ("tessera-oci", &[]),
    ("tessera-shim", &["tessera-oci"]),
    (
        "tessera-worker",
        &["tessera-types", "tessera-wire", "tessera-telemetry", "tessera-wit-host"],
    ),
    ("tessera-virtual", &[]),
    (
        "tessera-simulate",
        &[
            "tessera-virtual",
            "tessera-types",
            "tessera-wire",
            "tessera-wit-host",
            "tessera-master-core",
            "tessera-agent-core",
            "tessera-worker",
        ],
    ),
    (
        "tessera-master",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-telemetry",
            "tessera-master-core",
            "tessera-replica",
        ],
    ),
    (
        "tessera-agent",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-telemetry",
            "tessera-agent-core",
            "tessera-oci",
        ],
    ),
    (
        "tessera",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-telemetry",
            "tessera-master",
            "tessera-agent",
        ],
    ),
    ("tessera-linear", &[]),
    (
        "tessera-sim",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-master-core",
            "tessera-replica",
            "tessera-agent-core",
            "tessera-master",
            "tessera-linear",
            "tessera-virtual",
        ],
    ),
    (
        "tessera-cluster",
        &["tessera-types", "tessera-wire", "tessera-telemetry", "tessera-linear"],
    ),
    ("tessera-tidy", &[]),
    (FEATURE_CRATE, &[]),
];

/// Third-party crates and the only crates of ours that may name them.
pub const WRAPPED: &[(&[&str], &[&str])] = &[
    (
        &["wasmtime", "wasmtime-wasi", "wasmparser"],
        &["tessera-wit-host", "tessera-worker"],
    ),
    (
        &["raft", "prost-raft", "rocksdb", "slog"],
        &["tessera-replica"],
    ),
    (
        &["nix", "libc", "rustix"],
        &[
            "tessera-oci",
            "tessera-shim",
            "tessera-worker",
            "tessera-agent",
            "tessera",
            "tessera-cluster",
        ],
    ),
    (&["landlock"], &["tessera-worker"]),
    (&["cgroups-rs"], &["tessera-oci"]),
    (&["axum"], &["tessera-master"]),
    (&["tonic-prost-build"], &["tessera-wire"]),
    (
        &["tokio"],
        // wasmtime-wasi asks for tokio's traits where a guest writes to a stream.
        &[
            "tessera-wit-host",
            "tessera-master",
            "tessera-agent",
            "tessera",
            "tessera-cluster",
        ],
    ),
    (
        &["tokio-util", "tokio-stream", "reqwest"],
        &[
            "tessera-master",
            "tessera-agent",
            "tessera",
            "tessera-cluster",
        ],
    ),
    (
        &["clap"],
        &[
            "tessera",
            "tessera-worker",
            "tessera-master",
            "tessera-agent",
        ],
    ),
];

/// What guests may name of ours; and nothing else of ours.
const GUEST_EDGES: [&str; 1] = ["tessera-sdk"];

const POINT_UP: &str =
    "arrows point up the layout table only: move the shared part up, or pass it as an argument";
const WRAP: &str = "go through the crate that wraps it, see docs/architecture.md";

fn is_ours(name: &str) -> bool {
    name == "tessera" || name.starts_with("tessera-")
}

/// Refuses crates that are not in the table and arrows that are not in it.
pub fn check_edges(manifest: &Manifest) -> Vec<Finding> {
    let guest = crate::files::is_guest(&manifest.path);
    let allowed: &[&str] = if guest {
        &GUEST_EDGES
    } else if let Some((_, allowed)) = ALLOWED_EDGES
        .iter()
        .find(|(name, _)| *name == manifest.name)
    {
        allowed
    } else {
        let rule = format!("crate {} is not in the layout table", manifest.name);
        let way_out = "a new crate needs a forbidden dependency or a second user as reason; then add it to tests/tidy/src/layout.rs";
        return vec![Finding::new(&manifest.path, 1, rule, way_out)];
    };
    manifest
        .dependencies
        .iter()
        .filter(|dependency| {
            is_ours(&dependency.name) && (guest || dependency.name != FEATURE_CRATE)
        })
        .filter(|dependency| !allowed.contains(&dependency.name.as_str()))
        .map(|dependency| {
            let rule = format!("{} must not use {}", manifest.name, dependency.name);
            Finding::new(&manifest.path, dependency.line, rule, POINT_UP)
        })
        .collect()
}

/// Refuses third-party crates outside of the crates that wrap them.
pub fn check_wrapped(manifest: &Manifest) -> Vec<Finding> {
    if manifest.name == FEATURE_CRATE || crate::files::is_guest(&manifest.path) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for dependency in &manifest.dependencies {
        for (wrapped, users) in WRAPPED {
            if wrapped.contains(&dependency.name.as_str())
                && !users.contains(&manifest.name.as_str())
            {
                let rule = format!(
                    "{} must not use {}: only {} may",
                    manifest.name,
                    dependency.name,
                    users.join(", ")
                );
                findings.push(Finding::new(&manifest.path, dependency.line, rule, WRAP));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(path: &str, name: &str, dependency: &str) -> Manifest {
        let text = format!(
            "[package]\nname = \"{name}\"\n[dependencies]\n{dependency}.workspace = true\n"
        );
        Manifest::parse(path, &text).unwrap()
    }

    #[test]
    fn the_table_itself_only_points_up() {
        for (index, (name, allowed)) in ALLOWED_EDGES.iter().enumerate() {
            for used in *allowed {
                let above = ALLOWED_EDGES[..index]
                    .iter()
                    .any(|(other, _)| other == used);
                assert!(above, "{name} uses {used}, which is not above it");
            }
        }
    }

    #[test]
    fn arrows_down_are_refused() {
        let findings = check_edges(&manifest(
            "proto/types/Cargo.toml",
            "tessera-types",
            "tessera-wire",
        ));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 4);
        assert_eq!(
            check_edges(&manifest(
                "proto/wire/Cargo.toml",
                "tessera-wire",
                "tessera-types"
            )),
            []
        );
        assert_eq!(
            check_edges(&manifest(
                "proto/wire/Cargo.toml",
                "tessera-wire",
                FEATURE_CRATE
            )),
            []
        );
    }

    #[test]
    fn unknown_crates_are_refused() {
        assert_eq!(
            check_edges(&manifest("x/Cargo.toml", "tessera-utils", "serde")).len(),
            1
        );
    }

    #[test]
    fn guests_see_the_sdk_and_nothing_of_the_host() {
        assert_eq!(
            check_edges(&manifest("frameworks/run/Cargo.toml", "run", "tessera-sdk")),
            []
        );
        assert_eq!(
            check_edges(&manifest(
                "frameworks/run/Cargo.toml",
                "run",
                "tessera-types"
            ))
            .len(),
            1
        );
        assert_eq!(
            check_edges(&manifest(
                "sdk/rust/Cargo.toml",
                "tessera-sdk",
                "tessera-wire"
            ))
            .len(),
            1
        );
    }

    #[test]
    fn wrapped_crates_are_refused_elsewhere() {
        for (name, dependency) in [
            ("tessera-master", "rocksdb"),
            ("tessera-agent", "wasmtime"),
            ("tessera-master-core", "tokio"),
            ("tessera-types", "nix"),
        ] {
            assert_eq!(
                check_wrapped(&manifest("x/Cargo.toml", name, dependency)).len(),
                1,
                "{name} {dependency}"
            );
        }
        assert_eq!(
            check_wrapped(&manifest("x/Cargo.toml", "tessera-replica", "rocksdb")),
            []
        );
    }
}
