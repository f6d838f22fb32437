//! The webhook's certificate: made by the operator itself, kept in a Secret, renewed when two thirds of its life are over, and made
//! known to the API server. Several replicas agree by the Secret: who writes it first wins, the others take what is there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::config::WebhookConfig;
use crate::health::Health;

/// Life of a certificate.
const LIFE: Duration = Duration::from_hours(90 * 24);
/// It is replaced when so much is left.
const RENEW_BEFORE: Duration = Duration::from_hours(30 * 24);
/// How often Secret and configuration are looked at.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(2);
/// The annotation that says until when the Secret's certificate is valid, in Unix seconds.
const UNTIL: &str = "atm.dev/valid-until";

/// The certificate in use, for rustls.
#[derive(Default)]
pub struct Current(ArcSwapOption<CertifiedKey>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current(..)")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// A certificate with its authority, PEM.
struct Made {
    authority: String,
    chain: String,
    key: String,
    until: i64,
}

/// Keeps certificate, Secret and webhook configuration in step, until `stop`.
pub async fn keep(
    client: Client,
    config: WebhookConfig,
    current: Arc<Current>,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    loop {
        let pause = match look(&client, &config, &current).await {
            Ok(()) => {
                health.certified();
                LOOK_EVERY
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the webhook's certificate is not in place; trying again"
                );
                AGAIN
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

async fn look(client: &Client, config: &WebhookConfig, current: &Current) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &config.namespace);
    let found = secrets.get_opt(&config.secret).await.context("reading the webhook's Secret")?;
    let now = jiff::Timestamp::now().as_second();
    let kept = found.as_ref().and_then(read);
    let good = |made: &Made| made.until - i64::try_from(RENEW_BEFORE.as_secs()).unwrap_or_default() > now;
    let made = match kept.filter(good) {
        Some(made) => made,
        None => write(&secrets, config, found, make(config, now)?).await?,
    };
    announce(client, config, &made.authority).await?;
    // Only after the API server knows the authority: until then it believes the old one.
    current.0.store(Some(Arc::new(certified(&made)?)));
    Ok(())
}

fn make(config: &WebhookConfig, now: i64) -> anyhow::Result<Made> {
    let life = i64::try_from(LIFE.as_secs()).unwrap_or_default();
    let name = format!("{}.{}.svc", config.service, config.namespace);
    let validity = |params: &mut CertificateParams| -> anyhow::Result<()> {
        // A clock that is a little behind must not find it too young.
        params.not_before = date(now - 3_600)?;
        params.not_after = date(now + life)?;
        Ok(())
    };
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, format!("{name} authority"));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut authority)?;
    let authority_key = KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?;
    let mut leaf = CertificateParams::new(vec![name.clone(), format!("{name}.cluster.local")])?;
    leaf.distinguished_name.push(DnType::CommonName, name);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    validity(&mut leaf)?;
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&authority, &authority_key))?;
    Ok(Made {
        authority: authority_certificate.pem(),
        chain: leaf.pem(),
        key: key.serialize_pem(),
        until: now + life,
    })
}

fn date(unix: i64) -> anyhow::Result<time::OffsetDateTime> {
    time::OffsetDateTime::from_unix_timestamp(unix).context("a date")
}

fn read(secret: &Secret) -> Option<Made> {
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    let until = secret.metadata.annotations.as_ref()?.get(UNTIL)?.parse().ok()?;
    Some(Made { authority: text("ca.crt")?, chain: text("tls.crt")?, key: text("tls.key")?, until })
}

/// Writes the Secret, or takes what another replica has written in between.
async fn write(
    secrets: &Api<Secret>,
    config: &WebhookConfig,
    found: Option<Secret>,
    made: Made,
) -> anyhow::Result<Made> {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(config.secret.clone()),
            namespace: Some(config.namespace.clone()),
            annotations: Some(BTreeMap::from([(UNTIL.to_owned(), made.until.to_string())])),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                "atm-operator".to_owned(),
            )])),
            resource_version: found.as_ref().and_then(|found| found.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            ("ca.crt".to_owned(), bytes(&made.authority)),
            ("tls.crt".to_owned(), bytes(&made.chain)),
            ("tls.key".to_owned(), bytes(&made.key)),
        ])),
        ..Secret::default()
    };
    let written = match found {
        None => secrets.create(&PostParams::default(), &secret).await,
        Some(_) => secrets.replace(&config.secret, &PostParams::default(), &secret).await,
    };
    match written {
        Ok(_) => {
            tracing::info!(secret = config.secret, until = made.until, "the webhook has a new certificate");
            Ok(made)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let theirs = secrets.get(&config.secret).await.context("reading the webhook's Secret")?;
            read(&theirs).context("another replica has written the webhook's Secret, and it cannot be read")
        }
        Err(error) => Err(error).context("writing the webhook's Secret"),
    }
}

/// Puts the authority into every webhook of the configuration that lacks it. An authority that is being replaced is kept beside
/// the new one, for replicas that still show a certificate of it.
async fn announce(client: &Client, config: &WebhookConfig, authority: &str) -> anyhow::Result<()> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let found = api.get(&config.configuration).await.context("reading the MutatingWebhookConfiguration")?;
    let mut operations: Vec<Value> = Vec::new();
    for (at, webhook) in found.webhooks.iter().flatten().enumerate() {
        let known = webhook
            .client_config
            .ca_bundle
            .as_ref()
            .map(|bundle| String::from_utf8_lossy(&bundle.0).into_owned());
        let known = known.unwrap_or_default();
        if known.starts_with(authority) {
            continue;
        }
        let previous = known.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap_or_default();
        let bundle = STANDARD.encode(format!("{authority}{previous}"));
        operations.push(
            json!({ "op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": bundle }),
        );
    }
    if operations.is_empty() {
        return Ok(());
    }
    let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations))?;
    api.patch(&config.configuration, &PatchParams::default(), &Patch::<()>::Json(patch))
        .await
        .context("writing the MutatingWebhookConfiguration")?;
    tracing::info!(configuration = config.configuration, "the API server knows the webhook's authority");
    Ok(())
}

fn certified(made: &Made) -> anyhow::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(made.chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes())?;
    let provider = CryptoProvider::get_default().context("no cryptographic provider is installed")?;
    Ok(CertifiedKey::from_der(chain, key, provider)?)
}
