//! Components out of OCI registries: resolve, check the signature, fetch, check the digest.
//!
//! Owns: what an artifact must be like to be a component. Invariants: what is fetched hashes to what the
//! manifest says, and the manifest to what it was asked by or resolved to; with a key, no byte of a layer
//! is fetched before a signature was found good. This module must never look inside a component.

mod address;
mod manifest;
mod reference;
mod signature;
#[cfg(test)]
mod tests;
mod transport;

pub use reference::{Reference, ReferenceError, is_registry};
pub use signature::{Key, KeyError};

use crate::shelf::IntakeError;
use crate::store::{Staged, Upload, UploadError};
use axum::http::Uri;
use http_body_util::BodyExt;
use manifest::{Layer, MANIFEST_BYTES_MAX, MANIFEST_TYPE};
use reference::Version;
use signature::PAYLOAD_BYTES_MAX;
use std::time::Duration;
use tessera_types::Digest;
use tokio::sync::Semaphore;
use transport::{Session, Transport};

/// Pulls at once; each may write a whole component to disk.
const PULLS_MAX: usize = 4;

/// Time of a whole pull. Below the time after which the API gives up a connection on which nothing moves.
const PULL_TIMEOUT: Duration = Duration::from_secs(60);

/// Why nothing was pulled.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The operator did not list the registry.
    #[error("components may not be pulled from {0}")]
    NotAllowed(String),
    /// Plain HTTP was asked for, and the registry is elsewhere.
    #[error("{0} is not on this machine, and plain HTTP would let others replace what it sends")]
    PlainBeyondLoopback(String),
    /// A registry led into a network that is not public.
    #[error("the registry leads to {0}, which is not on the public Internet")]
    PrivateAddress(String),
    /// No connection, or no answer.
    #[error("{host}: {why}")]
    Unreachable {
        /// Who.
        host: String,
        /// Why.
        why: String,
    },
    /// No certificates to judge servers by.
    #[error(
        "this machine has no certificates of authorities, by which a registry could be recognised"
    )]
    NoRoots,
    /// TLS cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// An answer that makes no sense.
    #[error("the registry's answer is not usable: {0}")]
    BadAnswer(String),
    /// It is not for everybody.
    #[error("{0} wants credentials, or there is no such repository")]
    NeedsCredentials(String),
    /// It is not there.
    #[error("the registry has no {0}")]
    NotFound(String),
    /// The manifest is of something else.
    #[error("{0}")]
    NotAComponent(String),
    /// More bytes than allowed.
    #[error("the component has {size} bytes; limit component-bytes: at most {most}")]
    TooLarge {
        /// What the manifest says.
        size: u64,
        /// What is allowed.
        most: u64,
    },
    /// The bytes have another digest.
    #[error("{what} has the digest {found}, not {named}: it was damaged or replaced")]
    WrongDigest {
        /// What was fetched.
        what: &'static str,
        /// What it should have.
        named: Digest,
        /// What it has.
        found: Digest,
    },
    /// More or less came than was announced.
    #[error("the registry sent {found} bytes of a layer that has {named} by its manifest")]
    WrongSize {
        /// What the manifest says.
        named: u64,
        /// What came, as far as it was read.
        found: u64,
    },
    /// No signature, or none that is good.
    #[error("{0}")]
    NotSigned(String),
    /// It could not be kept.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// It took too long.
    #[error("the pull took more than {} s", PULL_TIMEOUT.as_secs())]
    TimedOut,
}

impl OciError {
    fn unreachable(uri: &Uri, why: String) -> Self {
        let host = uri
            .authority()
            .map_or_else(String::new, ToString::to_string);
        Self::Unreachable { host, why }
    }
}

/// A component that was pulled.
#[derive(Debug)]
pub struct Pulled {
    /// Its bytes.
    pub staged: Staged,
    /// Where they came from, by digest.
    pub source: Reference,
}

/// Pulls components.
pub struct Puller {
    transport: Transport,
    key: Option<Key>,
    permits: Semaphore,
}

impl Puller {
    /// A puller for the registries that the operator listed; with a key, for signed components only.
    #[must_use]
    pub const fn new(registries: Vec<String>, key: Option<Key>) -> Self {
        Self {
            transport: Transport::new(registries),
            key,
            permits: Semaphore::const_new(PULLS_MAX),
        }
    }

    /// Whether components have to be signed.
    #[must_use]
    pub const fn wants_signatures(&self) -> bool {
        self.key.is_some()
    }

    /// Pull a component of at most `most` bytes.
    ///
    /// # Errors
    /// When it may not be pulled, cannot be had, or is not what it should be.
    pub async fn pull(
        &self,
        reference: &Reference,
        plain_http: bool,
        most: u64,
        upload: Upload,
    ) -> Result<Pulled, OciError> {
        let pull = async {
            // The semaphore is never closed.
            let _permit = self.permits.acquire().await;
            let session =
                self.transport
                    .session(&reference.registry, &reference.repository, plain_http)?;
            self.pull_with(session, reference, most, upload).await
        };
        tokio::time::timeout(PULL_TIMEOUT, pull)
            .await
            .map_err(|_| OciError::TimedOut)?
    }

    async fn pull_with(
        &self,
        mut session: Session<'_>,
        reference: &Reference,
        most: u64,
        upload: Upload,
    ) -> Result<Pulled, OciError> {
        let path = format!("manifests/{}", reference.version);
        let bytes = session
            .document(&path, MANIFEST_TYPE, MANIFEST_BYTES_MAX)
            .await?;
        let found = Digest::of(&bytes);
        if let Version::Digest(named) = reference.version
            && named != found
        {
            return Err(OciError::WrongDigest {
                what: "the manifest",
                named,
                found,
            });
        }
        let layer = manifest::component_layer(&bytes, most)?;
        if let Some(key) = &self.key {
            check_signature(&mut session, key, found).await?;
        }
        let staged = fetch_layer(&mut session, &layer, upload).await?;
        Ok(Pulled {
            staged,
            source: reference.pinned(found),
        })
    }
}

async fn fetch_layer(
    session: &mut Session<'_>,
    layer: &Layer,
    mut upload: Upload,
) -> Result<Staged, OciError> {
    let response = session
        .get(&format!("blobs/{}", layer.digest), "*/*")
        .await?;
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| OciError::BadAnswer(format!("the layer broke off: {error}")))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        read += data.len() as u64;
        if read > layer.size {
            return Err(OciError::WrongSize {
                named: layer.size,
                found: read,
            });
        }
        upload.write(data).await?;
    }
    if read != layer.size {
        return Err(OciError::WrongSize {
            named: layer.size,
            found: read,
        });
    }
    upload
        .finish(Some(layer.digest))
        .await
        .map_err(|error| match error {
            UploadError::Bytes(IntakeError::WrongDigest { named, found }) => OciError::WrongDigest {
                what: "the layer",
                named,
                found,
            },
            other => other.into(),
        })
}

/// Look for a signature that is good among those that cosign left beside the manifest.
async fn check_signature(
    session: &mut Session<'_>,
    key: &Key,
    subject: Digest,
) -> Result<(), OciError> {
    let path = format!("manifests/{}", signature::tag(subject));
    let manifest = match session
        .document(&path, MANIFEST_TYPE, MANIFEST_BYTES_MAX)
        .await
    {
        Ok(manifest) => manifest,
        Err(OciError::NotFound(_)) => {
            return Err(OciError::NotSigned(format!(
                "manifest {subject} has no signature"
            )));
        }
        Err(error) => return Err(error),
    };
    let signatures = manifest::signatures(&manifest)?;
    for signed in &signatures {
        let Layer {
            digest: named,
            size,
        } = signed.layer;
        if size > PAYLOAD_BYTES_MAX {
            continue;
        }
        let most = usize::try_from(size).unwrap_or(usize::MAX);
        let payload = session
            .document(&format!("blobs/{named}"), "*/*", most)
            .await?;
        // Checked although the signature would tell: it says more clearly what is wrong.
        let found = Digest::of(&payload);
        if found != named {
            return Err(OciError::WrongDigest {
                what: "the signed document",
                named,
                found,
            });
        }
        if key.covers(&payload, &signed.signature, subject) {
            return Ok(());
        }
    }
    Err(OciError::NotSigned(format!(
        "none of the {} signatures of manifest {subject} is of the cluster's key",
        signatures.len()
    )))
}
