//! What a registry says of an artifact, as far as components and their signatures need it.
//!
//! Invariants: a [`Layer`] has a digest of SHA-256 and a size that was checked against its bound. Must
//! never fetch anything.

use super::OciError;
use serde::Deserialize;
use std::collections::BTreeMap;
use tessera_types::Digest;

/// Asked for, as registries serve either.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The configuration of a Wasm artifact.
pub const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// The bytes of a component.
pub const LAYER_TYPE: &str = "application/wasm";
/// What cosign signs.
pub const SIGNED_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where cosign leaves the signature of a layer.
const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// Bytes of a manifest: the ones of Wasm artifacts have less than 2 KiB.
pub const MANIFEST_BYTES_MAX: usize = 256 << 10;

/// Signatures of one artifact that are looked at.
pub const SIGNATURES_MAX: usize = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Bytes to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What they hash to.
    pub digest: Digest,
    /// How many.
    pub size: u64,
}

/// A signature, and what it is one of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedLayer {
    /// What was signed.
    pub layer: Layer,
    /// The signature in base64.
    pub signature: String,
}

fn parse(bytes: &[u8]) -> Result<Manifest, OciError> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| {
        OciError::NotAComponent(format!("the manifest cannot be read: {error}"))
    })?;
    let found = manifest.media_type.as_deref().unwrap_or(MANIFEST_TYPE);
    if found != MANIFEST_TYPE || manifest.schema_version != 2 {
        return Err(OciError::NotAComponent(format!(
            "the manifest is of the type {found:?}; one of {MANIFEST_TYPE} is expected"
        )));
    }
    Ok(manifest)
}

fn layer(descriptor: &Descriptor) -> Result<Layer, OciError> {
    let digest = descriptor.digest.parse().map_err(|_| {
        OciError::NotAComponent("a layer is named by something else than sha256".into())
    })?;
    Ok(Layer {
        digest,
        size: descriptor.size,
    })
}

/// The one layer of a Wasm artifact.
///
/// # Errors
/// When the manifest is of something else, or the layer has more than `most` bytes.
pub fn component_layer(manifest: &[u8], most: u64) -> Result<Layer, OciError> {
    let manifest = parse(manifest)?;
    let config = manifest
        .config
        .as_ref()
        .map_or("none", |config| config.media_type.as_str());
    if config != CONFIG_TYPE {
        return Err(OciError::NotAComponent(format!(
            "its configuration is of the type {config:?}; a Wasm artifact has {CONFIG_TYPE}"
        )));
    }
    let [only] = manifest.layers.as_slice() else {
        return Err(OciError::NotAComponent(format!(
            "it has {} layers; a component is one",
            manifest.layers.len()
        )));
    };
    if only.media_type != LAYER_TYPE {
        return Err(OciError::NotAComponent(format!(
            "its layer is of the type {:?}; a component is {LAYER_TYPE}",
            only.media_type
        )));
    }
    let layer = layer(only)?;
    if layer.size > most {
        return Err(OciError::TooLarge {
            size: layer.size,
            most,
        });
    }
    Ok(layer)
}

/// The signatures of cosign's manifest; layers of other types are none.
///
/// # Errors
/// When it cannot be read.
pub fn signatures(manifest: &[u8]) -> Result<Vec<SignedLayer>, OciError> {
    let manifest = parse(manifest)?;
    let signed = manifest
        .layers
        .iter()
        .filter(|layer| layer.media_type == SIGNED_TYPE);
    signed
        .filter_map(|descriptor| {
            Some((
                descriptor,
                descriptor.annotations.get(SIGNATURE_ANNOTATION)?,
            ))
        })
        .take(SIGNATURES_MAX)
        .map(|(descriptor, signature)| {
            Ok(SignedLayer {
                layer: layer(descriptor)?,
                signature: signature.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn manifest(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
        let digest = Digest::of(b"abc").to_string();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest, "size": 2},
            "layers": [{"mediaType": LAYER_TYPE, "digest": digest, "size": 3}],
        });
        edit(&mut manifest);
        manifest.to_string().into_bytes()
    }

    #[test]
    fn a_wasm_artifact_has_one_layer() {
        let layer = Layer {
            digest: Digest::of(b"abc"),
            size: 3,
        };
        assert_eq!(component_layer(&manifest(|_| ()), 3).unwrap(), layer);
        type Edit = fn(&mut Value);
        let cases: [(&str, Edit); 8] = [
            ("manifest cannot be read", |m| *m = json!("x")),
            ("manifest is of the type", |m| {
                m["mediaType"] = json!("application/vnd.oci.image.index.v1+json")
            }),
            ("configuration is of the type", |m| {
                m["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json")
            }),
            ("configuration is of the type \"none\"", |m| {
                m["config"] = json!(null)
            }),
            ("0 layers", |m| m["layers"] = json!([])),
            ("2 layers", |m| {
                m["layers"] = json!([m["layers"][0], m["layers"][0]])
            }),
            ("layer is of the type", |m| {
                m["layers"][0]["mediaType"] = json!("application/octet-stream")
            }),
            ("something else than sha256", |m| {
                m["layers"][0]["digest"] = json!("sha512:00")
            }),
        ];
        for (text, edit) in cases {
            let error = component_layer(&manifest(edit), 3).unwrap_err();
            assert!(matches!(error, OciError::NotAComponent(_)), "{text}");
            assert!(error.to_string().contains(text), "{text}: {error}");
        }
        let large = component_layer(&manifest(|_| ()), 2);
        assert!(matches!(
            large,
            Err(OciError::TooLarge { size: 3, most: 2 })
        ));
    }
}
