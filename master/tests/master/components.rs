//! Components: uploaded, pulled from a registry, made from core modules; shown and fetched.

use crate::harness::{Master, config};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use tessera_types::Digest;

const BYTES: &str = "a scheduler from a registry";

type Files = Arc<HashMap<String, Vec<u8>>>;

async fn serve(
    State(files): State<Files>,
    Path(name): Path<String>,
) -> Result<Vec<u8>, StatusCode> {
    files.get(&name).cloned().ok_or(StatusCode::NOT_FOUND)
}

/// A registry with one component under `demo:v1`; its address and the manifest's digest.
async fn registry() -> (String, Digest) {
    let layer = Digest::of(BYTES.as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": layer.to_string(), "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": layer.to_string(), "size": BYTES.len()}],
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::of(&manifest);
    let files = HashMap::from([
        (format!("manifests/{digest}"), manifest.clone()),
        ("manifests/v1".to_owned(), manifest),
        (format!("blobs/{layer}"), BYTES.as_bytes().to_vec()),
    ]);
    let router = Router::new()
        .route("/v2/demo/{*name}", get(serve))
        .with_state(Arc::new(files));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, digest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_is_pulled_from_a_listed_registry_and_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let (address, manifest) = registry().await;
    let mut config = config(dir.path());
    config.component_registries.push(address.clone());
    let master = Master::start(config).await;
    let pull = async |source: String, plain_http: bool| {
        let body = json!({"source": source, "plain_http": plain_http});
        master.send(Method::POST, "/v1/components", &body).await
    };
    let digest = Digest::of(BYTES.as_bytes()).to_string();
    let source = format!("oci://{address}/demo@{manifest}");
    let (status, pulled) = pull(format!("oci://{address}/demo:v1"), true).await;
    assert_eq!(
        (status, &pulled["digest"], &pulled["source"]),
        (201, &json!(digest), &json!(source)),
        "{pulled}"
    );
    let (status, again) = pull(source.clone(), true).await;
    assert_eq!((status, &again["created"]), (200, &json!(false)));

    let shown = master.get(&format!("/v1/components/{digest}")).await;
    assert_eq!(
        (&shown["source"], &shown["world"]),
        (&json!(source), &json!("scheduler")),
        "{shown}"
    );
    let content = master
        .request(Method::GET, &format!("/v1/components/{digest}/content"))
        .send()
        .await
        .unwrap();
    assert_eq!(content.headers()["content-type"], "application/wasm");
    assert_eq!(content.text().await.unwrap(), BYTES);

    let refused = [
        (format!("oci://{address}/demo:v2"), true, 404, "source"),
        (format!("oci://{address}/other:v1"), true, 404, "source"),
        (
            format!("oci://{address}/demo@{digest}"),
            true,
            404,
            "source",
        ),
        ("oci://127.0.0.1:1/demo:v1".to_owned(), true, 403, "source"),
        ("oci://ghcr.io/demo:v1".to_owned(), false, 403, "source"),
        (format!("http://{address}/demo:v1"), true, 400, "source"),
        (format!("oci://{address}/demo"), true, 400, "source"),
        // Nobody speaks TLS there.
        (format!("oci://{address}/demo:v1"), false, 503, ""),
    ];
    for (source, plain, status, field) in refused {
        let (found, error) = pull(source.clone(), plain).await;
        assert_eq!(
            (found, error["error"]["field"].as_str().unwrap_or("")),
            (status, field),
            "{source}: {error}"
        );
    }
    let named = format!("/v1/components?digest={digest}");
    let (status, error) = master
        .send(Method::POST, &named, &json!({"source": source}))
        .await;
    assert_eq!(
        (status, &error["error"]["field"]),
        (400, &json!("digest")),
        "{error}"
    );
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_key_nothing_unsigned_comes_in() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _) = registry().await;
    let key = dir.path().join("cosign.pub");
    std::fs::write(&key, KEY).unwrap();
    let mut strict = config(dir.path());
    strict.component_registries.push(address.clone());
    strict.component_key = Some(key);
    let master = Master::start(strict.clone()).await;
    let upload = async |master: &Master| {
        let upload = master
            .request(Method::POST, "/v1/components")
            .body("a scheduler");
        upload.send().await.unwrap().status().as_u16()
    };
    assert_eq!(upload(&master).await, 403);
    let body = json!({"source": format!("oci://{address}/demo:v1"), "plain_http": true});
    let (status, error) = master.send(Method::POST, "/v1/components", &body).await;
    let text = error["error"]["message"].as_str().unwrap();
    assert!(status == 403 && text.contains("no signature"), "{error}");
    assert_eq!(master.get("/v1/components").await["items"], json!([]));
    master.stop().await;

    strict.allow_unsigned_uploads = true;
    let master = Master::start(strict).await;
    assert_eq!(upload(&master).await, 201);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_judge_found_is_kept_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let verdict = json!({
        "ok": true, "world": "scheduler", "writes_state": 3, "reads_state": [1, 2], "migrates": true,
        "imports": ["wasi:clocks/monotonic-clock@0.2.3"], "functions": 12,
    });
    let bytes = format!("a scheduler\n{verdict}\n");
    let digest = master.upload(&bytes).await;
    let shown = master.get(&format!("/v1/components/{digest}")).await;
    assert_eq!(
        shown["state"],
        json!({"writes": 3, "reads": [1, 2], "migrates": true}),
        "{shown}"
    );
    assert_eq!(
        (&shown["report"]["functions"], &shown["report"]["imports"]),
        (&json!(12), &verdict["imports"])
    );
    assert_eq!(
        (&shown["source"], &shown["uploaded_by"]),
        (&Value::Null, &json!("admin"))
    );
    let listed = master.get("/v1/components").await;
    assert_eq!(listed["items"][0]["report"], Value::Null, "a list is short");

    let made = "module of a scheduler\n";
    let answer = master
        .request(Method::POST, "/v1/components")
        .body(format!("core {made}"))
        .send()
        .await
        .unwrap();
    let added: Value = answer.json().await.unwrap();
    let (digest, sent) = (
        Digest::of(made.as_bytes()),
        Digest::of(format!("core {made}").as_bytes()),
    );
    assert_eq!(
        (&added["digest"], &added["componentized_from"]),
        (&json!(digest.to_string()), &json!(sent.to_string())),
        "{added}"
    );
    let shown = master.get(&format!("/v1/components/{digest}")).await;
    assert_eq!(
        shown["report"]["componentized_from"],
        json!(sent.to_string())
    );
    let stored = master
        .request(Method::GET, &format!("/v1/components/{digest}/content"))
        .send()
        .await
        .unwrap();
    assert_eq!(stored.text().await.unwrap(), made);

    // The limits of the cluster are the judge's.
    let (status, _) = master
        .send(
            Method::PATCH,
            "/v1/limits",
            &json!({"set": {"component-functions": 1, "component-bytes": 1024}}),
        )
        .await;
    assert_eq!(status, 200);
    for (bytes, status) in [
        ("one more scheduler".to_owned(), 400),
        ("x".repeat(1_025), 413),
    ] {
        let answer = master
            .request(Method::POST, "/v1/components")
            .body(bytes)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status);
        let error: Value = answer.json().await.unwrap();
        assert!(
            error["error"]["message"]
                .as_str()
                .unwrap()
                .contains("limit component-"),
            "{error}"
        );
    }
    master.stop().await;
}

/// A public key that nothing was signed with.
const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEywlpVQWh/GvqmM6A1rfXEx/ekfwr\nSUvkGaDEe+jzV+WAdmY8yjKF5on023czYp6+9OiZWrr28hC2ktHFDr1XkA==\n-----END PUBLIC KEY-----\n";
