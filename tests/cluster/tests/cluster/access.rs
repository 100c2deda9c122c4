//! No route works without the token, except `/health`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tessera_cluster::cluster::Cluster;
use tessera_cluster::{Outcome, ensure};

/// Every route that is served, with the methods that it has.
const ROUTES: &[(&str, &str)] = &[
    ("GET", "/metrics"),
    ("POST", "/v1/components"),
    ("GET", "/v1/components"),
    ("GET", "/v1/components/{digest}"),
    ("GET", "/v1/components/{digest}/content"),
    ("GET", "/v1/limits"),
    ("PATCH", "/v1/limits"),
    ("POST", "/v1/frameworks"),
    ("GET", "/v1/frameworks"),
    ("GET", "/v1/frameworks/{framework}"),
    ("DELETE", "/v1/frameworks/{framework}"),
    ("GET", "/v1/frameworks/{framework}/log"),
    ("POST", "/v1/frameworks/{framework}/upgrade"),
    ("POST", "/v1/frameworks/{framework}/rollback"),
    ("POST", "/v1/frameworks/{framework}/release"),
    ("GET", "/v1/frameworks/{framework}/config"),
    ("PUT", "/v1/frameworks/{framework}/config"),
    ("GET", "/v1/frameworks/{framework}/recordings"),
    ("GET", "/v1/frameworks/{framework}/recordings/{recording}"),
    ("GET", "/v1/frameworks/{framework}/executors"),
    ("GET", "/v1/frameworks/{framework}/executors/{executor}/children/{child}/files/{*path}"),
    ("GET", "/v1/tasks"),
    ("GET", "/v1/tasks/{framework}/{task}"),
    ("POST", "/v1/tasks/{framework}/{task}/kill"),
    ("GET", "/v1/tasks/{framework}/{task}/files/{*path}"),
    ("GET", "/v1/agents"),
    ("GET", "/v1/agents/{agent}"),
    ("POST", "/v1/agents/{agent}/deactivate"),
    ("POST", "/v1/agents/{agent}/activate"),
    ("POST", "/v1/agents/{agent}/drain"),
    ("POST", "/v1/agents/{agent}/gone"),
    ("POST", "/v1/agents/{agent}/maintenance"),
    ("DELETE", "/v1/agents/{agent}/maintenance"),
    ("GET", "/v1/masters"),
    ("DELETE", "/v1/masters/{node}"),
    ("POST", "/v1/masters/{node}/promote"),
    ("POST", "/v1/masters/transfer"),
    ("GET", "/v1/snapshot"),
    ("GET", "/v1/events"),
    ("GET", "/frameworks/{framework}"),
    ("GET", "/frameworks/{framework}/"),
    ("POST", "/frameworks/{framework}/{*path}"),
];

/// The shape of a path, whatever its parameters are called.
fn shape(path: &str) -> String {
    path.split('/')
        .map(|part| if part.starts_with('{') { "{}" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

fn sources(dir: &Path, files: &mut Vec<PathBuf>) -> Outcome {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The paths of all `route("/…"` in the master's sources.
fn routes_of_the_master() -> Outcome<BTreeSet<String>> {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../master/src/api"),
        &mut files,
    )?;
    let mut paths = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(file)?;
        for part in text.split("route(").skip(1) {
            if let Some(path) = part
                .trim_start()
                .strip_prefix('"')
                .and_then(|rest| rest.split('"').next())
            {
                paths.insert(path.to_owned());
            }
        }
    }
    Ok(paths)
}

#[test]
fn the_list_of_routes_is_whole() -> Outcome {
    let listed: BTreeSet<String> = ROUTES
        .iter()
        .map(|(_, path)| shape(path))
        .chain(["/health".to_owned()])
        .collect();
    let routes = routes_of_the_master()?;
    ensure(routes.len() > 5, || {
        format!("the routes of the master were not found: {routes:?}")
    })?;
    for path in routes {
        ensure(listed.contains(&shape(&path)), || {
            format!("{path} is served, but not in the list of this test")
        })?;
    }
    Ok(())
}

#[tokio::test]
async fn no_route_works_without_the_token() -> Outcome {
    let cluster = Cluster::start("access", &[]).await?;
    for token in [None, Some("wrong"), Some("")] {
        let stranger = cluster.rest.with_token(token);
        for (method, path) in ROUTES {
            let path = path
                .replace("{framework}", "run")
                .replace("{task}", "run-1")
                .replace("{agent}", "a1")
                .replace("{recording}", "e1-1")
                .replace("{node}", "1")
                .replace("{executor}", "main")
                .replace("{child}", "c")
                .replace("{*path}", "stdout");
            let path = path.replace("{digest}", &format!("sha256:{}", "0".repeat(64)));
            let answer = stranger.send(method, &path, &[], Vec::new()).await?;
            ensure(
                answer.status == 401 && answer.error_code() == "UNAUTHENTICATED",
                || {
                    format!(
                        "{method} {path} with token {token:?}: {} {}",
                        answer.status,
                        answer.text()
                    )
                },
            )?;
        }
        // A wrong token is refused there, too, so that a typing error is noticed.
        let health = stranger.get("/health").await?;
        let expected = if token.is_none() { 200 } else { 401 };
        ensure(health.status == expected, || {
            format!("/health with token {token:?}: {}", health.status)
        })?;
    }
    // A path that does not exist tells a stranger nothing, either.
    let unknown = cluster.rest.with_token(None).get("/v1/nothing").await?;
    ensure(unknown.status == 401 || unknown.status == 404, || {
        format!("{}", unknown.status)
    })?;
    cluster.finish().await
}
