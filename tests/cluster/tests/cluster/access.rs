//! No route works without the token, except `/health`.

use serde_json::Value;
use std::path::Path;
use tessera_cluster::cluster::Cluster;
use tessera_cluster::{Outcome, ensure};

/// What stands for each part of a path.
const PARTS: &[(&str, &str)] = &[
    ("framework", "run"),
    ("task", "run-1"),
    ("agent", "a1"),
    ("recording", "e1-1"),
    ("node", "1"),
    ("offer", "o1"),
    ("executor", "main"),
    ("child", "c"),
    ("digest", "sha256:0000000000000000000000000000000000000000000000000000000000000000"),
];

/// Every route that is served, with its method, as the API's document has them: it is made of the same table.
fn routes() -> Outcome<Vec<(String, String)>> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let document: Value = serde_json::from_slice(&std::fs::read(document)?)?;
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        let part = |part: &str| {
            let name = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
            let known = name.and_then(|name| PARTS.iter().find(|(known, _)| *known == name));
            known.map_or_else(|| name.unwrap_or(part).to_owned(), |(_, value)| (*value).to_owned())
        };
        let filled = path.split('/').map(part).collect::<Vec<_>>().join("/");
        for method in methods.as_object().into_iter().flat_map(serde_json::Map::keys) {
            routes.push((method.to_ascii_uppercase(), filled.clone()));
        }
    }
    routes.retain(|(_, path)| path != "/health");
    ensure(routes.len() > 60, || format!("the document has {} routes", routes.len()))?;
    Ok(routes)
}

#[tokio::test]
async fn no_route_works_without_the_token() -> Outcome {
    let cluster = Cluster::start("access", &[]).await?;
    for token in [None, Some("wrong"), Some("")] {
        let stranger = cluster.rest.with_token(token);
        for (method, path) in routes()? {
            let answer = stranger.send(&method, &path, &[], Vec::new()).await?;
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
