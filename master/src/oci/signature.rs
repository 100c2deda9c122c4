//! Signatures as cosign makes them with a key: ECDSA on P-256 over a document that names the manifest.
//!
//! Invariant: a manifest counts as signed when one signature fits the key **and** the document that it
//! covers names exactly this manifest. Must never fetch anything.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tessera_types::Digest;
use tokio_rustls::rustls::pki_types::SubjectPublicKeyInfoDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// Bytes of what is signed: cosign's document has about 250, and what annotations were added.
pub const PAYLOAD_BYTES_MAX: u64 = 64 << 10;

/// What a public key on P-256 begins with in DER, up to its point.
const P256_HEADER: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// What cosign writes into its documents.
const SIGNATURE_KIND: &str = "cosign container image signature";

/// Bytes of a key file: a key of P-256 has 178.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {rule}")]
pub struct KeyError {
    path: PathBuf,
    rule: String,
}

/// The operator's key.
#[derive(Clone)]
pub struct Key(UnparsedPublicKey<Vec<u8>>);

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl Key {
    /// Read a key from a PEM file.
    ///
    /// # Errors
    /// When it cannot be read, or is no public key of ECDSA on P-256.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let error = |rule: String| KeyError {
            path: path.to_owned(),
            rule,
        };
        let mut text = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| {
                std::io::Read::read_to_end(
                    &mut std::io::Read::take(file, KEY_FILE_BYTES_MAX),
                    &mut text,
                )
            })
            .map_err(|source| error(source.to_string()))?;
        Self::from_pem(&text).map_err(|rule| error(rule.to_owned()))
    }

    fn from_pem(text: &[u8]) -> Result<Self, &'static str> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text)
            .map_err(|_| "a public key in PEM is expected, `-----BEGIN PUBLIC KEY-----`")?;
        let point = der
            .strip_prefix(&P256_HEADER)
            .filter(|point| point.len() == 65 && point[0] == 4)
            .ok_or(
                "the key must be one of ECDSA on P-256, as `cosign generate-key-pair` makes it",
            )?;
        Ok(Self(UnparsedPublicKey::new(
            &ECDSA_P256_SHA256_ASN1,
            point.to_vec(),
        )))
    }

    /// Whether a signature (in base64) over a payload is of this key and the payload names the manifest.
    #[must_use]
    pub fn covers(&self, payload: &[u8], signature: &str, manifest: Digest) -> bool {
        let Ok(signature) = STANDARD.decode(signature.trim()) else {
            return false;
        };
        if self.0.verify(payload, &signature).is_err() {
            return false;
        }
        serde_json::from_slice::<Payload>(payload).is_ok_and(|payload| {
            payload.critical.kind == SIGNATURE_KIND
                && payload.critical.image.digest == manifest.to_string()
        })
    }
}

/// The tag under which cosign keeps the signatures of a manifest.
#[must_use]
pub fn tag(manifest: Digest) -> String {
    format!("sha256-{}.sig", manifest.hex())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    /// A private key, for tests.
    pub struct Signer(EcdsaKeyPair);

    impl Signer {
        pub fn new() -> Self {
            let random = SystemRandom::new();
            let document =
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                document.as_ref(),
                &random,
            );
            Self(pair.unwrap())
        }

        pub fn pem(&self) -> String {
            let der = [&P256_HEADER[..], self.0.public_key().as_ref()].concat();
            format!(
                "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
                STANDARD.encode(der)
            )
        }

        pub fn sign(&self, payload: &[u8]) -> String {
            STANDARD.encode(self.0.sign(&SystemRandom::new(), payload).unwrap())
        }
    }

    pub fn payload(manifest: Digest) -> Vec<u8> {
        let text = serde_json::json!({
            "critical": {
                "identity": {"docker-reference": "h/a"},
                "image": {"docker-manifest-digest": manifest.to_string()},
                "type": SIGNATURE_KIND,
            },
            "optional": null,
        });
        text.to_string().into_bytes()
    }

    #[test]
    fn a_signature_covers_one_manifest_under_one_key() {
        let (signer, other) = (Signer::new(), Signer::new());
        let key = Key::from_pem(signer.pem().as_bytes()).unwrap();
        let (this, that) = (Digest::of(b"this"), Digest::of(b"that"));
        let signed = payload(this);
        let good = signer.sign(&signed);
        assert!(key.covers(&signed, &good, this));
        assert!(
            !key.covers(&signed, &good, that),
            "it names another manifest"
        );
        assert!(
            !key.covers(&payload(that), &good, that),
            "the document was replaced"
        );
        assert!(
            !key.covers(&signed, &other.sign(&signed), this),
            "another's key"
        );
        for bad in ["", "!", "AAAA"] {
            assert!(!key.covers(&signed, bad, this), "{bad}");
        }
        let kind = String::from_utf8(signed)
            .unwrap()
            .replace("cosign container", "other");
        assert!(
            !key.covers(kind.as_bytes(), &signer.sign(kind.as_bytes()), this),
            "another kind of document"
        );
    }

    /// Made with OpenSSL, whose signatures are those of cosign.
    #[test]
    fn keys_and_signatures_of_others_are_understood() {
        let key = Key::from_pem(KEY.as_bytes()).unwrap();
        let manifest = Digest::of(b"manifest");
        assert!(key.covers(&payload(manifest), SIGNATURE, manifest));
    }

    #[test]
    fn other_keys_are_refused() {
        for bad in [
            "",
            "x",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ] {
            assert!(Key::from_pem(bad.as_bytes()).is_err(), "{bad}");
        }
        let error = Key::load(Path::new("/nonexistent/key.pem")).err().unwrap();
        assert!(
            error.to_string().contains("/nonexistent/key.pem"),
            "{error}"
        );
    }

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEywlpVQWh/GvqmM6A1rfXEx/ekfwr\nSUvkGaDEe+jzV+WAdmY8yjKF5on023czYp6+9OiZWrr28hC2ktHFDr1XkA==\n-----END PUBLIC KEY-----\n";
    const SIGNATURE: &str = "MEUCIQD0mqawLikpwXEB0VS9TTF7NOSNX0FfLHe74vzQoVSJNgIgG9Qv/j38h3+snK7SZSR42JG0xymBhizy/zDDexgOBEc=";
}
