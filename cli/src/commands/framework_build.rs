//! `tessera framework build`: the component of a project, by whichever toolchain this machine has.
//!
//! Invariants: what was built is what cargo says that it wrote, not what stands where it usually does. Must
//! never install anything.

use crate::error::{CliError, Kind, io_error};
use crate::{Context, output};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

const TARGET: &str = "wasm32-wasip2";
/// Where Debian's wasi-libc has its libraries.
const DEBIAN_LIBC: &str = "/usr/lib/wasm32-wasi";

/// Arguments of `tessera framework build`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework build\n  tessera framework create hello --component $(tessera framework build ~/src/hello)"
)]
pub struct BuildArgs {
    /// Directory of its Cargo.toml
    #[arg(default_value = ".")]
    dir: PathBuf,
}

/// What builds components here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Toolchain {
    /// The compiler that `cargo` uses has the standard library for components.
    Rustup,
    /// Debian's compiler builds the standard library from its sources; the linkers are in this directory.
    Debian { linkers: PathBuf },
}

/// Build, and say where the component is.
///
/// # Errors
/// When it cannot be built.
pub async fn run(context: &Context, args: &BuildArgs) -> Result<(), CliError> {
    let component = build(&args.dir).await?;
    if context.is_data() {
        return output::document(&json!({"component": component}));
    }
    output::line(&component.display().to_string())
}

/// Build the project in a directory; the file of its component. What cargo says goes to stderr.
///
/// # Errors
/// When there is no project or toolchain, or it does not build.
pub async fn build(dir: &Path) -> Result<PathBuf, CliError> {
    let manifest = dir.join("Cargo.toml");
    let manifest = manifest.canonicalize().map_err(|error| {
        io_error("find", &manifest, &error).hint("`tessera framework new NAME` writes a project")
    })?;
    let mut cargo = match toolchain(dir).await? {
        Toolchain::Rustup => Command::new("cargo"),
        Toolchain::Debian { linkers } => debian(&linkers),
    };
    cargo.args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"]);
    cargo.arg("--manifest-path").arg(&manifest).current_dir(dir);
    let output = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io_error("run", Path::new("cargo"), &error).hint("install Rust: https://rustup.rs"))?
        .wait_with_output()
        .await
        .map_err(|error| io_error("run", Path::new("cargo"), &error))?;
    if !output.status.success() {
        let text = format!("{} does not build: see above", dir.display());
        return Err(CliError::new(Kind::Refused, text));
    }
    artifact(&String::from_utf8_lossy(&output.stdout), &manifest).ok_or_else(|| {
        let text = format!("{} builds, but makes no component", manifest.display());
        CliError::new(Kind::Refused, text).hint("it needs `[lib]` with `crate-type = [\"cdylib\"]`")
    })
}

/// The component among what cargo says that it wrote.
fn artifact(messages: &str, manifest: &Path) -> Option<PathBuf> {
    let of_project = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|message| {
        let path = message.get("manifest_path").and_then(Value::as_str);
        path.is_some_and(|path| Path::new(path) == manifest)
    });
    let files = of_project.filter_map(|message| message.get("filenames")?.as_array().cloned());
    files.flatten().filter_map(|file| file.as_str().map(PathBuf::from)).rfind(|file| file.extension().is_some_and(|e| e == "wasm"))
}

async fn toolchain(dir: &Path) -> Result<Toolchain, CliError> {
    let sysroot = said_by("rustc", &["--print", "sysroot"], dir).await;
    let sysroot = sysroot.map(|text| PathBuf::from(text.trim()));
    let wanted = std::env::var("TESSERA_GUEST_TOOLCHAIN").unwrap_or_default();
    if let Some(sysroot) = &sysroot
        && wanted != "debian"
        && has_library(&sysroot.join("lib/rustlib").join(TARGET).join("lib"))
    {
        return Ok(Toolchain::Rustup);
    }
    let host = said_by("rustc", &["-vV"], dir).await.unwrap_or_default();
    let host = host.lines().find_map(|line| line.strip_prefix("host: "));
    let linkers = sysroot.zip(host).map(|(sysroot, host)| sysroot.join("lib/rustlib").join(host).join("bin"));
    let linkers = linkers.filter(|dir| dir.join("wasm-component-ld").is_file() && dir.join("rust-lld").is_file());
    let debian = ["/usr/bin/rustc", "/usr/bin/cargo", "/usr/lib/wasm32-wasi/libc.a"];
    match linkers {
        Some(linkers) if wanted != "rustup" && debian.iter().all(|path| Path::new(path).is_file()) => {
            Ok(Toolchain::Debian { linkers })
        }
        _ => Err(CliError::failed(format!("this machine cannot build for {TARGET}")).hint(format!(
            "`rustup target add {TARGET}`; on Debian 12: apt-get install rustc-web cargo-web rust-web-src wasi-libc"
        ))),
    }
}

fn has_library(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
}

async fn said_by(program: &str, args: &[&str], dir: &Path) -> Option<String> {
    // A directory may choose a toolchain of its own.
    let output = Command::new(program).args(args).current_dir(dir).output().await.ok()?;
    String::from_utf8(output.stdout).ok()
}

/// Debian's cargo, told to build the standard library for components from its sources: see
/// `scripts/build-guests`, which does the same.
fn debian(linkers: &Path) -> Command {
    let mut path = OsString::from(linkers);
    if let Some(before) = std::env::var_os("PATH") {
        path.push(":");
        path.push(before);
    }
    let mut cargo = Command::new("/usr/bin/cargo");
    cargo
        .env("PATH", path)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", "/usr/bin/rustc")
        .env("CARGO_TARGET_WASM32_WASIP2_LINKER", linkers.join("wasm-component-ld"))
        .env("CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS", format!("-C link-self-contained=yes -L {DEBIAN_LIBC}"))
        .arg("-Zbuild-std=std,panic_abort");
    cargo
}

#[cfg(test)]
mod tests {
    use super::artifact;
    use std::path::{Path, PathBuf};

    #[test]
    fn the_component_is_what_cargo_wrote_for_this_project() {
        let line = |manifest: &str, file: &str| {
            format!("{{\"reason\":\"compiler-artifact\",\"manifest_path\":\"{manifest}\",\"filenames\":[\"{file}\"]}}\n")
        };
        let messages = [
            line("/p/vendor/Cargo.toml", "/t/other.wasm"),
            line("/p/Cargo.toml", "/t/libhello.rlib"),
            line("/p/Cargo.toml", "/t/hello.wasm"),
            "{\"reason\":\"build-finished\"}\nnot json\n".to_owned(),
        ]
        .concat();
        let manifest = Path::new("/p/Cargo.toml");
        assert_eq!(artifact(&messages, manifest), Some(PathBuf::from("/t/hello.wasm")));
        assert_eq!(artifact(&line("/p/Cargo.toml", "/t/hello"), manifest), None);
    }
}
