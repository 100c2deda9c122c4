//! `tessera framework new`: write the project of a scheduler, with the SDK in it, so that it builds without a
//! network on a machine that has built Tessera.
//!
//! Invariants: nothing that exists is overwritten; what a project is locked to are the versions that this
//! program's own guests were built with. Must never run anything, nor ask the cluster.

use crate::error::{CliError, Kind, io_error};
use crate::{Context, output};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Paths below the repository and their contents.
const SDK_FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sdk_files.rs"));
/// Where they stand in a project. The SDK finds the contract by its place beside it.
const VENDORED: &str = "vendor/tessera";
const SDK: &str = "vendor/tessera/sdk/rust";

/// Crates of the SDK that a project may use, too.
const DEPENDENCIES: [&str; 1] = ["serde"];
const DEV_DEPENDENCIES: [&str; 1] = ["serde_json"];
/// Names that cargo or the compiler keep for themselves.
const TAKEN: [&str; 8] = ["alloc", "build", "core", "deps", "examples", "proc-macro", "std", "test"];
/// A framework's name has at most as many bytes.
const NAME_BYTES_MAX: usize = 63;

/// Arguments of `tessera framework new`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework new hello\n  tessera framework new web --template service --dir ~/src/web\n\nThen, in the new directory:\n  tessera framework test      # what it does, step by step, without a cluster\n  tessera framework dev       # on the cluster, and again whenever a file is saved"
)]
pub struct NewArgs {
    /// Its name: a-z 0-9 -, beginning with a letter
    name: String,
    /// Where to write it [default: NAME]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// What it begins with
    #[arg(long, value_enum, default_value = "batch")]
    template: Template,
    /// Use the SDK in this directory, sdk/rust of Tessera's sources, instead of a copy in the project
    #[arg(long, value_name = "DIR")]
    sdk_path: Option<PathBuf>,
}

/// What a project begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Template {
    /// Runs a number of tasks and tries again what fails
    Batch,
    /// Keeps a number of tasks running
    Service,
    /// Declines every offer
    Empty,
}

impl Template {
    /// Scheduler, unit test, script.
    const fn files(self) -> [&'static str; 3] {
        match self {
            Self::Batch => [
                include_str!("framework_new/templates/batch.rs.txt"),
                include_str!("framework_new/templates/batch-tests.rs.txt"),
                include_str!("framework_new/templates/batch-script.toml.txt"),
            ],
            Self::Service => [
                include_str!("framework_new/templates/service.rs.txt"),
                include_str!("framework_new/templates/service-tests.rs.txt"),
                include_str!("framework_new/templates/service-script.toml.txt"),
            ],
            Self::Empty => [
                include_str!("framework_new/templates/empty.rs.txt"),
                include_str!("framework_new/templates/empty-tests.rs.txt"),
                include_str!("framework_new/templates/empty-script.toml.txt"),
            ],
        }
    }
}

/// Write the project.
///
/// # Errors
/// When the name cannot be one, something is there already, or a file cannot be written.
pub fn run(context: &Context, args: &NewArgs) -> Result<(), CliError> {
    let (dir, files) = write(args)?;
    if context.is_data() {
        return output::document(&json!({"name": args.name, "dir": dir, "files": files}));
    }
    output::line(&format!("{} is in {}: the scheduler is src/lib.rs", args.name, dir.display()))?;
    output::line("next, in that directory: tessera framework test, tessera framework dev")
}

/// Where it was written, and how many files it has.
fn write(args: &NewArgs) -> Result<(PathBuf, usize), CliError> {
    check_name(&args.name)?;
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let sdk_path = args.sdk_path.as_deref().map(find_sdk).transpose()?;
    let files = project(&args.name, args.template, sdk_path.as_deref())?;
    if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
        return Err(CliError::new(Kind::Refused, format!("{} is there already, and not empty", dir.display()))
            .hint("choose another place with --dir, or remove it"));
    }
    for (path, content) in &files {
        let path = dir.join(path);
        let above = path.parent().unwrap_or(&dir);
        fs::create_dir_all(above).map_err(|error| io_error("make", above, &error))?;
        fs::write(&path, content).map_err(|error| io_error("write", &path, &error))?;
    }
    Ok((dir, files.len()))
}

fn check_name(name: &str) -> Result<(), CliError> {
    let usage = |text: String| Err(CliError::new(Kind::Usage, text));
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !(1..=NAME_BYTES_MAX).contains(&name.len())
        || !name.chars().all(good)
        || !name.starts_with(|c: char| c.is_ascii_lowercase())
        || name.ends_with('-')
    {
        return usage(format!(
            "name {name:?}: 1 to {NAME_BYTES_MAX} of a-z 0-9 -, the first a letter, the last no dash"
        ));
    }
    if TAKEN.contains(&name) || locked()?.iter().any(|package| text(package, "name") == name) {
        return usage(format!("name {name:?}: a crate that the build needs is called so; choose another"));
    }
    Ok(())
}

/// The SDK of a source tree, as an absolute path.
fn find_sdk(dir: &Path) -> Result<PathBuf, CliError> {
    let found = dir.canonicalize().map_err(|error| io_error("find", dir, &error))?;
    let manifest = fs::read_to_string(found.join("Cargo.toml")).unwrap_or_default();
    match manifest.contains("name = \"tessera-sdk\"") {
        true => Ok(found),
        false => Err(CliError::new(Kind::Usage, format!("{} is not the SDK", dir.display()))
            .hint("name sdk/rust of Tessera's sources, or leave --sdk-path out")),
    }
}

/// All files, with their paths in the project.
fn project(name: &str, template: Template, sdk_path: Option<&Path>) -> Result<Vec<(String, String)>, CliError> {
    let file = name.replace('-', "_");
    let [scheduler, tests, script] = template.files();
    let readme = include_str!("framework_new/templates/README.md.txt");
    let mut files = vec![
        ("Cargo.toml".to_owned(), manifest(name, sdk_path)?),
        ("Cargo.lock".to_owned(), lock(name)?),
        (".gitignore".to_owned(), "/target\n".to_owned()),
        ("README.md".to_owned(), readme.replace("{name}", name).replace("{file}", &file)),
        ("src/lib.rs".to_owned(), scheduler.to_owned()),
        ("src/tests.rs".to_owned(), tests.to_owned()),
        ("tests/first.toml".to_owned(), script.to_owned()),
    ];
    if sdk_path.is_none() {
        let sources = SDK_FILES.iter().filter(|(path, _)| !path.starts_with("frameworks/") && !path.ends_with("Cargo.toml"));
        files.extend(sources.map(|(path, content)| (format!("{VENDORED}/{path}"), (*content).to_owned())));
        files.push((format!("{SDK}/Cargo.toml"), sdk_manifest()?));
    }
    Ok(files)
}

/// A table that this program was built with.
fn embedded(path: &str) -> Result<Table, CliError> {
    let broken = |text: String| CliError::failed(format!("this program was built from a broken {path}: {text}"));
    let (_, content) = SDK_FILES
        .iter()
        .find(|(name, _)| *name == path)
        .ok_or_else(|| broken("it is not there".to_owned()))?;
    content.parse().map_err(|error: toml::de::Error| broken(error.to_string()))
}

fn text<'a>(table: &'a Table, key: &str) -> &'a str {
    table.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// What the guests' workspace says under these keys.
fn workspace(keys: [&str; 2]) -> Result<Table, CliError> {
    let mut table = embedded("frameworks/Cargo.toml")?;
    for key in keys {
        table = match table.remove(key) {
            Some(Value::Table(inner)) => inner,
            _ => Table::new(),
        };
    }
    Ok(table)
}

/// The SDK's manifest, with what it inherits written out.
fn sdk_manifest() -> Result<String, CliError> {
    let mut manifest = embedded("sdk/rust/Cargo.toml")?;
    manifest.remove("lints");
    for (section, inherited) in [
        ("package", workspace(["workspace", "package"])?),
        ("dependencies", workspace(["workspace", "dependencies"])?),
    ] {
        let Some(Value::Table(table)) = manifest.get_mut(section) else { continue };
        table.remove("workspace");
        for (name, value) in table.iter_mut() {
            let inherits = value.get("workspace").and_then(Value::as_bool) == Some(true);
            if let (true, Some(said)) = (inherits, inherited.get(name)) {
                *value = said.clone();
            }
        }
    }
    // Its own examples are for its own build.
    manifest.insert("lib".to_owned(), Value::Table(Table::from_iter([("doctest".to_owned(), Value::Boolean(false))])));
    Ok(format!("# As it came with tessera {}.\n{manifest}", env!("CARGO_PKG_VERSION")))
}

fn manifest(name: &str, sdk_path: Option<&Path>) -> Result<String, CliError> {
    let versions = workspace(["workspace", "dependencies"])?;
    let dependency = |name: &str| {
        let said = versions.get(name).map(ToString::to_string).unwrap_or_default();
        format!("{name} = {said}\n")
    };
    let dependencies: String = DEPENDENCIES.iter().map(|name| dependency(name)).collect();
    let dev_dependencies: String = DEV_DEPENDENCIES.iter().map(|name| dependency(name)).collect();
    let sdk = sdk_path.map_or_else(|| SDK.to_owned(), |path| path.display().to_string());
    let sdk = Value::String(sdk);
    Ok(format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\npublish = false\n\n\
         # What becomes a component is a library that others can call.\n[lib]\ncrate-type = [\"cdylib\"]\n\n\
         [dependencies]\n{dependencies}tessera-sdk = {{ path = {sdk} }}\n\n\
         [dev-dependencies]\n{dev_dependencies}\n\
         # A component is compiled a second time where it runs: small code is good there.\n\
         [profile.release]\nopt-level = \"s\"\nlto = true\ncodegen-units = 1\npanic = \"abort\"\nstrip = true\n\n\
         # Its own, wherever it stands.\n[workspace]\n"
    ))
}

/// The packages of the guests' lock file.
fn locked() -> Result<Vec<Table>, CliError> {
    let mut lock = embedded("frameworks/Cargo.lock")?;
    let packages = match lock.remove("package") {
        Some(Value::Array(packages)) => packages,
        _ => Vec::new(),
    };
    Ok(packages.into_iter().filter_map(|package| package.try_into().ok()).collect())
}

/// A lock file with what the SDK needs, in the versions that it was built with.
fn lock(name: &str) -> Result<String, CliError> {
    let packages = locked()?;
    // `name`, or `name version` where several versions are locked.
    let find = |wanted: &str| {
        let mut parts = wanted.split(' ');
        let (name, version) = (parts.next().unwrap_or_default(), parts.next());
        packages.iter().position(|package| {
            text(package, "name") == name && version.is_none_or(|version| text(package, "version") == version)
        })
    };
    let mut needed = BTreeSet::new();
    let mut open: Vec<usize> = find("tessera-sdk").into_iter().collect();
    open.extend(DEPENDENCIES.iter().chain(&DEV_DEPENDENCIES).filter_map(|name| find(name)));
    while let Some(index) = open.pop() {
        if needed.insert(index) {
            let dependencies = packages.get(index).and_then(|package| package.get("dependencies"));
            let names = dependencies.and_then(Value::as_array).into_iter().flatten();
            open.extend(names.filter_map(Value::as_str).filter_map(find));
        }
    }
    let mut entries: Vec<(String, String, String)> = needed
        .into_iter()
        .filter_map(|index| packages.get(index))
        .map(|package| {
            let mut entry = String::new();
            for key in ["name", "version", "source", "checksum"] {
                if package.contains_key(key) {
                    entry.push_str(&format!("{key} = \"{}\"\n", text(package, key)));
                }
            }
            let names = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
            let names: Vec<&str> = names.filter_map(Value::as_str).collect();
            entry.push_str(&dependency_list(&names));
            (text(package, "name").to_owned(), text(package, "version").to_owned(), entry)
        })
        .collect();
    let mut own: Vec<&str> = DEPENDENCIES.into_iter().chain(DEV_DEPENDENCIES).chain(["tessera-sdk"]).collect();
    own.sort_unstable();
    let entry = format!("name = \"{name}\"\nversion = \"0.1.0\"\n{}", dependency_list(&own));
    entries.push((name.to_owned(), "0.1.0".to_owned(), entry));
    entries.sort();
    let mut lock = String::from("# This file is automatically @generated by Cargo.\n# It is not intended for manual editing.\nversion = 4\n");
    for (.., entry) in entries {
        lock.push_str(&format!("\n[[package]]\n{entry}"));
    }
    Ok(lock)
}

fn dependency_list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        names => {
            let lines: String = names.iter().map(|name| format!(" \"{name}\",\n")).collect();
            format!("dependencies = [\n{lines}]\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATES: [Template; 3] = [Template::Batch, Template::Service, Template::Empty];

    #[test]
    fn names_are_those_of_frameworks_and_of_crates() {
        for good in ["hello", "a", "word-count-2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "2x", "a_b", "A", "a-", "-a", "test", "serde", "tessera-sdk", &"x".repeat(64)] {
            assert_eq!(check_name(bad).unwrap_err().kind, Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn an_author_reads_at_most_40_lines() {
        for template in TEMPLATES {
            let [scheduler, ..] = template.files();
            let code = scheduler.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//"));
            assert!(code.count() <= 40, "{template:?}");
        }
    }

    #[test]
    fn a_project_is_whole_and_inherits_nothing() {
        let files = project("hello", Template::Batch, None).unwrap();
        let content = |path: &str| {
            let found = files.iter().find(|(name, _)| name == path);
            found.unwrap_or_else(|| panic!("{path}")).1.clone()
        };
        for path in ["Cargo.toml", "Cargo.lock", "vendor/tessera/sdk/rust/Cargo.toml"] {
            let table: Table = content(path).parse().unwrap();
            assert!(!content(path).contains("workspace = true"), "{path}: {table}");
        }
        for path in ["src/lib.rs", "src/tests.rs", "tests/first.toml", "README.md", ".gitignore"] {
            assert!(!content(path).contains("{name}"), "{path}");
        }
        assert!(content("vendor/tessera/wit/framework/scheduler.wit").contains("interface driver"));
        assert!(content("vendor/tessera/sdk/rust/src/jobs.rs").contains("pub struct Jobs"));
        let lock: Table = content("Cargo.lock").parse().unwrap();
        let names: Vec<&str> = lock["package"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(names.is_sorted() && names.contains(&"wit-bindgen") && names.contains(&"hello"), "{names:?}");
        assert!(!names.contains(&"wordcount"), "only what is needed: {names:?}");
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "x").unwrap();
        let args = NewArgs {
            name: "hello".into(),
            dir: Some(dir.path().to_owned()),
            template: Template::Empty,
            sdk_path: None,
        };
        let error = write(&args).unwrap_err();
        assert!(error.kind == Kind::Refused && error.to_string().contains("--dir"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
