//! The token endpoint (RFC 6749 §3.2).

use atm_core::time::UnixMillis;
use atm_core::token::AuthenticToken;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::caller::Caller;
use super::client_auth::{Authenticated, authenticated, is_attempted};
use super::dpop;
use super::error::{Code, OAuthError};
use super::parameters::Parameters;
use crate::events::{Event, EventKind};
use crate::exchange::{self, Exchange};
use crate::http::{Services, Shared, presented};
use crate::issuance::{AccessToken, ClientCredentials, IssuedToken, Possession, narrowing};
use crate::registry::{AccessTokenFormat, Client, GrantType};
use crate::sessions::RefreshRequest;

/// The header that carries a nonce (RFC 9449 §8.1).
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// RFC 6749 §5.1, RFC 8693 §2.2.1.
#[derive(Serialize)]
struct TokenResponse {
    access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_token_type: Option<&'static str>,
    token_type: &'static str,
    expires_in: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// What a grant came to.
struct Outcome {
    issued: IssuedToken,
    refresh_token: Option<String>,
    issued_token_type: Option<&'static str>,
}

impl Outcome {
    fn of(issued: IssuedToken) -> Self {
        Self { issued, refresh_token: None, issued_token_type: None }
    }
}

pub(super) async fn token(
    State(services): State<Shared>,
    caller: Caller,
    parameters: Parameters,
) -> Response {
    let remote = caller.remote;
    let uses_dpop = caller.headers.contains_key("dpop");
    let mut response = match granted(&services, &caller, &parameters).await {
        Ok(outcome) => {
            services.metrics.token_issued();
            let Outcome { issued, refresh_token, issued_token_type } = outcome;
            Json(TokenResponse {
                access_token: issued.access_token,
                issued_token_type,
                token_type: issued.token_type,
                expires_in: issued.expires_in,
                refresh_token,
                scope: issued.scope,
            })
            .into_response()
        }
        Err(error) => {
            let mut event = Event::new(EventKind::GrantRefused, services.realm());
            event.grant = parameters.get("grant_type").and_then(GrantType::parse).map(GrantType::label);
            event.client_id = parameters.get("client_id");
            event.refusal = Some(error.code());
            event.remote = remote;
            services.events.tell(&event);
            error.into_response()
        }
    };
    // RFC 9449 §8.2: whoever uses DPoP gets the nonce that the next proof may have, so that nobody is turned away twice.
    if uses_dpop
        && let Some(key) = &services.dpop_nonces
        && let Ok(nonce) = HeaderValue::try_from(key.issue(services.clock.wall()))
    {
        response.headers_mut().insert(DPOP_NONCE, nonce);
    }
    response
}

async fn granted(
    services: &Services,
    caller: &Caller,
    parameters: &Parameters,
) -> Result<Outcome, OAuthError> {
    // Before the client is read: see `IssueClock::issue`.
    let issued_at = services.clock.issue().await?;
    let grant = parameters.required("grant_type");
    // RFC 7523 §3.1: an assertion says which client it is for, and need not be accompanied.
    if let Ok(name) = &grant
        && GrantType::parse(name) == Some(GrantType::JwtBearer)
        && !is_attempted(&caller.headers, parameters)
    {
        return jwt_bearer(services, caller, parameters, None, issued_at).await;
    }
    let Authenticated { client, .. } = &authenticated(services, caller, parameters).await?;
    let Some(grant) = GrantType::parse(grant?) else {
        return Err(OAuthError::new(Code::UnsupportedGrantType, "the grant type is not offered"));
    };
    if !client.configuration.grant_types.contains(&grant) {
        let description = "the client is not registered for this grant type";
        return Err(OAuthError::new(Code::UnauthorizedClient, description));
    }
    match grant {
        GrantType::ClientCredentials => {
            client_credentials(services, caller, parameters, client, issued_at).await
        }
        GrantType::RefreshToken => refresh(services, caller, parameters, client, issued_at).await,
        GrantType::TokenExchange => exchange_token(services, caller, parameters, client, issued_at).await,
        GrantType::JwtBearer => jwt_bearer(services, caller, parameters, Some(client), issued_at).await,
    }
}

async fn client_credentials(
    services: &Services,
    caller: &Caller,
    parameters: &Parameters,
    client: &Client,
    issued_at: UnixMillis,
) -> Result<Outcome, OAuthError> {
    let request = ClientCredentials {
        scope: parameters.get("scope").map(ToOwned::to_owned),
        audience: targets(parameters)?,
        possession: possession(services, caller, client).await?,
    };
    let issued = services.issuance.client_credentials(client, &request, issued_at).await?;
    let mut event = Event::new(EventKind::TokenIssued, services.realm());
    event.grant = Some(GrantType::ClientCredentials.label());
    event.client_id = Some(&client.client_id);
    event.token_id = Some(&issued.jti);
    event.remote = caller.remote;
    services.events.tell(&event);
    Ok(Outcome::of(issued))
}

async fn refresh(
    services: &Services,
    caller: &Caller,
    parameters: &Parameters,
    client: &Client,
    issued_at: UnixMillis,
) -> Result<Outcome, OAuthError> {
    let token = parameters.required("refresh_token")?;
    let possession = possession(services, caller, client).await?;
    let audience = targets(parameters)?;
    let request = RefreshRequest {
        token,
        scope: parameters.get("scope"),
        audience: &audience,
        possession: &possession,
    };
    let tokens = services.sessions.refresh(client, request, issued_at).await?;
    Ok(Outcome {
        issued: tokens.access,
        refresh_token: Some(tokens.refresh.to_string()),
        issued_token_type: None,
    })
}

async fn exchange_token(
    services: &Services,
    caller: &Caller,
    parameters: &Parameters,
    client: &Client,
    issued_at: UnixMillis,
) -> Result<Outcome, OAuthError> {
    let is_jwt = client.configuration.access_token_format == AccessTokenFormat::Jwt;
    let issued_token_type = exchange::issued_token_type(parameters.get("requested_token_type"), is_jwt)?;
    let subject = presented_token(services, parameters, "subject_token", "subject_token_type").await?;
    let subject = subject.ok_or_else(|| OAuthError::request("parameter subject_token is missing"))?;
    let actor = presented_token(services, parameters, "actor_token", "actor_token_type").await?;
    let possession = possession(services, caller, client).await?;
    let audience = targets(parameters)?;
    let exchanged = exchange::exchange(Exchange {
        client,
        subject: &subject,
        actor: actor.as_ref(),
        scope: parameters.get("scope"),
        audience: &audience,
        possession: &possession,
    })?;
    if services.sessions.is_disabled(&exchanged.subject).await? {
        return Err(OAuthError::new(Code::InvalidGrant, "the subject gets no tokens"));
    }
    let issued = services
        .issuance
        .issue(AccessToken {
            client,
            subject: &exchanged.subject,
            audience: &exchanged.audience,
            scope: exchanged.scope,
            session: exchanged.session.as_deref(),
            possession: &exchanged.possession,
            actor: exchanged.actor,
            ancestors: exchanged.ancestors,
            latest_expiry: Some(exchanged.latest_expiry),
            session_claims: None,
            assertion_claims: None,
            issued_at,
        })
        .await?;
    let mut event = Event::new(EventKind::TokenExchanged, services.realm());
    event.grant = Some(GrantType::TokenExchange.label());
    event.client_id = Some(&client.client_id);
    event.subject = Some(&exchanged.subject);
    event.session = exchanged.session.as_deref();
    event.token_id = Some(&issued.jti);
    event.parent_id = subject.claims.jti.as_deref();
    event.remote = caller.remote;
    services.events.tell(&event);
    Ok(Outcome { issued, refresh_token: None, issued_token_type: Some(issued_token_type) })
}

/// The token of an exchange in parameter `name`; its type must be there exactly where the token is (RFC 8693 §2.1).
async fn presented_token(
    services: &Services,
    parameters: &Parameters,
    name: &str,
    type_name: &str,
) -> Result<Option<AuthenticToken>, OAuthError> {
    let (token, kind) = match (parameters.get(name), parameters.get(type_name)) {
        (None, None) => return Ok(None),
        (Some(token), Some(kind)) => (token, kind),
        _ => return Err(OAuthError::request(format!("{name} and {type_name} belong together"))),
    };
    if ![exchange::ACCESS_TOKEN, exchange::JWT].contains(&kind) {
        return Err(OAuthError::request(format!("{type_name} must be of an access token or a JWT")));
    }
    let found = presented::in_force(services, token).await?;
    // RFC 8693 §2.2.2: a token that is not valid makes the request so.
    found
        .map(Some)
        .ok_or_else(|| OAuthError::request(format!("{name} is not valid: not ours, over or revoked")))
}

/// `authenticated`: the client that the request authenticates as, which must then be the one that the assertion is for.
async fn jwt_bearer(
    services: &Services,
    caller: &Caller,
    parameters: &Parameters,
    authenticated: Option<&Client>,
    issued_at: UnixMillis,
) -> Result<Outcome, OAuthError> {
    let assertion = parameters.required("assertion")?;
    let named = authenticated.map(|client| client.client_id.as_str()).or_else(|| parameters.get("client_id"));
    let granted = services.assertions.judge(assertion, named).await?;
    let client = &granted.client;
    // One that was authenticated has its permit already.
    let _permit = match authenticated {
        Some(_) => None,
        None => Some(services.limits.admit(&client.client_id, &client.configuration.limits)?),
    };
    let possession = possession(services, caller, client).await?;
    let configuration = &client.configuration;
    let scopes = narrowing::scopes(|_| true, &configuration.scopes, parameters.get("scope"))?;
    let audience = narrowing::audience(&configuration.audiences, &targets(parameters)?)?;
    let subject = services.issuance.subject_of(client, Some(&granted.claims))?;
    if services.sessions.is_disabled(&subject).await? {
        return Err(OAuthError::new(Code::InvalidGrant, "the subject gets no tokens"));
    }
    let issued = services
        .issuance
        .issue(AccessToken {
            client,
            subject: &subject,
            audience: &audience,
            scope: narrowing::joined(&scopes),
            session: None,
            possession: &possession,
            actor: None,
            ancestors: Vec::new(),
            latest_expiry: Some(granted.expires_at),
            session_claims: None,
            assertion_claims: Some(&granted.claims),
            issued_at,
        })
        .await?;
    let mut event = Event::new(EventKind::TokenIssued, services.realm());
    event.grant = Some(GrantType::JwtBearer.label());
    event.client_id = Some(&client.client_id);
    event.subject = Some(&subject);
    event.token_id = Some(&issued.jti);
    event.remote = caller.remote;
    services.events.tell(&event);
    Ok(Outcome::of(issued))
}

/// What the request proves to hold, as far as tokens are to be bound to it.
async fn possession(services: &Services, caller: &Caller, client: &Client) -> Result<Possession, OAuthError> {
    let configuration = &client.configuration;
    let jkt = dpop::proven_key(services, caller, &services.token_path()).await?;
    if jkt.is_none() && configuration.dpop_bound_access_tokens {
        let description = "the client is registered for DPoP-bound tokens; send a DPoP header";
        return Err(OAuthError::new(Code::InvalidDpopProof, description));
    }
    let x5t_s256 = caller
        .certificate
        .as_ref()
        .filter(|_| configuration.tls_client_certificate_bound_access_tokens)
        .map(|certificate| certificate.thumbprint().to_owned());
    if x5t_s256.is_none() && configuration.tls_client_certificate_bound_access_tokens {
        let description = "the client is registered for certificate-bound tokens; present a certificate";
        return Err(OAuthError::request(description));
    }
    Ok(Possession { jkt, x5t_s256 })
}

/// What `audience` and `resource` name, each once.
fn targets(parameters: &Parameters) -> Result<Vec<String>, OAuthError> {
    let mut targets: Vec<String> = Vec::new();
    for resource in parameters.all("resource") {
        // RFC 8707 §2: an absolute URI without a fragment.
        let absolute = resource.split_once(':').is_some_and(|(scheme, rest)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !rest.is_empty()
        });
        if !absolute || resource.contains('#') {
            let description = "resource must be an absolute URI without a fragment";
            return Err(OAuthError::new(Code::InvalidTarget, description));
        }
    }
    for target in parameters.all("audience").chain(parameters.all("resource")) {
        if !targets.iter().any(|known| known == target) {
            targets.push(target.to_owned());
        }
    }
    Ok(targets)
}
