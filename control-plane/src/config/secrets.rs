//! The secrets that the configuration points to.

use std::fmt;
use std::path::Path;

use atm_core::base64url;
use atm_proto::signature::FeedSigner;
use zeroize::Zeroizing;

use super::{Config, ConfigError, Environment, KeySource, Mistake};
use crate::secret::RootKey;

/// Characters that an admin token has at least: 96 bits in base64url.
const SHORTEST_TOKEN: usize = 16;
/// Bytes of a secret's file at most.
const LONGEST_FILE: usize = 4_096;

/// What the files and variables hold, read once at the start.
pub struct Secrets {
    /// Everything at rest hangs on it.
    pub root_key: RootKey,
    /// Signs the feed.
    pub feed_signer: FeedSigner,
    /// The bearer token of the admin API.
    pub admin_token: Zeroizing<String>,
    /// The initial access token of dynamic client registration.
    pub registration_token: Option<Zeroizing<String>>,
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
        let root_key = taken(&mut mistakes, wrapping_key(config, environment));
        let feed_signer = taken(&mut mistakes, feed_signer(&config.feed.signing_key_file));
        let admin_token = taken(&mut mistakes, bearer_token("admin.tokenFile", &config.admin_token_file));
        let store_password = config.store.password_file.as_deref().map(store_password).transpose();
        let store_password = taken(&mut mistakes, store_password);
        let registration = config.oauth.registration.as_ref();
        let registration_token = registration
            .map(|registration| bearer_token("registration.tokenFile", &registration.token_file))
            .transpose();
        let registration_token = taken(&mut mistakes, registration_token);
        match (root_key, feed_signer, admin_token, store_password, registration_token) {
            (
                Some(root_key),
                Some(feed_signer),
                Some(admin_token),
                Some(store_password),
                Some(registration_token),
            ) => Ok(Self { root_key, feed_signer, admin_token, registration_token, store_password }),
            _ => Err(ConfigError(mistakes)),
        }
    }
}

fn taken<T>(mistakes: &mut Vec<Mistake>, outcome: Result<T, Mistake>) -> Option<T> {
    outcome.map_err(|mistake| mistakes.push(mistake)).ok()
}

fn wrapping_key(config: &Config, environment: &Environment) -> Result<RootKey, Mistake> {
    let (path, text) = match &config.wrapping_key {
        KeySource::File(file) => ("keys.wrappingKeyFile", read("keys.wrappingKeyFile", file)?),
        KeySource::Environment(name) => {
            let path = "keys.wrappingKeyEnv";
            let text = environment.get(name).ok_or_else(|| {
                mistake(path, format!("the variable {name} is not set; set it or use a file"))
            })?;
            (path, Zeroizing::new(text.clone()))
        }
    };
    RootKey::from_base64url(&text)
        .map_err(|error| mistake(path, format!("{error}; make one with a random generator")))
}

fn feed_signer(file: &Path) -> Result<FeedSigner, Mistake> {
    const PATH: &str = "feed.signingKeyFile";
    let form =
        || mistake(PATH, "must hold 32 random bytes in base64url without padding (43 characters)".to_owned());
    let text = read(PATH, file)?;
    let bytes = Zeroizing::new(base64url::decode(text.trim()).map_err(|_| form())?);
    let mut seed = Zeroizing::new([0; 32]);
    if bytes.len() != seed.len() {
        return Err(form());
    }
    seed.copy_from_slice(&bytes);
    FeedSigner::from_seed(&seed).map_err(|_| form())
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
