//! Sessions (token families): opened by the login service that has authenticated a subject, refreshed by their client, ended by
//! either, by a revocation, by time, or by a refresh token that is used twice.
//!
//! A refresh is one `UPDATE` of the session's row with all its conditions, so it comes wholly before or wholly after whatever
//! else happens to the session: another refresh, a revocation, at this replica or another one. Of two refreshes at once one
//! rotates; the other one finds the session rotated a moment ago and gets the same successor, which is derived, not stored.

use std::sync::Arc;
use std::time::Duration;

use atm_core::id::{Id, IdKind};
use atm_core::time::UnixMillis;
use zeroize::Zeroizing;

use crate::clock::IssueClock;
use crate::events::{Event, EventKind, Events};
use crate::issuance::{AccessToken, Issuance, IssuanceError, IssuedToken, Possession, narrowing};
use crate::registry::{Client, FieldError, Registry, RegistryError};
use crate::revocation::{RevocationError, Revocations, Selector};
use crate::secret::{self, SecretHasher};
use crate::store::sessions::{self as rows, Scopes};
use crate::store::{Store, StoreError, clients, subjects, transact};

mod model;
mod refresh_token;

pub use model::{DisabledSubject, NewSession, Session, SessionDetails, SessionStatus};
use model::{check, check_subject};
use refresh_token::RefreshToken;

/// A session's tokens. No `Debug`: secrets are among them.
pub struct SessionTokens {
    /// The session.
    pub session: Session,
    /// An access token.
    pub access: IssuedToken,
    /// The refresh token that is to be used next.
    pub refresh: Zeroizing<String>,
}

/// A refresh that a client asks for (RFC 6749 §6).
#[derive(Debug, Clone, Copy)]
pub struct RefreshRequest<'a> {
    /// The refresh token.
    pub token: &'a str,
    /// Out of what was granted; none: all of it.
    pub scope: Option<&'a str>,
    /// Out of what was granted; none: all of it.
    pub audience: &'a [String],
    /// What the request has proved to hold.
    pub possession: &'a Possession,
}

/// What came of ending a session by its refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndByToken {
    /// It is no refresh token of ours.
    NotOurs,
    /// There was nothing to end any more.
    EndedBefore,
    /// The session has ended.
    Ended,
}

/// Why there is no session, or no token of it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Fields that cannot be accepted, all of them.
    #[error("{} fields cannot be accepted", .0.len())]
    Invalid(Vec<FieldError>),
    /// No such session.
    #[error("there is no session with this id")]
    NotFound,
    /// Not a token of ours, of another client, used before, ended or over: which one is nobody's business (`invalid_grant`).
    #[error("the refresh token is not valid")]
    Refused,
    /// The subject is disabled, or the client was a moment ago.
    #[error("the subject or the client is disabled")]
    Disabled,
    /// The token could not be issued; the session is as it was, or can be refreshed by the same token within the grace.
    #[error(transparent)]
    Issuance(#[from] IssuanceError),
    /// The end of the session is not known to be in the feed; call again.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
}

/// How long sessions live.
#[derive(Debug, Clone, Copy)]
pub struct SessionSettings {
    /// Without a refresh.
    pub idle: Duration,
    /// In any case.
    pub lifetime: Duration,
    /// How long after a rotation the token before is taken once more, for an answer that was lost on its way.
    pub grace: Duration,
}

/// The sessions of one realm; clones share everything.
#[derive(Debug, Clone)]
pub struct Sessions {
    store: Store,
    clock: Arc<IssueClock>,
    hasher: SecretHasher,
    registry: Registry,
    revocations: Revocations,
    issuance: Issuance,
    events: Events,
    settings: SessionSettings,
}

impl Sessions {
    /// The sessions in `store` whose tokens `issuance` issues.
    #[expect(clippy::too_many_arguments, reason = "the composition root names each once")]
    pub fn new(
        store: Store,
        clock: Arc<IssueClock>,
        hasher: SecretHasher,
        registry: Registry,
        revocations: Revocations,
        issuance: Issuance,
        events: Events,
        settings: SessionSettings,
    ) -> Self {
        Self { store, clock, hasher, registry, revocations, issuance, events, settings }
    }

    /// Opens a session for a subject that the caller has authenticated.
    pub async fn open(&self, new: NewSession) -> Result<SessionTokens, SessionError> {
        // Before the client and the subject are looked at: see `IssueClock::issue`.
        let issued_at = self.clock.issue().await?;
        let client = match self.registry.get(&new.client_id).await {
            Ok(client) => client,
            Err(RegistryError::Store(error)) => return Err(error.into()),
            Err(_) => return Err(invalid("client_id", "there is no client with this id")),
        };
        check(&new, &client).map_err(SessionError::Invalid)?;
        let configuration = &client.configuration;
        let seconds = |asked: Option<u64>, own: Option<u32>, configured: Duration| {
            let bound = own.map_or(configured.as_secs(), u64::from);
            i64::try_from(asked.map_or(bound, |asked| asked.min(bound))).unwrap_or(i64::MAX / 2_000)
        };
        let idle = seconds(new.idle_seconds, configuration.refresh_token_idle_seconds, self.settings.idle);
        let lifetime = seconds(
            new.lifetime_seconds,
            configuration.refresh_token_lifetime_seconds,
            self.settings.lifetime,
        );
        let session = Session {
            id: secret::random_id()?,
            realm: self.issuance.realm().to_owned(),
            client_id: client.client_id.clone(),
            subject: new.subject,
            details: SessionDetails {
                scopes: new.scopes.unwrap_or_else(|| configuration.scopes.clone()),
                audiences: new.audiences.unwrap_or_else(|| configuration.audiences.clone()),
                claims: new.claims,
            },
            bound_to: new.dpop_jkt.as_ref().map(|jkt| format!("jkt:{jkt}")).unwrap_or_default(),
            generation: 1,
            status: SessionStatus::Active,
            opened_at: issued_at.0,
            refreshed_at: issued_at.0,
            idle_expires_at: issued_at.0.saturating_add(idle.saturating_mul(1_000)),
            expires_at: issued_at.0.saturating_add(lifetime.saturating_mul(1_000)),
            ended_at: None,
        };
        let client_key = clients::key(self.issuance.realm(), &client.client_id);
        if !rows::insert(&self.store, &session, self.subject_id(&session.subject), &client_key).await? {
            return Err(SessionError::Disabled);
        }
        let possession = Possession { jkt: new.dpop_jkt, x5t_s256: None };
        let scopes: Vec<&str> = session.details.scopes.iter().map(String::as_str).collect();
        let scope = narrowing::joined(&scopes);
        let access =
            self.access(&client, &session, scope, &session.details.audiences, &possession, issued_at).await?;
        self.tell(EventKind::SessionOpened, &session, Some(&access.jti));
        let token = RefreshToken { session: session.id.clone(), generation: 1 };
        Ok(SessionTokens { refresh: token.text(&self.hasher), session, access })
    }

    /// Refreshes a session. `client` has been authenticated, and `issued_at` was taken from the issue clock before.
    pub async fn refresh(
        &self,
        client: &Client,
        request: RefreshRequest<'_>,
        issued_at: UnixMillis,
    ) -> Result<SessionTokens, SessionError> {
        let token = RefreshToken::read(request.token, &self.hasher).ok_or(SessionError::Refused)?;
        // What it asks for is looked at before anything is changed; who asks for nothing is spared the look.
        if request.scope.is_some() || !request.audience.is_empty() {
            let session = self.found(&token.session).await?.ok_or(SessionError::Refused)?;
            if session.client_id != client.client_id {
                return Err(SessionError::Refused);
            }
            granted(client, &session, request)?;
        }
        let now = self.clock.wall();
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2);
        let own_idle = client.configuration.refresh_token_idle_seconds;
        let idle = own_idle.map_or(self.settings.idle, |seconds| Duration::from_secs(seconds.into()));
        let proofs = [
            request.possession.jkt.as_ref().map(|jkt| format!("jkt:{jkt}")).unwrap_or_default(),
            request.possession.x5t_s256.as_ref().map(|x5t| format!("x5t#S256:{x5t}")).unwrap_or_default(),
        ];
        let refresh = rows::Refresh {
            id: &token.session,
            generation: token.generation,
            realm: self.issuance.realm(),
            client_id: &client.client_id,
            proofs: [&proofs[0], &proofs[1]],
            now,
            grace_since: UnixMillis(now.0.saturating_sub(millis(self.settings.grace))),
            idle_expires_at: UnixMillis(now.0.saturating_add(millis(idle))),
        };
        let scopes = self.scopes(&client.client_id, &token.session);
        let Some(session) = rows::refresh(&self.store, &refresh, scopes).await? else {
            self.judge_refused(client, &token, scopes).await?;
            return Err(SessionError::Refused);
        };
        let (scope, audience) = granted(client, &session, request)?;
        let access = self.access(client, &session, scope, &audience, request.possession, issued_at).await?;
        self.tell(EventKind::TokenRefreshed, &session, Some(&access.jti));
        Ok(SessionTokens { refresh: token.successor().text(&self.hasher), session, access })
    }

    /// A refresh did not go through. If that is because a token was used again that has been used before, and long enough ago
    /// for its successor to have arrived, then two hold it: the session ends, for both.
    async fn judge_refused(
        &self,
        client: &Client,
        token: &RefreshToken,
        scopes: Scopes,
    ) -> Result<(), SessionError> {
        let Some(session) = self.found(&token.session).await? else { return Ok(()) };
        let is_used = token.generation < session.generation;
        let is_its_own = session.client_id == client.client_id;
        let grace = i64::try_from(self.settings.grace.as_millis()).unwrap_or(i64::MAX);
        let in_grace = token.generation + 1 == session.generation
            && self.clock.wall().0.saturating_sub(session.refreshed_at) <= grace;
        if !is_used || !is_its_own || in_grace || session.status == SessionStatus::Ended {
            return Ok(());
        }
        if session.status == SessionStatus::Reused
            && rows::is_revoked(&self.store, &session.id, scopes).await?
        {
            return Ok(()); // told and streamed before
        }
        let now = self.clock.wall();
        transact!(self.store, |transaction| -> Result<bool, StoreError> {
            rows::end(transaction, &session.id, SessionStatus::Reused, now).await
        })?;
        self.tell(EventKind::RefreshReuse, &session, None);
        let actor = format!("client:{}", client.client_id);
        let selector = Selector::Session(session.id);
        self.revocations.revoke(&[selector], &actor, Some("refresh token used twice")).await?;
        Ok(())
    }

    /// Ends the session of a refresh token, if it is one of `client`'s (RFC 7009 §2).
    pub(crate) async fn end_by_token(
        &self,
        client: &Client,
        token: &str,
    ) -> Result<EndByToken, SessionError> {
        let Some(token) = RefreshToken::read(token, &self.hasher) else { return Ok(EndByToken::NotOurs) };
        let Some(session) = self.found(&token.session).await? else { return Ok(EndByToken::EndedBefore) };
        if session.client_id != client.client_id {
            return Err(SessionError::Refused);
        }
        let scopes = self.scopes(&client.client_id, &session.id);
        if session.status != SessionStatus::Active
            && rows::is_revoked(&self.store, &session.id, scopes).await?
        {
            return Ok(EndByToken::EndedBefore);
        }
        self.end(&session.id, &format!("client:{}", client.client_id), None).await?;
        Ok(EndByToken::Ended)
    }

    /// Ends a session and what was issued of it. Returns the revision from which on its access tokens are refused. Repeating it
    /// does no harm.
    pub async fn end(&self, id: &str, actor: &str, reason: Option<&str>) -> Result<u64, SessionError> {
        let session = self.found(id).await?.ok_or(SessionError::NotFound)?;
        let selector = Selector::Session(session.id.clone());
        let revoked = self.revocations.revoke(&[selector], actor, reason).await?;
        self.tell(EventKind::SessionEnded, &session, None);
        Ok(revoked.revision)
    }

    /// Ends all sessions of a subject and whatever else it holds. Returns the revision from which on that is refused.
    pub async fn end_all(
        &self,
        subject: &str,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<u64, SessionError> {
        check_subject(subject).map_err(|message| invalid("subject", message))?;
        let selector = Selector::Subject(subject.to_owned());
        let revoked = self.revocations.revoke(&[selector], actor, reason).await?;
        let mut event = Event::new(EventKind::SessionEnded, self.issuance.realm());
        event.subject = Some(subject);
        self.events.tell(&event);
        Ok(revoked.revision)
    }

    /// The session with this id, and whether it can still be refreshed.
    pub async fn get(&self, id: &str) -> Result<Session, SessionError> {
        self.found(id).await?.ok_or(SessionError::NotFound)
    }

    /// Sessions of a subject in the order of their ids, those after `after`, at most `limit`.
    pub async fn of_subject(
        &self,
        subject: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Session>, SessionError> {
        let id = self.subject_id(subject);
        Ok(rows::of_subject(&self.store, id, after.unwrap_or_default(), limit).await?)
    }

    /// What a refresh token stands for, if it can be used now; for introspection (RFC 7662).
    pub(crate) async fn introspect(&self, token: &str) -> Result<Option<Session>, SessionError> {
        let Some(token) = RefreshToken::read(token, &self.hasher) else { return Ok(None) };
        let Some(session) = self.found(&token.session).await? else { return Ok(None) };
        let now = self.clock.wall().0;
        let alive = session.status == SessionStatus::Active
            && session.generation == token.generation
            && now < session.expires_at.min(session.idle_expires_at);
        let scopes = self.scopes(&session.client_id, &session.id);
        if !alive || rows::is_revoked(&self.store, &session.id, scopes).await? {
            return Ok(None);
        }
        Ok(Some(session))
    }

    /// Disables a subject: it gets no tokens, and what it holds is revoked. Returns the revision from which on that is refused.
    pub async fn disable_subject(
        &self,
        subject: &str,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<u64, SessionError> {
        check_subject(subject).map_err(|message| invalid("subject", message))?;
        let disabled = DisabledSubject {
            subject: subject.to_owned(),
            reason: reason.map(ToOwned::to_owned),
            actor: actor.to_owned(),
            created_at: self.clock.wall().0,
        };
        transact!(self.store, |transaction| -> Result<(), StoreError> {
            subjects::disable(transaction, self.issuance.realm(), &disabled).await
        })?;
        // After the commit: a grant that did not see it yet took its instant before this watermark.
        self.end_all(subject, actor, reason.or(Some("subject disabled"))).await
    }

    /// Lets a subject have tokens again. Those that were revoked stay revoked.
    pub async fn enable_subject(&self, subject: &str) -> Result<(), SessionError> {
        let was_disabled = subjects::enable(&self.store, self.issuance.realm(), subject).await?;
        if was_disabled { Ok(()) } else { Err(SessionError::NotFound) }
    }

    /// Whether a subject gets no tokens. Take the instant of a token from the issue clock before.
    pub(crate) async fn is_disabled(&self, subject: &str) -> Result<bool, StoreError> {
        subjects::is_disabled(&self.store, self.issuance.realm(), subject).await
    }

    /// Disabled subjects in their order, those after `after`, at most `limit`.
    pub async fn disabled_subjects(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<DisabledSubject>, SessionError> {
        Ok(subjects::list(&self.store, self.issuance.realm(), after.unwrap_or_default(), limit).await?)
    }

    async fn found(&self, id: &str) -> Result<Option<Session>, StoreError> {
        let session = rows::get(&self.store, id).await?;
        Ok(session.filter(|session| session.realm == self.issuance.realm()))
    }

    async fn access(
        &self,
        client: &Client,
        session: &Session,
        scope: Option<String>,
        audience: &[String],
        possession: &Possession,
        issued_at: UnixMillis,
    ) -> Result<IssuedToken, IssuanceError> {
        self.issuance
            .issue(AccessToken {
                client,
                subject: &session.subject,
                audience,
                scope,
                session: Some(&session.id),
                possession,
                actor: None,
                ancestors: Vec::new(),
                latest_expiry: Some(session.expires_at.div_euclid(1_000)),
                session_claims: Some(&session.details.claims),
                assertion_claims: None,
                issued_at,
            })
            .await
    }

    fn scopes(&self, client_id: &str, session: &str) -> Scopes {
        Scopes::of(self.issuance.issuer(), self.issuance.realm(), client_id, session)
    }

    fn subject_id(&self, subject: &str) -> Id {
        Id::of(IdKind::Subject, self.issuance.issuer(), subject)
    }

    fn tell(&self, kind: EventKind, session: &Session, token_id: Option<&str>) {
        let mut event = Event::new(kind, &session.realm);
        event.client_id = Some(&session.client_id);
        event.subject = Some(&session.subject);
        event.session = Some(&session.id);
        event.token_id = token_id;
        self.events.tell(&event);
    }
}

/// What of the session's scopes and audiences a refresh gets: what it asks for, within what was granted and what the client is
/// still registered for.
fn granted(
    client: &Client,
    session: &Session,
    request: RefreshRequest<'_>,
) -> Result<(Option<String>, Vec<String>), IssuanceError> {
    let configuration = &client.configuration;
    let still_registered = |scope: &str| configuration.scopes.iter().any(|own| own == scope);
    let scopes = narrowing::scopes(still_registered, &session.details.scopes, request.scope)?;
    let audiences: Vec<String> = session
        .details
        .audiences
        .iter()
        .filter(|own| configuration.audiences.contains(own))
        .cloned()
        .collect();
    let audience = if request.audience.is_empty() && !audiences.is_empty() {
        audiences
    } else {
        narrowing::audience(&audiences, request.audience)?
    };
    Ok((narrowing::joined(&scopes), audience))
}

fn invalid(field: &str, message: &str) -> SessionError {
    SessionError::Invalid(vec![FieldError { field: field.to_owned(), message: message.to_owned() }])
}
