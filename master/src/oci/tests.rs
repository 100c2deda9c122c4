//! Pulls from a registry in this process, which can be told to misbehave.

use super::signature::tests::{Signer, payload};
use super::*;
use crate::store::ComponentStore;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

const MOST: u64 = 1_000;
const COMPONENT: &[u8] = b"the bytes of a component";

#[derive(Default)]
struct Content {
    /// By tag or digest.
    manifests: HashMap<String, Vec<u8>>,
    /// By digest.
    blobs: HashMap<String, Vec<u8>>,
    /// Where blobs are instead.
    redirect: Option<String>,
    /// The token without which nothing is served.
    token: Option<String>,
    /// Requests that were answered with bytes of a blob.
    blobs_sent: usize,
}

struct Registry {
    address: SocketAddr,
    content: Arc<Mutex<Content>>,
    _dir: tempfile::TempDir,
    store: ComponentStore,
}

type Shared = State<Arc<Mutex<Content>>>;

async fn serve(
    State(content): Shared,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut content = content.lock().unwrap();
    if let Some(token) = &content.token {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if given != Some(&format!("Bearer {token}")) {
            let host = headers[header::HOST].to_str().unwrap();
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"test\"");
            return (
                StatusCode::UNAUTHORIZED,
                [(header::WWW_AUTHENTICATE, challenge)],
            )
                .into_response();
        }
    }
    if kind == "manifests" {
        return content.manifests.get(&name).cloned().map_or(
            StatusCode::NOT_FOUND.into_response(),
            IntoResponse::into_response,
        );
    }
    if let Some(to) = &content.redirect {
        return (
            StatusCode::TEMPORARY_REDIRECT,
            [(header::LOCATION, to.clone())],
        )
            .into_response();
    }
    content.blobs_sent += 1;
    content.blobs.get(&name).cloned().map_or(
        StatusCode::NOT_FOUND.into_response(),
        IntoResponse::into_response,
    )
}

async fn elsewhere(State(content): Shared, headers: HeaderMap) -> Vec<u8> {
    assert!(headers.get(header::HOST).is_some());
    content.lock().unwrap().blobs[&Digest::of(COMPONENT).to_string()].clone()
}

async fn token(State(content): Shared) -> axum::Json<Value> {
    axum::Json(json!({"token": content.lock().unwrap().token}))
}

impl Registry {
    async fn start() -> Self {
        let content = Arc::new(Mutex::new(Content::default()));
        let router = Router::new()
            .route("/v2/demo/{kind}/{name}", get(serve))
            .route("/elsewhere", get(elsewhere))
            .route("/token", get(token))
            .with_state(content.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path()).unwrap();
        Self {
            address,
            content,
            _dir: dir,
            store,
        }
    }

    /// Put the component there under the tag `v1`; the manifest's digest.
    fn push(&self, edit: impl FnOnce(&mut Value)) -> Digest {
        let layer = self.blob(COMPONENT);
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": manifest::CONFIG_TYPE, "digest": layer["digest"], "size": 2},
            "layers": [with(layer, "mediaType", manifest::LAYER_TYPE)],
        });
        edit(&mut manifest);
        self.manifest("v1", &manifest)
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        self.content
            .lock()
            .unwrap()
            .blobs
            .insert(digest.clone(), bytes.to_vec());
        json!({"digest": digest, "size": bytes.len()})
    }

    fn manifest(&self, tag: &str, manifest: &Value) -> Digest {
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let mut content = self.content.lock().unwrap();
        content.manifests.insert(digest.to_string(), bytes.clone());
        content.manifests.insert(tag.to_owned(), bytes);
        digest
    }

    /// Sign a manifest as cosign does.
    fn sign(&self, manifest: Digest, payload: &[u8], signature: &str) {
        let mut layer = with(self.blob(payload), "mediaType", manifest::SIGNED_TYPE);
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
        let document = json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": null, "layers": [layer]});
        self.manifest(&signature::tag(manifest), &document);
    }

    fn edit(&self, edit: impl FnOnce(&mut Content)) {
        edit(&mut self.content.lock().unwrap());
    }

    async fn pull(&self, version: &str, key: Option<Key>) -> Result<Pulled, OciError> {
        let puller = Puller::new(vec![self.address.to_string()], key);
        let reference: Reference = format!("oci://{}/demo{version}", self.address)
            .parse()
            .unwrap();
        let upload = self.store.begin(MOST).await.unwrap();
        puller.pull(&reference, true, MOST, upload).await
    }
}

fn with(mut value: Value, field: &str, text: &str) -> Value {
    value[field] = json!(text);
    value
}

#[tokio::test]
async fn tags_are_resolved_and_digests_are_pinned() {
    let registry = Registry::start().await;
    let digest = registry.push(|_| ());
    let pinned = format!("oci://{}/demo@{digest}", registry.address);
    for version in [
        ":v1".to_owned(),
        format!("@{digest}"),
        format!(":other@{digest}"),
    ] {
        let pulled = registry.pull(&version, None).await.unwrap();
        assert_eq!(pulled.source.to_string(), pinned, "{version}");
        assert_eq!(pulled.staged.digest, Digest::of(COMPONENT));
        assert_eq!(std::fs::read(pulled.staged.path()).unwrap(), COMPONENT);
    }
    assert!(matches!(
        registry.pull(":v2", None).await,
        Err(OciError::NotFound(_))
    ));
}

#[tokio::test]
async fn what_is_not_as_it_was_named_is_refused() {
    let registry = Registry::start().await;
    let digest = registry.push(|_| ());
    let (layer, pinned) = (Digest::of(COMPONENT).to_string(), format!("@{digest}"));

    registry.edit(|content| {
        let forged = content.manifests["v1"].clone();
        content
            .manifests
            .insert(digest.to_string(), [forged, b" ".to_vec()].concat());
    });
    let error = registry.pull(&pinned, None).await.unwrap_err();
    assert!(
        matches!(
            error,
            OciError::WrongDigest {
                what: "the manifest",
                ..
            }
        ),
        "{error}"
    );

    let mut other = COMPONENT.to_vec();
    other[0] ^= 1;
    registry.edit(|content| _ = content.blobs.insert(layer.clone(), other));
    let error = registry.pull(":v1", None).await.unwrap_err();
    assert!(
        matches!(
            error,
            OciError::WrongDigest {
                what: "the layer",
                ..
            }
        ),
        "{error}"
    );

    // A bomb: the manifest says little, the registry sends without an end.
    for (bytes, sent) in [(vec![0; 1 << 20], 25..), (COMPONENT[1..].to_vec(), 23..)] {
        registry.edit(|content| _ = content.blobs.insert(layer.clone(), bytes));
        match registry.pull(":v1", None).await {
            Err(OciError::WrongSize { named: 24, found }) => {
                assert!(sent.contains(&found), "{found}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn only_wasm_artifacts_of_one_small_layer_are_components() {
    let registry = Registry::start().await;
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit); 4] = [
        ("2 layers", |m| {
            m["layers"] = json!([m["layers"][0], m["layers"][0]])
        }),
        ("configuration is of the type", |m| {
            m["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json")
        }),
        ("limit component-bytes: at most 1000", |m| {
            m["layers"][0]["size"] = json!(1_001)
        }),
        ("a document has more than", |m| {
            m["annotations"] = json!({"long": "x".repeat(MANIFEST_BYTES_MAX)})
        }),
    ];
    for (text, edit) in cases {
        registry.push(edit);
        let error = registry.pull(":v1", None).await.unwrap_err().to_string();
        assert!(error.contains(text), "{text}: {error}");
    }
    registry.edit(|content| assert_eq!(content.blobs_sent, 0, "nothing of them was fetched"));
}

#[tokio::test]
async fn with_a_key_only_what_is_signed_is_fetched() {
    let registry = Registry::start().await;
    let digest = registry.push(|_| ());
    let (signer, other) = (Signer::new(), Signer::new());
    let file = registry._dir.path().join("key.pem");
    std::fs::write(&file, signer.pem()).unwrap();
    let key = Key::load(&file).unwrap();
    let text = async |version: &str| {
        registry
            .pull(version, Some(key.clone()))
            .await
            .map_err(|error| error.to_string())
    };

    let missing = text(":v1").await.unwrap_err();
    assert!(missing.contains("has no signature"), "{missing}");
    let about_other = payload(Digest::of(b"another"));
    let cases = [
        (payload(digest), other.sign(&payload(digest))),
        (about_other.clone(), signer.sign(&about_other)),
        (payload(digest), "garbage".to_owned()),
    ];
    for (payload, signature) in cases {
        registry.sign(digest, &payload, &signature);
        let refused = text(":v1").await.unwrap_err();
        assert!(refused.contains("none of the 1 signatures"), "{refused}");
    }
    let layer = Digest::of(COMPONENT).to_string();
    registry.edit(|content| assert!(content.blobs.contains_key(&layer)));

    registry.sign(digest, &payload(digest), &signer.sign(&payload(digest)));
    for version in [":v1".to_owned(), format!("@{digest}")] {
        assert!(text(&version).await.is_ok());
    }
    // The tag moves on: the signature is of the old manifest.
    registry.push(|manifest| manifest["annotations"] = json!({"new": "1"}));
    assert!(text(":v1").await.unwrap_err().contains("has no signature"));
}

#[tokio::test]
async fn redirects_lead_home_or_to_the_public_internet() {
    let registry = Registry::start().await;
    registry.push(|_| ());
    registry.edit(|content| content.redirect = Some("/elsewhere".into()));
    assert!(registry.pull(":v1", None).await.is_ok());
    for (to, private) in [
        ("https://127.0.0.1:1/x".to_owned(), true),
        ("https://169.254.169.254/latest/meta-data".to_owned(), true),
        ("https://localhost/x".to_owned(), true),
        ("http://169.254.169.254/latest/meta-data".to_owned(), false),
        (
            format!("http://localhost:{}/elsewhere", registry.address.port()),
            false,
        ),
    ] {
        registry.edit(|content| content.redirect = Some(to.clone()));
        match registry.pull(":v1", None).await.unwrap_err() {
            OciError::PrivateAddress(_) if private => (),
            OciError::BadAnswer(_) if !private => (),
            other => panic!("{to}: {other}"),
        }
    }
    let circle = format!("/v2/demo/blobs/{}", Digest::of(COMPONENT));
    registry.edit(|content| content.redirect = Some(circle));
    let error = registry.pull(":v1", None).await.unwrap_err().to_string();
    assert!(error.contains("circles"), "{error}");
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_when_it_is_wanted() {
    let registry = Registry::start().await;
    registry.push(|_| ());
    registry.edit(|content| content.token = Some("open sesame".into()));
    assert!(registry.pull(":v1", None).await.is_ok());
    registry.edit(|content| content.token = Some("not\nfor a header".into()));
    assert!(matches!(
        registry.pull(":v1", None).await,
        Err(OciError::BadAnswer(_))
    ));
}

#[tokio::test]
async fn registries_that_are_not_listed_are_not_asked() {
    let registry = Registry::start().await;
    registry.push(|_| ());
    let reference: Reference = format!("oci://{}/demo:v1", registry.address)
        .parse()
        .unwrap();
    for (listed, plain) in [
        (vec![], true),
        (vec!["127.0.0.1".to_owned()], true),
        (vec!["127.0.0.1:1".to_owned()], true),
    ] {
        let upload = registry.store.begin(MOST).await.unwrap();
        let error = Puller::new(listed, None)
            .pull(&reference, plain, MOST, upload)
            .await
            .unwrap_err();
        assert!(matches!(error, OciError::NotAllowed(_)), "{error}");
    }
    let elsewhere: Reference = "oci://8.8.8.8/demo:v1".parse().unwrap();
    let upload = registry.store.begin(MOST).await.unwrap();
    let error = Puller::new(vec!["8.8.8.8".into()], None)
        .pull(&elsewhere, true, MOST, upload)
        .await
        .unwrap_err();
    assert!(matches!(error, OciError::PlainBeyondLoopback(_)), "{error}");
}
