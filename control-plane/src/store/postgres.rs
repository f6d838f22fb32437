//! PostgreSQL, and what speaks its protocol: CockroachDB and YugabyteDB.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{Executor, PgConnection, PgPool};
use zeroize::Zeroizing;

use super::query::{Query, Row};

/// A connection that has been idle for so long is asked whether it lives before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// Connections go after this time, so that a fleet of replicas follows a failover or a new password.
const LIFETIME: Duration = Duration::from_mins(30);

/// How to reach a PostgreSQL.
#[derive(Clone)]
pub struct PostgresSettings {
    /// `postgres://user@host:port/database`, without a password.
    pub url: String,
    /// The password of the user in the URL.
    pub password: Option<Zeroizing<String>>,
    /// How the connection is protected; none: as the URL says, or `prefer`.
    pub tls: Option<PostgresTls>,
    /// Certificates (PEM) that the server's one is checked against; none: the system's.
    pub ca_certificate: Option<PathBuf>,
    /// Our certificate and its key (PEM), for a server that asks for one.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Connections at most.
    pub max_connections: u32,
    /// How long a call waits for a connection.
    pub acquire_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
}

/// How far the connection to PostgreSQL is protected (libpq's `sslmode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresTls {
    /// Not at all.
    Disable,
    /// Against listeners.
    Require,
    /// Against whoever has no certificate of the CA.
    VerifyCa,
    /// Against whoever has no certificate of the CA for this host.
    VerifyFull,
}

impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("url", &self.url)
            .field("tls", &self.tls)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

/// The pool, and how long an operation may take.
#[derive(Debug)]
pub(super) struct Postgres {
    pub(super) pool: PgPool,
    pub(super) limit: Duration,
}

impl Postgres {
    pub(super) async fn connect(settings: &PostgresSettings) -> Result<Self, sqlx::Error> {
        let limits = limits(settings.statement_timeout);
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(settings.acquire_timeout)
            .max_lifetime(LIFETIME)
            .test_before_acquire(false)
            .before_acquire(|connection, state| {
                Box::pin(async move {
                    if state.idle_for > TRUSTED_IDLE {
                        sqlx::Connection::ping(connection).await?;
                    }
                    Ok(true)
                })
            })
            .after_connect(move |connection, _| {
                let limits = sqlx::AssertSqlSafe(limits.clone());
                Box::pin(async move { connection.execute(limits).await.map(drop) })
            })
            .connect_with(options(settings)?)
            .await?;
        // A server that answers nothing is found out a little after one that answers too late.
        Ok(Self { pool, limit: settings.statement_timeout + Duration::from_millis(500) })
    }

    /// A connection for one statement or one transaction.
    pub(super) async fn lease(&self) -> Result<Lease, sqlx::Error> {
        Ok(Lease { connection: Some(self.pool.acquire().await?), limit: self.limit })
    }

    pub(super) async fn execute(&self, query: Query<'_>) -> Result<u64, sqlx::Error> {
        let mut lease = self.lease().await?;
        let outcome = lease.execute(query).await;
        lease.end_after(&outcome);
        outcome
    }

    pub(super) async fn fetch_all(&self, query: Query<'_>) -> Result<Vec<Row>, sqlx::Error> {
        let mut lease = self.lease().await?;
        let outcome = lease.fetch_all(query).await;
        lease.end_after(&outcome);
        outcome
    }
}

/// A connection out of the pool. One that is dropped in the middle of something is closed and not given back: what it was
/// asked may never be answered, and the server ends its transaction.
pub(super) struct Lease {
    /// None once it was given back.
    connection: Option<PoolConnection<sqlx::Postgres>>,
    limit: Duration,
}

impl Lease {
    pub(super) async fn execute(&mut self, query: Query<'_>) -> Result<u64, sqlx::Error> {
        let (connection, limit) = self.parts()?;
        Ok(bounded(limit, query.for_postgres().execute(connection)).await?.rows_affected())
    }

    pub(super) async fn fetch_all(&mut self, query: Query<'_>) -> Result<Vec<Row>, sqlx::Error> {
        let (connection, limit) = self.parts()?;
        Ok(Row::postgres(bounded(limit, query.for_postgres().fetch_all(connection)).await?))
    }

    /// `BEGIN`, `COMMIT` and the like.
    pub(super) async fn command(&mut self, text: &'static str) -> Result<(), sqlx::Error> {
        let (connection, limit) = self.parts()?;
        bounded(limit, connection.execute(text)).await.map(drop)
    }

    /// Gives the connection back, if `outcome` says that the server has answered.
    pub(super) fn end_after<T>(mut self, outcome: &Result<T, sqlx::Error>) {
        if matches!(outcome, Ok(_) | Err(sqlx::Error::Database(_))) {
            drop(self.connection.take());
        }
    }

    fn parts(&mut self) -> Result<(&mut PgConnection, Duration), sqlx::Error> {
        // A lease ends by value, so the connection is there.
        let connection = self.connection.as_deref_mut().ok_or(sqlx::Error::PoolClosed)?;
        Ok((connection, self.limit))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

/// A host that has vanished answers nothing, not even with an error.
async fn bounded<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(limit, operation)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

/// What the server itself ends: a statement or a lock that takes too long, a transaction that was left behind.
fn limits(statement: Duration) -> String {
    let millis = statement.as_millis();
    format!(
        "SET statement_timeout = {millis}; SET idle_in_transaction_session_timeout = {}",
        millis.saturating_mul(2)
    )
}

fn options(settings: &PostgresSettings) -> Result<PgConnectOptions, sqlx::Error> {
    let mut options = PgConnectOptions::from_str(&settings.url)?.application_name("atm-control-plane");
    if let Some(password) = &settings.password {
        options = options.password(password);
    }
    if let Some(tls) = settings.tls {
        options = options.ssl_mode(match tls {
            PostgresTls::Disable => PgSslMode::Disable,
            PostgresTls::Require => PgSslMode::Require,
            PostgresTls::VerifyCa => PgSslMode::VerifyCa,
            PostgresTls::VerifyFull => PgSslMode::VerifyFull,
        });
    }
    if let Some(certificate) = &settings.ca_certificate {
        options = options.ssl_root_cert(certificate);
    }
    if let Some((certificate, key)) = &settings.client_certificate {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    Ok(options)
}

impl PostgresSettings {
    /// Host, port and database.
    pub(super) fn place(&self) -> String {
        PgConnectOptions::from_str(&self.url).map_or_else(
            |_| "on PostgreSQL".to_owned(),
            |options| {
                let database = options.get_database().unwrap_or(options.get_username());
                format!("{}:{}/{database}", options.get_host(), options.get_port())
            },
        )
    }
}
