//! Where the store is: a file, or a PostgreSQL.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use super::{Reader, number, path};
use crate::store::{PostgresSettings, PostgresTls, StoreSettings};

/// The store, without its password.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Where it is.
    pub settings: StoreSettings,
    /// File with the password of PostgreSQL's user.
    pub password_file: Option<PathBuf>,
}

/// Keys that go with `store.url` alone.
const OF_POSTGRES: [&str; 8] = [
    "store.passwordFile",
    "store.tls",
    "store.caFile",
    "store.certificateFile",
    "store.keyFile",
    "store.maxConnections",
    "store.acquireTimeoutMs",
    "store.statementTimeoutMs",
];

pub(super) fn read(reader: &mut Reader<'_>) -> Option<StoreConfig> {
    let file = reader.optional("store.path", path);
    let url = reader.optional("store.url", url);
    let password_file = reader.optional("store.passwordFile", path);
    let postgres = postgres(reader, url.clone());
    match (file, url) {
        (Some(file), None) if !reader.has_mistake("store.url") => {
            for key in OF_POSTGRES {
                if reader.was_given(key) {
                    reader.mistake(key, "goes with store.url only; remove it".to_owned());
                }
            }
            Some(StoreConfig { settings: StoreSettings::Embedded(file), password_file: None })
        }
        (None, Some(_)) => Some(StoreConfig { settings: StoreSettings::Postgres(postgres?), password_file }),
        (Some(_), Some(_)) => {
            reader.mistake("store", "has path and url; keep one of them".to_owned());
            None
        }
        (file, None) => {
            // Present but refused is a mistake already.
            if file.is_none() && !reader.has_mistake("store.") {
                let message =
                    "names no store; set path for the embedded one or url for PostgreSQL".to_owned();
                reader.mistake("store", message);
            }
            None
        }
    }
}

fn postgres(reader: &mut Reader<'_>, url: Option<String>) -> Option<PostgresSettings> {
    let tls = reader.optional("store.tls", |text| match text {
        "disable" => Ok(PostgresTls::Disable),
        "require" => Ok(PostgresTls::Require),
        "verify-ca" => Ok(PostgresTls::VerifyCa),
        "verify-full" => Ok(PostgresTls::VerifyFull),
        _ => Err("must be disable, require, verify-ca or verify-full".to_owned()),
    });
    let ca_certificate = reader.optional("store.caFile", path);
    let certificate = reader.optional("store.certificateFile", path);
    let key = reader.optional("store.keyFile", path);
    let client_certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            reader.mistake("store.keyFile", "is missing beside store.certificateFile; set both".to_owned());
            None
        }
        (None, Some(_)) => {
            reader.mistake("store.certificateFile", "is missing beside store.keyFile; set both".to_owned());
            None
        }
    };
    let max_connections = reader.optional("store.maxConnections", |text| number(text, 2..=1_000));
    let acquire = reader.optional("store.acquireTimeoutMs", |text| number(text, 100..=60_000));
    let statement = reader.optional("store.statementTimeoutMs", |text| number(text, 100..=600_000));
    let url = url?;
    Some(PostgresSettings {
        tls: tls.or_else(|| default_tls(&url)),
        url,
        password: None,
        ca_certificate,
        client_certificate,
        max_connections: max_connections.and_then(|number| u32::try_from(number).ok()).unwrap_or(16),
        acquire_timeout: Duration::from_millis(acquire.unwrap_or(3_000)),
        statement_timeout: Duration::from_millis(statement.unwrap_or(10_000)),
    })
}

/// Over a network nothing but a checked certificate will do, unless something else is said.
fn default_tls(url: &str) -> Option<PostgresTls> {
    let options = PgConnectOptions::from_str(url).ok()?;
    let host = options.get_host();
    let is_local = options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let is_said = url.split_once('?').is_some_and(|(_, query)| query.contains("sslmode="));
    (!is_local && !is_said).then_some(PostgresTls::VerifyFull)
}

/// The text, without the URL: it may hold a password.
fn url(text: &str) -> Result<String, String> {
    const FORM: &str = "must be postgres://user@host:port/database";
    let rest = text
        .strip_prefix("postgres://")
        .or_else(|| text.strip_prefix("postgresql://"))
        .ok_or_else(|| FORM.to_owned())?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let has_password =
        user.contains(':') || rest.split_once('?').is_some_and(|(_, q)| q.contains("password="));
    if has_password {
        return Err("holds a password; put it into a file, and name that by store.passwordFile".to_owned());
    }
    PgConnectOptions::from_str(text).map_err(|_| FORM.to_owned())?;
    Ok(text.to_owned())
}
