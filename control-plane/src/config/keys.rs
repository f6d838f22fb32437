//! The section `keys`: who keeps private keys, and when they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use super::{KeySource, Reader, number, path};
use crate::keys::provider::kms::{Kms, KmsSettings};
use crate::keys::provider::pkcs11::{Pkcs11Provider, Pkcs11Settings};
use crate::keys::provider::vault::{Vault, VaultSettings};
use crate::keys::provider::{Bounds, KeyProvider, ProviderError};
use crate::keys::{Custody, LOCAL};
use crate::secret::Wrapper;

/// Who keeps signing keys, and when they change.
#[derive(Debug, Clone)]
pub struct KeysConfig {
    /// The wrapping key before the current one, until everything is sealed by the current.
    pub previous_wrapping_key: Option<KeySource>,
    /// How long a key signs; none: until somebody rotates.
    pub rotate_every: Option<Duration>,
    /// How long a published key waits for sidecars that do not report it.
    pub fleet_wait: Duration,
    /// Who makes new keys: `local`, or one of the providers.
    pub provider: &'static str,
    /// How much is asked of a provider at a time.
    pub bounds: Bounds,
    /// A PKCS #11 token.
    pub pkcs11: Option<Pkcs11Settings>,
    /// Vault's or OpenBao's transit engine.
    pub vault: Option<VaultSettings>,
    /// AWS KMS.
    pub kms: Option<KmsSettings>,
}

const PROVIDERS: [&str; 4] = [LOCAL, "pkcs11", "vault", "awsKms"];

pub(super) fn read(reader: &mut Reader<'_>) -> KeysConfig {
    let previous_wrapping_key = match (
        reader.optional("keys.previousWrappingKeyFile", path),
        reader.optional("keys.previousWrappingKeyEnv", |name| Ok(name.to_owned())),
    ) {
        (Some(file), _) => Some(KeySource::File(file)),
        (None, variable) => variable.map(KeySource::Environment),
    };
    let days = reader.optional("keys.rotateEveryDays", |text| number(text, 0..=3_650)).unwrap_or(90);
    let fleet_wait = reader.optional("keys.fleetWaitSeconds", |text| number(text, 1..=86_400)).unwrap_or(30);
    let provider = reader.optional("keys.provider", |text| {
        let known = PROVIDERS.into_iter().find(|known| *known == text);
        known.ok_or_else(|| format!("must be one of {}", PROVIDERS.join(", ")))
    });
    let timeout = reader.optional("keys.signingTimeoutMs", |text| number(text, 50..=30_000)).unwrap_or(2_000);
    let concurrency =
        reader.optional("keys.signingConcurrency", |text| number(text, 1..=4_096)).unwrap_or(64);
    let timeout = Duration::from_millis(timeout);
    let pkcs11 = pkcs11(reader);
    let vault = vault(reader, timeout);
    let kms = kms(reader, timeout);
    let provider = provider.unwrap_or(LOCAL);
    let is_there = match provider {
        "pkcs11" => pkcs11.is_some(),
        "vault" => vault.is_some(),
        "awsKms" => kms.is_some(),
        _ => true,
    };
    if !is_there && !reader.has_mistake(&format!("keys.{provider}")) {
        reader.mistake("keys.provider", format!("is {provider}; say in keys.{provider} how to reach it"));
    }
    KeysConfig {
        previous_wrapping_key,
        rotate_every: (days > 0).then(|| Duration::from_secs(days * 24 * 60 * 60)),
        fleet_wait: Duration::from_secs(fleet_wait),
        provider,
        bounds: Bounds { concurrency: usize::try_from(concurrency).unwrap_or(64), timeout },
        pkcs11,
        vault,
        kms,
    }
}

fn pkcs11(reader: &mut Reader<'_>) -> Option<Pkcs11Settings> {
    if !reader.has_section("keys.pkcs11") {
        return None;
    }
    let module = reader.required("keys.pkcs11.module", path);
    let token = reader.required("keys.pkcs11.token", text);
    let pin_file = reader.required("keys.pkcs11.pinFile", path);
    Some(Pkcs11Settings { module: module?, token: token?, pin_file: pin_file? })
}

fn vault(reader: &mut Reader<'_>, timeout: Duration) -> Option<VaultSettings> {
    if !reader.has_section("keys.vault") {
        return None;
    }
    let address = reader.required("keys.vault.address", url);
    let mount = reader.optional("keys.vault.mount", text);
    let namespace = reader.optional("keys.vault.namespace", text);
    let token_file = reader.required("keys.vault.tokenFile", path);
    let ca_file = reader.optional("keys.vault.caFile", path);
    Some(VaultSettings {
        address: address?,
        mount: mount.unwrap_or_else(|| "transit".to_owned()),
        namespace,
        token_file: token_file?,
        ca_file,
        timeout,
    })
}

fn kms(reader: &mut Reader<'_>, timeout: Duration) -> Option<KmsSettings> {
    if !reader.has_section("keys.awsKms") {
        return None;
    }
    let region = reader.required("keys.awsKms.region", |text| {
        let fits = text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if fits { Ok(text.to_owned()) } else { Err("must be a region, as in eu-central-1".to_owned()) }
    });
    let endpoint = reader.optional("keys.awsKms.endpoint", url);
    let credentials_file: Option<PathBuf> = reader.required("keys.awsKms.credentialsFile", path);
    let region = region?;
    let endpoint = match endpoint {
        Some(endpoint) => endpoint,
        None => Url::parse(&format!("https://kms.{region}.amazonaws.com")).ok()?,
    };
    Some(KmsSettings { endpoint, region, credentials_file: credentials_file?, timeout })
}

fn text(text: &str) -> Result<String, String> {
    let fits = text.len() <= 128 && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err("must be at most 128 characters".to_owned()) }
}

fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    });
    url.ok_or_else(|| {
        "must be an http or https URL without a user, as in https://vault.example.com:8200".to_owned()
    })
}

impl KeysConfig {
    /// The providers, with what keeps keys in the store under `wrapper`. Nobody is asked yet.
    pub fn custody(&self, wrapper: Wrapper) -> Result<Custody, ProviderError> {
        let mut providers: Vec<Arc<dyn KeyProvider>> = Vec::new();
        if let Some(settings) = &self.pkcs11 {
            providers.push(Arc::new(Pkcs11Provider::new(settings.clone())?));
        }
        if let Some(settings) = &self.vault {
            providers.push(Arc::new(Vault::new(settings.clone())?));
        }
        if let Some(settings) = &self.kms {
            providers.push(Arc::new(Kms::new(settings.clone())?));
        }
        // The last one makes new keys.
        providers.sort_by_key(|provider| provider.name() == self.provider);
        let custody = providers
            .into_iter()
            .fold(Custody::local(wrapper), |custody, provider| custody.with(provider, self.bounds));
        Ok(if self.provider == LOCAL { custody.making_local_keys() } else { custody })
    }
}
