//! How both programs prove to NATS who they are, and whom they believe to be NATS.
//!
//! Files are read again for each connection, so that a password, a token, a seed or a credentials file that was replaced counts
//! from the next connection on, without a restart.

use std::io;
use std::path::{Path, PathBuf};

use async_nats::{Auth, AuthError, ConnectOptions};
use atm_core::settings::Section;
use nkeys::KeyPair;
use zeroize::Zeroizing;

#[cfg(test)]
mod tests;

/// Bytes of a file with a secret at most.
const LONGEST: u64 = 16 * 1024;

/// Who a program is to NATS, and whom it believes to be NATS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatsAccess {
    /// What is shown when a connection is made.
    pub login: Login,
    /// PEM file of the certificates that vouch for the servers; then TLS is required. The system's when left out.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key of this client, both PEM; then TLS is required.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// What is shown to NATS when a connection is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Login {
    /// Nothing.
    #[default]
    None,
    /// A NATS credentials file: a user JWT and its nkey.
    Credentials(PathBuf),
    /// The file that holds the seed of an nkey.
    Nkey(PathBuf),
    /// A user and the file that holds the password.
    Password {
        /// The user's name.
        user: String,
        /// The password, in the file's first line.
        file: PathBuf,
    },
    /// The file that holds a bearer token, such as a projected service account token: the server's auth callout says what it
    /// is worth.
    Token(PathBuf),
}

impl NatsAccess {
    /// Of a configuration's section `nats`: `credentials`, `nkeySeedFile`, `user` and `passwordFile`, or `tokenFile`; `caFile`;
    /// `certificate` and `key`. Mistakes are noted there.
    pub fn read(nats: &Section<'_>) -> Self {
        let file = |key: &str| nats.text(key).map(PathBuf::from);
        let client_certificate = match (file("certificate"), file("key")) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => {
                nats.mistake("certificate", "and key belong together; give both or neither");
                None
            }
        };
        Self { login: login(nats), ca_file: file("caFile"), client_certificate }
    }

    /// Options for a connection, to be built on.
    ///
    /// # Errors
    /// A file with a secret cannot be used now. When it cannot be used later, that connection is tried again.
    pub fn options(&self) -> io::Result<ConnectOptions> {
        let mut options = self.login.options()?;
        if let Some(file) = &self.ca_file {
            options = options.add_root_certificates(file.clone()).require_tls(true);
        }
        if let Some((certificate, key)) = &self.client_certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
        }
        Ok(options)
    }
}

fn login(nats: &Section<'_>) -> Login {
    let file = |key: &str| nats.text(key).map(PathBuf::from);
    let password = match (nats.text("user"), file("passwordFile")) {
        (Some(user), Some(file)) => Some(("user", Login::Password { user, file })),
        (Some(_), None) => {
            nats.mistake("passwordFile", "is missing; name the file with the password of nats.user");
            None
        }
        (None, Some(_)) => {
            nats.mistake("user", "is missing; name the user that nats.passwordFile belongs to");
            None
        }
        (None, None) => None,
    };
    let ways = [
        file("credentials").map(|file| ("credentials", Login::Credentials(file))),
        file("nkeySeedFile").map(|file| ("nkeySeedFile", Login::Nkey(file))),
        password,
        file("tokenFile").map(|file| ("tokenFile", Login::Token(file))),
    ];
    let mut ways = ways.into_iter().flatten();
    let Some((first, login)) = ways.next() else { return Login::None };
    for (other, _) in ways {
        nats.mistake(other, format!("is given beside nats.{first}; keep one of them"));
    }
    login
}

impl Login {
    fn options(&self) -> io::Result<ConnectOptions> {
        if *self == Self::None {
            return Ok(ConnectOptions::new());
        }
        self.show(&[])?;
        let login = self.clone();
        Ok(ConnectOptions::with_auth_callback(move |nonce| {
            std::future::ready(login.show(&nonce).map_err(AuthError::new))
        }))
    }

    /// What goes into the protocol's CONNECT, read anew. `nonce` is what the server has asked to be signed.
    fn show(&self, nonce: &[u8]) -> io::Result<Auth> {
        let mut auth = Auth::new();
        match self {
            Self::None => {}
            Self::Credentials(file) => {
                let text = read(file)?;
                let part = |name: &str| {
                    after(&text, name)
                        .ok_or_else(|| problem(file, &format!("holds no {name}; make it with nsc")))
                };
                auth.jwt = Some(part("NATS USER JWT")?.to_owned());
                auth.signature = Some(pair(file, part("USER NKEY SEED")?)?.sign(nonce).map_err(unsigned)?);
            }
            Self::Nkey(file) => {
                let pair = pair(file, first_line(file, &read(file)?)?)?;
                auth.nkey = Some(pair.public_key());
                auth.signature = Some(pair.sign(nonce).map_err(unsigned)?);
            }
            Self::Password { user, file } => {
                auth.username = Some(user.clone());
                auth.password = Some(first_line(file, &read(file)?)?.to_owned());
            }
            Self::Token(file) => auth.token = Some(first_line(file, &read(file)?)?.to_owned()),
        }
        Ok(auth)
    }
}

/// A file's text: small, and read once a connection.
fn read(file: &Path) -> io::Result<Zeroizing<String>> {
    let named = |error: io::Error| naming(file, &error);
    if std::fs::metadata(file).map_err(named)?.len() > LONGEST {
        return Err(problem(file, "is too large for what it should hold"));
    }
    std::fs::read_to_string(file).map(Zeroizing::new).map_err(named)
}

fn first_line<'a>(file: &Path, text: &'a str) -> io::Result<&'a str> {
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() { Err(problem(file, "is empty")) } else { Ok(line) }
}

/// The line after `-----BEGIN <name>-----`.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains("BEGIN") && line.contains(name))?;
    lines.next().filter(|line| !line.is_empty())
}

fn pair(file: &Path, seed: &str) -> io::Result<KeyPair> {
    KeyPair::from_seed(seed).map_err(|error| problem(file, &format!("holds no nkey seed: {error}")))
}

fn unsigned(error: nkeys::error::Error) -> io::Error {
    io::Error::other(error)
}

fn problem(file: &Path, what: &str) -> io::Error {
    naming(file, &io::Error::new(io::ErrorKind::InvalidData, what))
}

fn naming(file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}
