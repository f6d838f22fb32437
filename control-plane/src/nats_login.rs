//! Lets workloads in to NATS by the token that their platform gave them, so that no secret is shared with sidecars.
//!
//! A sidecar shows its projected service-account token as NATS's auth token; the server asks here (auth callout) and is answered
//! with a user JWT that holds for exactly the subjects of that one sidecar, and ends soon. Tokens are verified by the keys of a trusted
//! issuer, as all other tokens are: nothing here holds a credential of the cluster, as asking its `TokenReview` would need.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message};
use atm_core::jws::UnverifiedToken;
use atm_core::key::NO_TOKEN_TYPE;
use atm_proto::subject::{SNAPSHOT_STREAM, STREAM, Subjects};
use futures::StreamExt;
use nkeys::KeyPair;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::assertions::at;
use crate::audit::{Action, Actor, Audit, Event};
use crate::authentication::assertion::{check_audience, check_times, signed_claims};
use crate::clock::IssueClock;
use crate::feed::FeedHandle;
use crate::limits::{DefaultLimits, Limits};
use crate::metrics::Metrics;
use crate::registry::ClientLimits;
use crate::store::{Store, trusted_issuers};

mod jwt;
#[cfg(test)]
mod tests;

use jwt::{Grant, Request};

/// Where a NATS server asks.
const SUBJECT: &str = "$SYS.REQ.USER.AUTH";
/// One process answers a question.
const QUEUE: &str = "atm-control-plane";
/// Bytes of a question at most.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Questions answered at once; the server asks again for a client that connects again.
const CONCURRENCY: usize = 64;
/// Seconds that a token may live on at most: a day.
const MAX_TOKEN_SECONDS: i64 = 86_400;
/// What one address may try.
const LIMITS: DefaultLimits = DefaultLimits { requests_per_second: 20, burst: 200, concurrency: 64 };
/// What clients call themselves before their id.
const NAME_PREFIX: &str = "atm-sidecar ";

/// Who is let in.
#[derive(Debug, Clone)]
pub struct LoginSettings {
    /// The NATS account that they are in.
    pub account: String,
    /// The trusted issuer of their tokens.
    pub issuer: String,
    /// What their tokens must be for, and nothing else.
    pub audience: String,
    /// Whose tokens are taken.
    pub service_accounts: Vec<ServiceAccounts>,
    /// How long a login holds at most.
    pub lifetime: Duration,
}

/// Service accounts by `namespace/name`; `*` in the place of either is any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccounts {
    namespace: String,
    name: String,
}

impl FromStr for ServiceAccounts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_part = |part: &str| {
            part == "*"
                || (!part.is_empty()
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b)))
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_part(namespace) && is_part(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} must be namespace/name, with * for any, as in shop/* or shop/orders")),
        }
    }
}

impl ServiceAccounts {
    fn has(&self, namespace: &str, name: &str) -> bool {
        let is = |pattern: &str, value: &str| pattern == "*" || pattern == value;
        is(&self.namespace, namespace) && is(&self.name, name)
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $label:literal, $text:literal;)*) => {
        /// Why somebody is not let in.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[$doc])* $variant,)*
        }

        /// The labels of all outcomes.
        pub const OUTCOMES: &[&str] = &["admitted", $($label,)*];

        impl Refusal {
            /// The label of metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }

        impl fmt::Display for Refusal {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }
    };
}

refusals! {
    /// No token, or none that is a JWS.
    NoToken = "no_token", "no service-account token is shown";
    /// Of another issuer.
    Issuer = "issuer", "the token is of another issuer than nats.authCallout.issuer";
    /// Signed by none of the issuer's keys.
    Signature = "signature", "the token is signed by no key of its issuer";
    /// For somebody else, or for others too.
    Audience = "audience", "the token is not for nats.authCallout.audience alone";
    /// Expired, or of the future.
    Time = "time", "the token has expired, or is not valid yet";
    /// Of no pod.
    Pod = "pod", "the token is bound to no pod of its namespace";
    /// Whose nobody said that they may.
    Rule = "rule", "the service account is in no entry of nats.authCallout.serviceAccounts";
    /// The client's name is that of another sidecar.
    Name = "name", "the sidecar's id is not NAMESPACE_POD of its token";
    /// Too many tries from there.
    TooOften = "too_often", "there are too many logins from this address";
    /// Could not be told.
    Unavailable = "unavailable", "the keys of the issuer cannot be had: register nats.authCallout.issuer";
}

/// The responder; clones share everything.
#[derive(Clone)]
pub struct NatsLogins(Arc<Shared>);

struct Shared {
    settings: LoginSettings,
    signer: KeyPair,
    store: Store,
    clock: Arc<IssueClock>,
    audit: Audit,
    metrics: Arc<Metrics>,
    limits: Limits,
}

impl fmt::Debug for NatsLogins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsLogins").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// A pod, by its token.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Workload {
    /// Its id in the fleet: `_` is in no name of Kubernetes, so that no two pods have one.
    id: String,
    /// The token's `sub`.
    subject: String,
    /// When the token ends, in seconds since the Unix epoch.
    expires_at: i64,
}

impl NatsLogins {
    /// Lets in by `settings`; `signer` is the account key that the server's `auth_callout` names as its issuer.
    pub fn new(
        settings: LoginSettings,
        signer: KeyPair,
        store: Store,
        clock: Arc<IssueClock>,
        audit: Audit,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limits = Limits::new(LIMITS);
        Self(Arc::new(Shared { settings, signer, store, clock, audit, metrics, limits }))
    }

    /// Answers the servers' questions for as long as it is polled.
    pub async fn answer(self, feed: FeedHandle) {
        let (client, slots) = (feed.client(), Arc::new(Semaphore::new(CONCURRENCY)));
        let subjects = feed.subjects().clone();
        loop {
            match client.queue_subscribe(SUBJECT, QUEUE.to_owned()).await {
                Ok(mut questions) => {
                    while let Some(question) = questions.next().await {
                        // Who finds no slot is not answered: the server refuses the client, which comes again.
                        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
                        let (logins, client, subjects) = (self.clone(), client.clone(), subjects.clone());
                        tokio::spawn(async move {
                            logins.reply(&client, &subjects, question).await;
                            drop(slot);
                        });
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot subscribe to NATS's auth callout; trying again"),
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn reply(&self, client: &Client, subjects: &Subjects, question: Message) {
        let Some(to) = question.reply else { return };
        let request =
            (question.payload.len() <= MAX_REQUEST_BYTES).then(|| Request::read(&question.payload)).flatten();
        let Some(request) = request else {
            tracing::warn!("a question on {SUBJECT} is none of a NATS server");
            return;
        };
        let outcome = self.judge(&request, subjects).await;
        self.tell(&request, &outcome);
        let granted = outcome.map(|workload| self.grant(&workload, subjects));
        match request.answer(&self.0.signer, granted, self.0.clock.wall().seconds()) {
            // Who asked has a time-out.
            Ok(answer) => drop(client.publish(to, answer.into()).await),
            Err(error) => tracing::error!(%error, "a login to NATS cannot be signed"),
        }
    }

    async fn judge(&self, request: &Request, subjects: &Subjects) -> Result<Workload, Refusal> {
        let Shared { settings, limits, .. } = &*self.0;
        let _permit =
            limits.admit(&request.address, &ClientLimits::default()).map_err(|_| Refusal::TooOften)?;
        let token = request.token.as_deref().ok_or(Refusal::NoToken)?;
        let issuer = UnverifiedToken::parse(token).map_err(|_| Refusal::NoToken)?;
        if issuer.issuer() != Ok(&settings.issuer) {
            return Err(Refusal::Issuer);
        }
        let keys = trusted_issuers::published_keys(&self.0.store, &settings.issuer).await;
        let keys = keys.ok().flatten().ok_or(Refusal::Unavailable)?;
        let claims = signed_claims(token, &settings.issuer, &keys, &["JWT", NO_TOKEN_TYPE])
            .ok_or(Refusal::Signature)?;
        check_audience(&claims, &settings.audience).map_err(|_| Refusal::Audience)?;
        let expires_at = check_times(&claims, self.0.clock.wall(), MAX_TOKEN_SECONDS);
        let expires_at = expires_at.map_err(|_| Refusal::Time)?;
        let workload = workload(&claims, &settings.service_accounts, expires_at)?;
        subjects.fleet(&workload.id).map_err(|_| Refusal::Pod)?;
        match request.name.strip_prefix(NAME_PREFIX) {
            Some(id) if id != workload.id => Err(Refusal::Name),
            _ => Ok(workload),
        }
    }

    fn tell(&self, request: &Request, outcome: &Result<Workload, Refusal>) {
        let (client, address) = (&request.name, &request.address);
        let event =
            Event::of(Action::NatsLogin).issuer(&self.0.settings.issuer).detail("address", address.as_str());
        match outcome {
            Ok(Workload { id, subject, .. }) => {
                tracing::info!(sidecar = id, subject, address, "let in to NATS");
                self.0.metrics.nats_login("admitted");
                self.0.audit.record(event.by(Actor::sidecar(id)).subject(subject));
            }
            Err(refusal) => {
                tracing::warn!(client, address, reason = %refusal, "not let in to NATS");
                self.0.metrics.nats_login(refusal.as_str());
                self.0.audit.record(event.detail("client", client.as_str()).refused(refusal.to_string()));
            }
        }
    }

    /// What a sidecar needs, under its own name, and nothing more: docs/security.md.
    fn grant(&self, workload: &Workload, subjects: &Subjects) -> Grant {
        let lifetime = i64::try_from(self.0.settings.lifetime.as_secs()).unwrap_or(MAX_TOKEN_SECONDS);
        let id = &workload.id;
        // The id was checked to be part of a subject.
        let fleet = subjects.fleet(id).unwrap_or_default();
        let mut publish =
            vec![fleet, subjects.resync(), subjects.digests(), subjects.introspect(), subjects.audit()];
        for stream in [STREAM, SNAPSHOT_STREAM] {
            publish.push(format!("$JS.API.DIRECT.GET.{stream}"));
            publish.push(format!("$JS.API.DIRECT.GET.{stream}.>"));
        }
        let subscribe =
            vec![subjects.live(), subjects.heartbeat(), subjects.command(), format!("_INBOX.{id}.>")];
        Grant {
            account: self.0.settings.account.clone(),
            name: id.clone(),
            expires_at: workload.expires_at.min(self.0.clock.wall().seconds() + lifetime),
            publish,
            subscribe,
        }
    }
}

/// The pod of a verified token of Kubernetes, if it may come in.
fn workload(
    claims: &Map<String, Value>,
    allowed: &[ServiceAccounts],
    expires_at: i64,
) -> Result<Workload, Refusal> {
    let text = |pointer: &str| at(claims, pointer).and_then(Value::as_str);
    let subject = text("/sub").ok_or(Refusal::Pod)?;
    let account = subject.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let (namespace, name) = account.ok_or(Refusal::Pod)?;
    if text("/kubernetes.io/namespace") != Some(namespace) {
        return Err(Refusal::Pod);
    }
    let pod = text("/kubernetes.io/pod/name").ok_or(Refusal::Pod)?;
    if !allowed.iter().any(|accounts| accounts.has(namespace, name)) {
        return Err(Refusal::Rule);
    }
    Ok(Workload { id: format!("{namespace}_{pod}"), subject: subject.to_owned(), expires_at })
}
