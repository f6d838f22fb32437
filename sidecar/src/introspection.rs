//! Asks the control plane what an opaque credential stands for, over NATS. One question a credential at a time, bounded in time
//! and number; what comes back is believed only if a pinned feed key signed it for exactly this question.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atm_core::decision::{CredentialDigest, Known};
use atm_core::reason::Reason;
use atm_core::time::UnixMillis;
use atm_core::token::AuthenticToken;
use atm_proto::introspection::{IntrospectionReply, IntrospectionRequest};
use atm_proto::signature::Domain;
use atm_telemetry::TraceParent;
use tokio::sync::watch;

use crate::feed::FeedTrust;
use crate::memory::{Introspected, Memory};
use crate::state::StateReader;
use crate::store::Kept;
pub use keeping::Keeper;

pub mod keeping;

/// Header of a reply that holds no answer; its value says why.
const ERROR_HEADER: &str = "Atm-Error";

/// How questions are asked.
#[derive(Debug, Clone)]
pub struct IntrospectionSettings {
    /// Where questions go.
    pub subject: String,
    /// The realms that share the feed.
    pub realm_group: String,
    /// Who asks.
    pub sidecar_id: String,
    /// Whom an answer is believed from.
    pub trust: FeedTrust,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Questions under way at most.
    pub concurrency: usize,
}

/// What came of questions, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The credential is active.
    Active,
    /// It is not.
    Inactive,
    /// No answer in time.
    Timeout,
    /// Nobody answers, or the connection is away.
    Unavailable,
    /// The answer was not believed or not understood.
    Refused,
    /// Not asked: too many questions are under way, here or at the control plane.
    Overload,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Active, Self::Inactive, Self::Timeout, Self::Unavailable, Self::Refused, Self::Overload];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Overload => "overload",
        }
    }

    fn reason(self) -> Reason {
        match self {
            Self::Timeout => Reason::IntrospectionTimeout,
            Self::Overload => Reason::IntrospectionOverload,
            _ => Reason::IntrospectionUnavailable,
        }
    }
}

type Answer = watch::Receiver<Option<Known>>;

/// Asks, and keeps what it hears. Clones share everything.
#[derive(Debug, Clone)]
pub struct Introspector(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: async_nats::Client,
    settings: IntrospectionSettings,
    memory: Arc<Memory>,
    reader: StateReader,
    keeper: Option<Keeper>,
    /// Questions under way, so that one credential is asked about once however many requests carry it.
    under_way: Mutex<HashMap<CredentialDigest, Answer>>,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    /// Where questions run on, also when the request that began one has gone.
    runtime: tokio::runtime::Handle,
}

impl Introspector {
    /// Asks over `client`, from the runtime that this is called in. Without a keeper a restart asks anew.
    pub fn new(
        client: async_nats::Client,
        settings: IntrospectionSettings,
        memory: Arc<Memory>,
        reader: StateReader,
        keeper: Option<Keeper>,
    ) -> Self {
        Self(Arc::new(Shared {
            client,
            settings,
            memory,
            reader,
            keeper,
            under_way: Mutex::default(),
            outcomes: Default::default(),
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    /// What the credential stands for. Always an answer, within the time-out: what could not be learnt is a reason.
    pub async fn ask(&self, digest: CredentialDigest, traceparent: Option<TraceParent>) -> Known {
        let mut answer = match self.0.join(digest) {
            Joining::Question(answer) => answer,
            Joining::Full => {
                self.0.count(Outcome::Overload);
                return Known::Failed(Outcome::Overload.reason());
            }
            Joining::New(sender, answer) => {
                let (shared, traceparent) =
                    (Arc::clone(&self.0), traceparent.map(|parent| parent.to_string()));
                self.0.runtime.spawn(async move {
                    let known = shared.question(digest, traceparent.unwrap_or_default()).await;
                    shared.under_way().remove(&digest);
                    sender.send_replace(Some(known));
                });
                answer
            }
        };
        let answered = answer.wait_for(Option::is_some).await.ok().and_then(|known| known.clone());
        // The question's task ended without an answer: the runtime is shutting down.
        answered.unwrap_or(Known::Failed(Reason::IntrospectionUnavailable))
    }

    /// Answers that are kept for the next start.
    pub fn kept(&self) -> u64 {
        self.0.keeper.as_ref().map_or(0, Keeper::kept)
    }

    /// Answers that were not kept for the next start, because the disk did not keep up.
    pub fn unkept(&self) -> u64 {
        self.0.keeper.as_ref().map_or(0, Keeper::dropped)
    }

    /// Questions under way.
    pub fn under_way(&self) -> usize {
        self.0.under_way().len()
    }

    /// Questions that came to this.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.0.outcomes[outcome as usize].load(Ordering::Relaxed)
    }
}

enum Joining {
    /// Somebody asks already.
    Question(Answer),
    /// This request asks.
    New(watch::Sender<Option<Known>>, Answer),
    Full,
}

impl Shared {
    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<CredentialDigest, Answer>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, digest: CredentialDigest) -> Joining {
        let mut under_way = self.under_way();
        let is_full = under_way.len() >= self.settings.concurrency;
        match under_way.entry(digest) {
            Entry::Occupied(question) => Joining::Question(question.get().clone()),
            Entry::Vacant(_) if is_full => Joining::Full,
            Entry::Vacant(vacant) => {
                let (sender, answer) = watch::channel(None);
                vacant.insert(answer.clone());
                Joining::New(sender, answer)
            }
        }
    }

    fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    async fn question(&self, digest: CredentialDigest, traceparent: String) -> Known {
        let (outcome, known) = match self.exchange(digest, traceparent).await {
            Ok(reply) => self.believe(digest, reply),
            Err(outcome) => (outcome, Known::Failed(outcome.reason())),
        };
        self.count(outcome);
        known
    }

    async fn exchange(
        &self,
        digest: CredentialDigest,
        traceparent: String,
    ) -> Result<IntrospectionReply, Outcome> {
        let mut nonce = [0; 16];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Outcome::Unavailable)?;
        let request = IntrospectionRequest {
            token_digest: digest,
            nonce,
            sidecar_id: self.settings.sidecar_id.clone(),
            traceparent,
        };
        let asked = self.client.request(self.settings.subject.clone(), request.encode().into());
        let message = match tokio::time::timeout(self.settings.timeout, asked).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::TimedOut => {
                return Err(Outcome::Timeout);
            }
            Ok(Err(_)) => return Err(Outcome::Unavailable),
            Err(_) => return Err(Outcome::Timeout),
        };
        if message.headers.as_ref().is_some_and(|headers| headers.get(ERROR_HEADER).is_some()) {
            return Err(Outcome::Overload);
        }
        let reply = self.settings.trust.verify(Domain::IntrospectionReply, &message.payload);
        let reply = reply.map_err(|error| error.to_string());
        let reply =
            reply.and_then(|payload| IntrospectionReply::decode(&payload).map_err(|error| error.to_string()));
        match reply {
            Ok(reply)
                if reply.nonce == nonce
                    && reply.token_digest == digest
                    && reply.realm_group == self.settings.realm_group =>
            {
                Ok(reply)
            }
            Ok(_) => Err(self.refused("answers another question")),
            Err(problem) => Err(self.refused(&problem)),
        }
    }

    #[expect(clippy::unused_self, reason = "logs for this introspector")]
    fn refused(&self, problem: &str) -> Outcome {
        tracing::warn!(problem, "refused an answer about a credential");
        Outcome::Refused
    }

    /// Types what was answered, and keeps it for as long as it may be kept.
    fn believe(&self, digest: CredentialDigest, reply: IntrospectionReply) -> (Outcome, Known) {
        let now = crate::feed::now();
        let text = reply.claims.as_ref().and_then(|claims| serde_json::to_string(claims).ok());
        let text = text.unwrap_or_default();
        let state = self.reader.load();
        let token = reply
            .claims
            .map(|claims| AuthenticToken::introspected(claims, &state.view.issuers, reply.time))
            .transpose();
        let Ok(token) = token else {
            return (
                self.refused("names an issuer or claims that are not accepted"),
                Known::Failed(Reason::IntrospectionUnavailable),
            );
        };
        let token = token.map(Arc::new);
        let until = UnixMillis(now.0.saturating_add(i64::from(reply.cache_seconds) * 1_000));
        let entry = Introspected { token: token.clone(), received: now, until, bytes: text.len() };
        // A flood of credentials that are not active must not become a flood of writes: such an answer is kept only where it
        // takes the place of another one.
        let worth_keeping = token.is_some() || self.memory.introspected.holds_active(&digest);
        self.memory.introspected.insert(digest, entry);
        if let Some(keeper) = self.keeper.as_ref().filter(|_| worth_keeping) {
            let epoch = state.position.epoch;
            keeper.keep(Kept { digest, epoch, received: now, until, learnt_at: reply.time, claims: text });
        }
        match token {
            Some(token) => (Outcome::Active, Known::Active(token, now)),
            None => (Outcome::Inactive, Known::Inactive),
        }
    }
}
