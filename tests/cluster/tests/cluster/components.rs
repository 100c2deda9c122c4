//! Components from a registry, through real processes: pulled, signed or not, judged, made of core
//! modules, hosted.
//!
//! Must never ask another registry than the one in this process.

use crate::hostile::modules::{HARMLESS, Module};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::guests::guest;
use tessera_cluster::rest::Answer;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A public key of ECDSA on P-256 in DER, up to its point.
const KEY_HEADER: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Longer heads of requests are none of a master.
const HEAD_BYTES_MAX: usize = 16 << 10;

fn named(bytes: &[u8]) -> String {
    let hex = digest(&SHA256, bytes);
    let hex: String = hex.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A registry with one repository, `demo`: what is there under the last part of a path.
#[derive(Clone)]
struct Registry {
    address: SocketAddr,
    content: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl Registry {
    async fn start() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let registry = Self {
            address: listener.local_addr()?,
            content: Arc::default(),
        };
        let served = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = served.clone();
                // Whoever hangs up early has its reasons.
                tokio::spawn(async move { served.answer(stream).await.ok() });
            }
        });
        Ok(registry)
    }

    async fn answer(&self, mut stream: TcpStream) -> Outcome {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head)?;
        let path = head.split(' ').nth(1).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let known = path.starts_with("/v2/demo/");
        let found = self.keep(|content| content.get(name).cloned());
        let (status, body) = match found.filter(|_| known) {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", Vec::new()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        Ok(stream.shutdown().await?)
    }

    fn keep<T>(&self, with: impl FnOnce(&mut HashMap<String, Vec<u8>>) -> T) -> T {
        with(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keep bytes under their digest, and say so as a manifest does.
    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = named(bytes);
        self.keep(|content| content.insert(digest.clone(), bytes.to_vec()));
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    fn manifest(&self, tag: &str, config: &Value, layer: &Value) -> String {
        let document = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [layer],
        });
        let bytes = document.to_string().into_bytes();
        let digest = named(&bytes);
        self.keep(|content| {
            content.insert(tag.to_owned(), bytes.clone());
            content.insert(digest.clone(), bytes)
        });
        digest
    }

    /// Push a Wasm artifact; the digest of its manifest.
    fn push(&self, tag: &str, bytes: &[u8]) -> String {
        let layer = self.blob("application/wasm", bytes);
        let config = self.blob("application/vnd.wasm.config.v0+json", b"{}");
        self.manifest(tag, &config, &layer)
    }

    /// Leave a signature of a manifest as cosign does; it covers the manifest of this digest.
    fn sign(&self, manifest: &str, covered: &str, signer: &EcdsaKeyPair) -> Outcome {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": "demo"},
                "image": {"docker-manifest-digest": covered},
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string().into_bytes();
        let signature = signer
            .sign(&SystemRandom::new(), &payload)
            .map_err(|e| e.to_string())?;
        let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
        let mut layer = self.blob(kind, &payload);
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": STANDARD.encode(signature)});
        let tag = format!("{}.sig", manifest.replace(':', "-"));
        self.manifest(&tag, &Value::Null, &layer);
        Ok(())
    }

    fn source(&self, version: &str) -> String {
        format!("oci://{}/demo{version}", self.address)
    }
}

fn key_pair() -> Outcome<EcdsaKeyPair> {
    let (kind, random) = (&ECDSA_P256_SHA256_ASN1_SIGNING, SystemRandom::new());
    let document = EcdsaKeyPair::generate_pkcs8(kind, &random).map_err(|e| e.to_string())?;
    let pair = EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random);
    Ok(pair.map_err(|e| e.to_string())?)
}

fn write_key(path: &Path, pair: &EcdsaKeyPair) -> Outcome {
    let der = [&KEY_HEADER[..], pair.public_key().as_ref()].concat();
    let text = STANDARD.encode(der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
    Ok(std::fs::write(path, pem)?)
}

async fn add(cluster: &Cluster, source: &str) -> Outcome<Answer> {
    let document = json!({"source": source, "plain_http": true});
    cluster.rest.post("/v1/components", &document).await
}

/// It is refused, and the message says why.
async fn refused(cluster: &Cluster, source: &str, why: &str) -> Outcome {
    let answer = add(cluster, source).await?;
    let told = answer.text();
    ensure(
        (400..500).contains(&answer.status) && told.contains(why),
        || format!("{source}: {} {told}", answer.status),
    )
}

/// Set a limit of the whole cluster.
async fn limit(cluster: &Cluster, name: &str, value: u64) -> Outcome {
    let setting = format!("{name}={value}");
    let output = cluster
        .tessera(&["role", "limits", "--set", &setting])
        .await?;
    ensure(output.status.success(), || format!("{output:?}"))
}

/// A framework of this component runs.
async fn runs(cluster: &Cluster, name: &str, component: &Value) -> Outcome {
    let document = json!({"name": name, "component": component, "config": {}});
    cluster.rest.post("/v1/frameworks", &document).await?.ok()?;
    until(&format!("{name} runs"), PATIENCE, async || {
        let path = format!("/v1/frameworks/{name}");
        let found = cluster.rest.document(&path).await;
        let found = found.map_err(|e| e.to_string())?;
        if found["state"] == "running" {
            Ok(())
        } else {
            Err(found.to_string())
        }
    })
    .await
}

#[tokio::test]
async fn components_come_from_a_registry_signed_and_judged() -> Outcome {
    let registry = Registry::start().await?;
    let keys = tempfile::tempdir()?;
    let (operator, other) = (key_pair()?, key_pair()?);
    let key = keys.path().join("operator.pub");
    write_key(&key, &operator)?;
    let (address, key) = (registry.address.to_string(), key.display().to_string());
    let flags = ["--component-registry", &address, "--component-key", &key];
    let cluster = Cluster::start("oci", &flags).await?;

    // Not signed, signed by somebody else, signed for another manifest.
    let echo = std::fs::read(guest("echo")?)?;
    let manifest = registry.push("v1", &echo);
    let source = registry.source(":v1");
    refused(&cluster, &source, "sign").await?;
    registry.sign(&manifest, &manifest, &other)?;
    refused(&cluster, &source, "sign").await?;
    registry.sign(&manifest, &named(b"another"), &operator)?;
    refused(&cluster, &source, "sign").await?;
    // Bytes, which nobody signs, and registries that nobody listed.
    let plain = cluster
        .rest
        .send("POST", "/v1/components", &[], echo.clone());
    let plain = plain.await?;
    ensure((400..500).contains(&plain.status), || plain.text())?;
    refused(&cluster, "oci://127.0.0.1:1/demo:v1", "127.0.0.1:1").await?;
    let listed = cluster.rest.document("/v1/components").await?;
    ensure(listed["items"] == json!([]), || listed.to_string())?;

    // Signed by the operator: pinned by its manifest, judged, and it runs.
    registry.sign(&manifest, &manifest, &operator)?;
    let added = add(&cluster, &source).await?.ok()?.json();
    ensure(
        added["digest"] == json!(named(&echo))
            && added["source"] == json!(registry.source(&format!("@{manifest}"))),
        || added.to_string(),
    )?;
    runs(&cluster, "echo", &added["digest"]).await?;
    let counted = cluster.ask("/frameworks/echo/").await?.text();
    ensure(counted.trim().parse::<u64>().is_ok(), || counted.clone())?;

    // A core module with a world becomes a component, which runs, too.
    let core = HARMLESS.core()?;
    let manifest = registry.push("module", &core);
    registry.sign(&manifest, &manifest, &operator)?;
    let output = cluster
        .tessera(&[
            "component",
            "add",
            &registry.source(":module"),
            "--plain-http",
            "-o",
            "json",
        ])
        .await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    let made: Value = serde_json::from_slice(&output.stdout)?;
    ensure(
        made["componentized_from"] == json!(named(&core)) && made["digest"] != json!(named(&core)),
        || made.to_string(),
    )?;
    runs(&cluster, "module", &made["digest"]).await?;

    // What the judge refuses, no signature helps.
    let manifest = registry.push("garbage", b"nothing of the sort");
    registry.sign(&manifest, &manifest, &operator)?;
    refused(&cluster, &registry.source(":garbage"), "something unknown").await?;
    cluster.finish().await
}

/// A scheduler that takes some hundred MiB and two seconds to compile: what the compiler keeps grows with
/// blocks times locals.
fn dear() -> Outcome<Vec<u8>> {
    const LOCALS: usize = 1_000;
    const BLOCKS: usize = 4_000;
    let mut text = format!("(func (param i32) (local {})", "i32 ".repeat(LOCALS));
    for at in 0..BLOCKS {
        let (one, other) = (1 + at * 7 % LOCALS, 1 + at * 13 % LOCALS);
        text.push_str(&format!(
            "(block (br_if 0 (local.get {one})) (local.set {other} (local.get 0)))"
        ));
    }
    text.push(')');
    let dear = Module {
        // The test ends with the process.
        extra: text.leak(),
        ..HARMLESS
    };
    dear.component()
}

/// Bytes of a component to the byte. Address space is counted by the kernel, which knows no components: the
/// least that can be set is too little for one that has ample room by default, and nothing else is short.
#[tokio::test]
async fn limits_of_uploads_are_reached_one_by_one() -> Outcome {
    let cluster = Cluster::start("uploads", &[]).await?;
    let upload = async |bytes: &[u8]| {
        let sent = cluster
            .rest
            .send("POST", "/v1/components", &[], bytes.to_vec());
        let answer = sent.await?;
        Outcome::Ok((answer.status, answer.text()))
    };
    let echo = std::fs::read(guest("echo")?)?;
    let size = echo.len() as u64;
    // What the allocator says when there is no more ends the process by signal 6; the limit of CPU time
    // would by 9 or 24.
    for (bytes, name, too_little, status, says, enough) in [
        (
            echo,
            "component-bytes",
            size - 1,
            413,
            "component-bytes",
            size,
        ),
        (
            dear()?,
            "compile-bytes",
            256 << 20,
            400,
            "signal 6)",
            4 << 30,
        ),
    ] {
        limit(&cluster, name, too_little).await?;
        let (found, told) = upload(&bytes).await?;
        ensure(
            found == status && told.contains(says) && told.contains(name),
            || format!("{name}: {found} {told}"),
        )?;
        limit(&cluster, name, enough).await?;
        let (found, told) = upload(&bytes).await?;
        ensure(found == 201, || format!("{name}: {found} {told}"))?;
        let all = cluster
            .tessera(&["role", "limits", "--unset", name])
            .await?;
        ensure(all.status.success(), || format!("{all:?}"))?;
    }
    cluster.finish().await
}
