use atm_core::key::{Issuer, Issuers};
use atm_core::time::UnixMillis;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::registry::{ClientConfiguration, ClientStatus, ExchangeRules};

const ISSUER: &str = "https://id.example.com";

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|entry| (*entry).to_owned()).collect()
}

fn client(scopes: &[&str], audiences: &[&str]) -> Client {
    Client {
        client_id: "gateway".into(),
        configuration: ClientConfiguration {
            scopes: owned(scopes),
            audiences: owned(audiences),
            exchange: ExchangeRules { impersonation: true, delegation: true },
            ..ClientConfiguration::default()
        },
        status: ClientStatus::Active,
        previous_secret_expires_at: None,
        created_at: 0,
        updated_at: 0,
    }
}

/// A token in force, with changes; null removes a claim.
fn token(changes: &Value) -> AuthenticToken {
    let mut claims = json!({
        "iss": ISSUER, "sub": "alice", "aud": ["orders", "bills"], "client_id": "app", "jti": "subject-1",
        "iat": 1_000, "exp": 2_000, "scope": "read write", "sid": "session-1",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    let mut issuers = Issuers::default();
    issuers.set(Issuer::new(ISSUER, Some("default".into()), Vec::new()));
    AuthenticToken::introspected(claims.as_object().unwrap().clone(), &issuers, UnixMillis(0)).unwrap()
}

fn actor(changes: &Value) -> AuthenticToken {
    let mut all = json!({
        "sub": "robot", "client_id": "gateway", "jti": "actor-1", "exp": 1_900, "aud": "gateway", "sid": null,
    });
    all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    token(&all)
}

struct Asked<'a> {
    client: Client,
    subject: AuthenticToken,
    actor: Option<AuthenticToken>,
    scope: Option<&'a str>,
    audience: &'a [&'a str],
    possession: Possession,
}

impl Asked<'_> {
    fn new() -> Self {
        Self {
            client: client(&["read", "write"], &["orders", "bills"]),
            subject: token(&json!({})),
            actor: None,
            scope: None,
            audience: &[],
            possession: Possession::default(),
        }
    }

    fn exchange(&self) -> Result<Exchanged, ExchangeError> {
        exchange(Exchange {
            client: &self.client,
            subject: &self.subject,
            actor: self.actor.as_ref(),
            scope: self.scope,
            audience: &owned(self.audience),
            possession: &self.possession,
        })
    }
}

#[test]
fn impersonation_keeps_the_subject_and_names_its_parent() {
    let got = Asked::new().exchange().unwrap();
    assert_eq!((got.subject.as_str(), got.session.as_deref(), got.actor), ("alice", Some("session-1"), None));
    let parent = Ancestor {
        issuer: None,
        session: Some("session-1".into()),
        client_id: Some("app".into()),
        jti: "subject-1".into(),
        expires_at: 2_000,
    };
    assert_eq!(got.ancestors, [parent]);
    assert_eq!(got.latest_expiry, 2_000);
    assert_eq!((got.scope.as_deref(), got.audience), (Some("read write"), owned(&["orders", "bills"])));
}

/// RFC 8693 §4.1: the current actor is outermost, and those before it are inside.
#[test]
fn delegation_nests_the_actors() {
    let asked = Asked {
        subject: token(&json!({"act": {"sub": "first"}})),
        actor: Some(actor(&json!({}))),
        ..Asked::new()
    };
    let got = asked.exchange().unwrap();
    assert_eq!(got.subject, "alice");
    assert_eq!(got.actor, Some(json!({"sub": "robot", "client_id": "gateway", "act": {"sub": "first"}})));
    assert_eq!(got.latest_expiry, 1_900, "no longer than either");
    let ids: Vec<&str> = got.ancestors.iter().map(|ancestor| ancestor.jti.as_str()).collect();
    assert_eq!(ids, ["subject-1", "actor-1"]);
    let deep = json!({"act": {"sub": "1", "act": {"sub": "2", "act": {"sub": "3", "act": {"sub": "4"}}}}});
    let asked = Asked { subject: token(&deep), actor: Some(actor(&json!({}))), ..Asked::new() };
    assert!(matches!(asked.exchange(), Err(ExchangeError::Request(_))), "sidecars read four at most");
}

#[test]
fn ancestors_are_those_of_both_parents_and_bounded() {
    let chain: Vec<Value> = (0..7).map(|n| json!({"jti": format!("a{n}"), "exp": 2_000})).collect();
    let asked = Asked { subject: token(&json!({"atm_ancestors": chain})), ..Asked::new() };
    assert_eq!(asked.exchange().unwrap().ancestors.len(), 8);
    let asked = Asked { actor: Some(actor(&json!({}))), ..asked };
    assert!(matches!(asked.exchange(), Err(ExchangeError::Request(_))));
}

#[test]
fn the_client_does_what_it_is_registered_for() {
    let with = |rules: ExchangeRules, actor: Option<AuthenticToken>| {
        let mut asked = Asked { actor, ..Asked::new() };
        asked.client.configuration.exchange = rules;
        asked.exchange()
    };
    let none = ExchangeRules::default();
    assert!(matches!(with(none, None), Err(ExchangeError::Unauthorized(_))));
    assert!(matches!(with(none, Some(actor(&json!({})))), Err(ExchangeError::Unauthorized(_))));
    let delegation = ExchangeRules { delegation: true, impersonation: false };
    assert!(with(delegation, Some(actor(&json!({})))).is_ok());
    assert!(matches!(with(delegation, None), Err(ExchangeError::Unauthorized(_))));
    // Tokens that are none of its business, as subject and as actor.
    let foreign = Asked { subject: token(&json!({"aud": "payroll"})), ..Asked::new() };
    assert!(matches!(foreign.exchange(), Err(ExchangeError::Unauthorized(_))));
    let foreign = actor(&json!({"client_id": "another", "aud": "another"}));
    assert!(matches!(with(delegation, Some(foreign)), Err(ExchangeError::Unauthorized(_))));
}

/// RFC 8693 §4.4.
#[test]
fn who_may_act_is_said_by_the_subjects_token() {
    let with = |may_act: &Value, actor: Option<AuthenticToken>| {
        Asked { subject: token(&json!({"may_act": may_act})), actor, ..Asked::new() }.exchange()
    };
    assert!(with(&json!({"sub": "robot"}), Some(actor(&json!({})))).is_ok());
    assert!(with(&json!({"sub": "robot", "iss": ISSUER}), Some(actor(&json!({})))).is_ok());
    for named in [json!({"sub": "another"}), json!({}), json!("robot"), json!({"sub": "robot", "iss": "x"})] {
        let got = with(&named, Some(actor(&json!({}))));
        assert!(matches!(got, Err(ExchangeError::Unauthorized(_))), "{named}");
    }
    assert!(matches!(with(&json!({"sub": "robot"}), None), Err(ExchangeError::Unauthorized(_))));
}

#[test]
fn a_bound_token_is_exchanged_by_its_holder_and_stays_bound() {
    let digest = atm_core::base64url::encode(&[7; 32]);
    let other = atm_core::base64url::encode(&[8; 32]);
    let held =
        |jkt: Option<&String>, x5t: Option<&String>| Possession { jkt: jkt.cloned(), x5t_s256: x5t.cloned() };
    for (name, with_digest, with_other) in [
        ("jkt", held(Some(&digest), None), held(Some(&other), None)),
        ("x5t#S256", held(None, Some(&digest)), held(None, Some(&other))),
    ] {
        let subject = token(&json!({"cnf": {name: digest}}));
        let with = |possession: Possession| {
            Asked { subject: subject.clone(), possession, ..Asked::new() }.exchange()
        };
        assert_eq!(with(with_digest.clone()).unwrap().possession, with_digest, "{name}");
        assert!(matches!(with(with_other), Err(ExchangeError::NotHeld)), "{name}");
        assert!(matches!(with(Possession::default()), Err(ExchangeError::NotHeld)), "{name}");
    }
    // A bearer token may become bound; a constraint that is not understood is not dropped.
    let asked = Asked { possession: held(Some(&other), None), ..Asked::new() };
    assert_eq!(asked.exchange().unwrap().possession.jkt, Some(other));
    let unknown = Asked { subject: token(&json!({"cnf": {"kid": "k"}})), ..Asked::new() };
    assert!(matches!(unknown.exchange(), Err(ExchangeError::NotHeld)));
    let bound_actor = Asked { actor: Some(actor(&json!({"cnf": {"jkt": digest}}))), ..Asked::new() };
    assert!(matches!(bound_actor.exchange(), Err(ExchangeError::NotHeld)));
}

#[test]
fn an_unknown_target_or_scope_is_refused() {
    let with = |scope, audience| Asked { scope, audience, ..Asked::new() }.exchange();
    assert!(matches!(with(None, &["payroll"]), Err(ExchangeError::Issuance(IssuanceError::Target(_)))));
    assert!(matches!(with(Some("admin"), &[]), Err(ExchangeError::Issuance(IssuanceError::Scope(_)))));
    let got = with(Some("read"), &["bills"]).unwrap();
    assert_eq!((got.scope.as_deref(), got.audience), (Some("read"), owned(&["bills"])));
    // Registered for more than the token is worth, and the other way round.
    let asked = Asked { client: client(&["read", "admin"], &["orders", "payroll"]), ..Asked::new() };
    let got = asked.exchange().unwrap();
    assert_eq!((got.scope.as_deref(), got.audience), (Some("read"), owned(&["orders"])));
}

#[test]
fn the_type_that_is_issued_is_said() {
    assert_eq!(issued_token_type(None, true).unwrap(), ACCESS_TOKEN);
    assert_eq!(issued_token_type(Some(JWT), true).unwrap(), JWT);
    assert!(issued_token_type(Some(JWT), false).is_err());
    assert!(issued_token_type(Some("urn:ietf:params:oauth:token-type:saml2"), true).is_err());
}

proptest! {
    #[test]
    fn whatever_is_asked_for_an_exchange_never_widens(
        registered in proptest::collection::vec("[a-d]", 0..4), targets in proptest::collection::vec("[w-z]", 0..4),
        own_scope in "[a-d]( [a-d]){0,2}", own_targets in proptest::collection::vec("[w-z]", 1..3),
        scope in proptest::option::of("[a-e]( [a-e]){0,2}"), audience in proptest::collection::vec("[v-z]", 0..3),
    ) {
        let registered: Vec<&str> = registered.iter().map(String::as_str).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let audience: Vec<&str> = audience.iter().map(String::as_str).collect();
        let asked = Asked {
            client: client(&registered, &targets),
            subject: token(&json!({"scope": own_scope, "aud": own_targets, "client_id": "gateway"})),
            scope: scope.as_deref(),
            audience: &audience,
            ..Asked::new()
        };
        if let Ok(got) = asked.exchange() {
            let scopes = got.scope.unwrap_or_default();
            for scope in scopes.split(' ').filter(|scope| !scope.is_empty()) {
                prop_assert!(registered.contains(&scope) && own_scope.split(' ').any(|own| own == scope));
            }
            prop_assert!(!got.audience.is_empty());
            for target in &got.audience {
                prop_assert!(own_targets.contains(target) && targets.contains(&target.as_str()));
            }
            prop_assert!(got.latest_expiry <= 2_000);
        }
    }
}
