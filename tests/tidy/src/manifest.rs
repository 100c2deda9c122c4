//! Reading `Cargo.toml`. Owns what the rules need from a manifest and the rules about
//! inheriting: versions, lints and the feature crate come from the workspace, never from a
//! package. Resolves nothing and asks no registry.

use toml::{Table, Value};

use crate::finding::Finding;

/// Every host package depends on it, so that all builds agree on features.
pub(crate) const FEATURE_CRATE: &str = "tessera-workspace-hack";
const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];

const INHERIT: &str =
    "inherit it: `name.workspace = true`, and put the value into the workspace's Cargo.toml";
const ADD_FEATURE_CRATE: &str =
    "add `tessera-workspace-hack.workspace = true`, see tests/workspace-hack/Cargo.toml";
const NAME_WORKSPACE: &str = "name the guest workspace: `workspace = \"<path to frameworks>\"`";

/// A manifest could not be read.
#[derive(Debug)]
pub struct ManifestError(pub String);

/// A dependency as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The key, which is the package's name in this workspace.
    pub name: String,
    /// Line of the key, counted from 1.
    pub line: usize,
    /// Whether version and source come from the workspace.
    pub inherited: bool,
}

/// A package's manifest.
#[derive(Debug)]
pub struct Manifest {
    /// Path below the root of the repository.
    pub path: String,
    /// Package name; empty for a workspace without a package.
    pub name: String,
    /// Dependencies of all three kinds and all targets.
    pub dependencies: Vec<Dependency>,
    text: String,
    table: Table,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When the text is not TOML.
    pub fn parse(path: &str, text: &str) -> Result<Self, ManifestError> {
        let table: Table =
            toml::from_str(text).map_err(|error| ManifestError(format!("{path}: {error}")))?;
        let name = table
            .get("package")
            .and_then(|package| package.get("name"))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let mut dependencies = Vec::new();
        collect_dependencies(&table, text, &mut dependencies);
        if let Some(targets) = table.get("target").and_then(Value::as_table) {
            for target in targets.values().filter_map(Value::as_table) {
                collect_dependencies(target, text, &mut dependencies);
            }
        }
        Ok(Self {
            path: path.to_owned(),
            name,
            dependencies,
            text: text.to_owned(),
            table,
        })
    }

    fn package(&self, key: &str) -> Option<&Value> {
        self.table
            .get("package")
            .and_then(|package| package.get(key))
    }

    fn inherits_lints(&self) -> bool {
        self.table.get("lints").is_some_and(is_inherited)
    }
}

fn collect_dependencies(table: &Table, text: &str, into: &mut Vec<Dependency>) {
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, value) in table
            .get(kind)
            .and_then(Value::as_table)
            .into_iter()
            .flatten()
        {
            into.push(Dependency {
                name: name.clone(),
                line: key_line(text, name),
                inherited: is_inherited(value),
            });
        }
    }
}

fn is_inherited(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

/// The line on which a key stands, 1 if it is written in an unusual way.
fn key_line(text: &str, key: &str) -> usize {
    let starts = |line: &str| {
        let line = line.trim_start().trim_start_matches('"');
        line.strip_prefix(key)
            .is_some_and(|rest| rest.starts_with([' ', '.', '=', '"']))
    };
    text.lines().position(starts).map_or(1, |index| index + 1)
}

fn check_inheritance(manifest: &Manifest) -> Vec<Finding> {
    let path = &manifest.path;
    let mut findings = Vec::new();
    for key in INHERITED {
        if !manifest.package(key).is_some_and(is_inherited) {
            let line = key_line(&manifest.text, key);
            findings.push(Finding::new(
                path,
                line,
                format!("package.{key} is not inherited"),
                INHERIT,
            ));
        }
    }
    if !manifest.inherits_lints() {
        let way_out = "add `[lints]` with `workspace = true`";
        findings.push(Finding::new(
            path,
            1,
            "the workspace's lints are not inherited",
            way_out,
        ));
    }
    for dependency in manifest
        .dependencies
        .iter()
        .filter(|dependency| !dependency.inherited)
    {
        let rule = format!(
            "dependency {} is not inherited from the workspace",
            dependency.name
        );
        findings.push(Finding::new(path, dependency.line, rule, INHERIT));
    }
    findings
}

/// Rules for a manifest of the host workspace.
pub fn check_host_manifest(manifest: &Manifest) -> Vec<Finding> {
    let mut findings = check_inheritance(manifest);
    if !manifest
        .dependencies
        .iter()
        .any(|dependency| dependency.name == FEATURE_CRATE)
    {
        let rule = "the package may be built with other features than the workspace";
        findings.push(Finding::new(&manifest.path, 1, rule, ADD_FEATURE_CRATE));
    }
    findings
}

/// Rules for a manifest of the guest workspace.
pub fn check_guest_manifest(manifest: &Manifest) -> Vec<Finding> {
    let mut findings = check_inheritance(manifest);
    let inside = manifest.path.starts_with("frameworks/");
    if !inside
        && manifest
            .package("workspace")
            .and_then(Value::as_str)
            .is_none()
    {
        let rule = "a guest outside of frameworks/ belongs to no workspace";
        findings.push(Finding::new(&manifest.path, 1, rule, NAME_WORKSPACE));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"a\"\nversion.workspace = true\nedition.workspace = true\n\
        rust-version.workspace = true\nlicense.workspace = true\npublish.workspace = true\n\
        [lints]\nworkspace = true\n[dependencies]\nserde.workspace = true\n\
        tessera-workspace-hack = { workspace = true }\n";

    fn check(text: &str) -> Vec<Finding> {
        check_host_manifest(&Manifest::parse("a/Cargo.toml", text).unwrap())
    }

    #[test]
    fn a_manifest_that_inherits_everything_passes() {
        assert_eq!(check(GOOD), []);
    }

    #[test]
    fn versions_lints_and_dependencies_of_ones_own_are_refused() {
        let cases = [
            (
                "\nversion.workspace = true",
                "\nversion = \"0.2.0\"",
                "package.version",
            ),
            ("[lints]\nworkspace = true", "", "lints"),
            (
                "serde.workspace = true",
                "serde = \"1\"",
                "dependency serde",
            ),
            (
                "tessera-workspace-hack = { workspace = true }",
                "",
                "other features",
            ),
        ];
        for (from, to, expected) in cases {
            let findings = check(&GOOD.replace(from, to));
            assert_eq!(findings.len(), 1, "{to}");
            assert!(findings[0].rule.contains(expected), "{}", findings[0].rule);
        }
        let line = check(&GOOD.replace("serde.workspace = true", "serde = \"1\""))[0].line;
        assert_eq!(line, 11);
    }

    #[test]
    fn dependencies_of_every_kind_and_target_are_seen() {
        let text = "[dev-dependencies]\na = \"1\"\n[build-dependencies]\nb = \"1\"\n\
            [target.'cfg(unix)'.dependencies]\nc = \"1\"\n";
        let manifest = Manifest::parse("a/Cargo.toml", text).unwrap();
        let names: Vec<_> = manifest
            .dependencies
            .iter()
            .map(|d| (d.name.as_str(), d.line))
            .collect();
        assert_eq!(names, [("a", 2), ("b", 4), ("c", 6)]);
    }

    #[test]
    fn a_guest_outside_of_the_workspace_folder_must_name_it() {
        let check = |path| check_guest_manifest(&Manifest::parse(path, GOOD).unwrap()).len();
        assert_eq!(check("frameworks/a/Cargo.toml"), 0);
        assert_eq!(check("sdk/rust/Cargo.toml"), 1);
    }

    #[test]
    fn broken_toml_is_an_error_with_the_path() {
        assert!(
            Manifest::parse("a/Cargo.toml", "[")
                .unwrap_err()
                .0
                .starts_with("a/Cargo.toml: ")
        );
    }
}
