//! The secrets that the configuration points to.

use std::fmt;
use std::path::Path;

use atm_core::base64url;
use atm_proto::signature::FeedSigner;
use nkeys::KeyPair;
use zeroize::Zeroizing;

use super::{Config, ConfigError, Environment, KeySource, Mistake};
use crate::admin_access::AdminAccess;
use crate::revocation::Transmitters;
use crate::secret::RootKey;

/// Characters that an admin token has at least: 96 bits in base64url.
const SHORTEST_TOKEN: usize = 16;
/// Bytes of a secret's file at most.
const LONGEST_FILE: usize = 4_096;

/// What the files and variables hold, read once at the start.
pub struct Secrets {
    /// The wrapping key: seals the root key, on which everything at rest hangs.
    pub wrapping_key: RootKey,
    /// The wrapping key before it.
    pub previous_wrapping_key: Option<RootKey>,
    /// Signs the feed.
    pub feed_signer: FeedSigner,
    /// Signs the checkpoints of the audit chain.
    pub audit_signer: FeedSigner,
    /// Who may use the admin API.
    pub admin_access: AdminAccess,
    /// Who may push security events.
    pub transmitters: Transmitters,
    /// The initial access token of dynamic client registration.
    pub registration_token: Option<Zeroizing<String>>,
    /// Signs the answers to NATS's auth callout.
    pub callout_signer: Option<KeyPair>,
    /// The password of PostgreSQL's user.
    pub store_password: Option<Zeroizing<String>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    /// Reads everything, or says all that is wrong. No message holds any part of a secret.
    pub fn read(config: &Config, environment: &Environment) -> Result<Self, ConfigError> {
        let mut mistakes = Vec::new();
        let current = taken(&mut mistakes, wrapping_key(&config.wrapping_key, "wrappingKey", environment));
        let previous = config.keys.previous_wrapping_key.as_ref();
        let previous =
            previous.map(|source| wrapping_key(source, "previousWrappingKey", environment)).transpose();
        let previous_wrapping_key = taken(&mut mistakes, previous);
        let feed_key = &config.feed.signing_key_file;
        let feed_signer = taken(&mut mistakes, signer("feed.signingKeyFile", feed_key));
        let audit_signer = match &config.audit.signing_key_file {
            Some(file) => taken(&mut mistakes, signer("audit.signingKeyFile", file)),
            // What is wrong with it has been said.
            None => signer("feed.signingKeyFile", feed_key).ok(),
        };
        let admin_access = taken(&mut mistakes, admin_access(config));
        let transmitters = config.transmitters_file.as_deref().map(Transmitters::load).transpose();
        let transmitters =
            transmitters.map_err(|problem| mistake("securityEvents.transmittersFile", problem));
        let transmitters = taken(&mut mistakes, transmitters.map(Option::unwrap_or_default));
        let store_password = config.store.password_file.as_deref().map(store_password).transpose();
        let store_password = taken(&mut mistakes, store_password);
        let registration = config.oauth.registration.as_ref();
        let registration_token = registration
            .map(|registration| bearer_token("registration.tokenFile", &registration.token_file))
            .transpose();
        let registration_token = taken(&mut mistakes, registration_token);
        let callout =
            config.nats.auth_callout.as_ref().map(|callout| account_key(&callout.seed_file)).transpose();
        let callout_signer = taken(&mut mistakes, callout);
        let read = || {
            Some(Self {
                wrapping_key: current?,
                previous_wrapping_key: previous_wrapping_key?,
                feed_signer: feed_signer?,
                audit_signer: audit_signer?,
                admin_access: admin_access?,
                transmitters: transmitters?,
                registration_token: registration_token?,
                callout_signer: callout_signer?,
                store_password: store_password?,
            })
        };
        read().ok_or(ConfigError(mistakes))
    }
}

fn taken<T>(mistakes: &mut Vec<Mistake>, outcome: Result<T, Mistake>) -> Option<T> {
    outcome.map_err(|mistake| mistakes.push(mistake)).ok()
}

fn wrapping_key(source: &KeySource, name: &str, environment: &Environment) -> Result<RootKey, Mistake> {
    let (path, text) = match source {
        KeySource::File(file) => {
            let path = format!("keys.{name}File");
            let text = read(&path, file)?;
            (path, text)
        }
        KeySource::Environment(variable) => {
            let path = format!("keys.{name}Env");
            let text = environment.get(variable).ok_or_else(|| {
                mistake(&path, format!("the variable {variable} is not set; set it or use a file"))
            })?;
            (path, Zeroizing::new(text.clone()))
        }
    };
    RootKey::from_base64url(&text)
        .map_err(|error| mistake(&path, format!("{error}; make one with a random generator")))
}

fn admin_access(config: &Config) -> Result<AdminAccess, Mistake> {
    let token = bearer_token("admin.tokenFile", &config.admin_token_file)?;
    AdminAccess::load(&token, config.admin_credentials_file.clone())
        .map_err(|problem| mistake("admin.credentialsFile", problem))
}

fn signer(path: &'static str, file: &Path) -> Result<FeedSigner, Mistake> {
    let form =
        || mistake(path, "must hold 32 random bytes in base64url without padding (43 characters)".to_owned());
    let text = read(path, file)?;
    let bytes = Zeroizing::new(base64url::decode(text.trim()).map_err(|_| form())?);
    let mut seed = Zeroizing::new([0; 32]);
    if bytes.len() != seed.len() {
        return Err(form());
    }
    seed.copy_from_slice(&bytes);
    FeedSigner::from_seed(&seed).map_err(|_| form())
}

fn account_key(file: &Path) -> Result<KeyPair, Mistake> {
    const PATH: &str = "nats.authCallout.seedFile";
    let text = read(PATH, file)?;
    let pair = KeyPair::from_seed(text.trim()).ok().filter(|pair| pair.public_key().starts_with('A'));
    let form = "must hold the seed of an account nkey (SA...); make one with nk -gen account";
    pair.ok_or_else(|| mistake(PATH, form.to_owned()))
}

fn bearer_token(path: &str, file: &Path) -> Result<Zeroizing<String>, Mistake> {
    let text = read(path, file)?;
    let token = text.trim();
    // RFC 6750 §2.1: what may follow `Bearer `.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.len() < SHORTEST_TOKEN || !token.bytes().all(allowed) {
        let message = "must hold at least 16 random letters, digits or any of -._~+/=".to_owned();
        return Err(mistake(path, message));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

fn store_password(file: &Path) -> Result<Zeroizing<String>, Mistake> {
    const PATH: &str = "store.passwordFile";
    let text = read(PATH, file)?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.contains('\0') {
        return Err(mistake(PATH, "must hold the password and nothing else".to_owned()));
    }
    Ok(Zeroizing::new(password.to_owned()))
}

fn read(path: &str, file: &Path) -> Result<Zeroizing<String>, Mistake> {
    let unreadable = |problem: String| mistake(path, format!("{} {problem}", file.display()));
    let bytes = std::fs::read(file)
        .map(Zeroizing::new)
        .map_err(|error| unreadable(format!("cannot be read: {error}; check its path and permissions")))?;
    if bytes.len() > LONGEST_FILE {
        return Err(unreadable("is too large for a secret; name the right file".to_owned()));
    }
    let text =
        std::str::from_utf8(&bytes).map_err(|_| unreadable("is not text; name the right file".to_owned()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn mistake(path: &str, message: String) -> Mistake {
    Mistake { path: path.to_owned(), message }
}
