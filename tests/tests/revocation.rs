//! Every selector of a revocation: it hits what it names, nothing else, and not what was issued after it.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use atm_core::id::IdKind;
use atm_tests::authz::{Authz, Verdict};
use atm_tests::feed::{FeedAuthor, Kind, policies, revoked_tokens, watermark};
use atm_tests::http;
use atm_tests::nats::NatsServer;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::{TokenMint, now, now_ms};

const POLICY: &str = include_str!("requests/policy.yaml");

struct Fleet {
    sidecar: Sidecar,
    authz: Authz,
    author: FeedAuthor,
    _nats: NatsServer,
    main: TokenMint,
    other: TokenMint,
}

impl Fleet {
    async fn start() -> Self {
        let main = TokenMint::new("https://issuer.test", "main", &[("one", "ES256"), ("two", "EdDSA")]);
        let other = TokenMint::new("https://other.test", "other", &[("one", "ES256")]);
        let nats = NatsServer::start().await;
        let author = FeedAuthor::start(&nats).await;
        author.publish(vec![main.to_change(), other.to_change(), policies(1, &[POLICY])]).await;
        let sidecar = Sidecar::start_ready(&nats.url(), &author.public_key()).await;
        let authz = sidecar.authz().await;
        Self { sidecar, authz, author, _nats: nats, main, other }
    }

    async fn put_in_force(&self, change: Kind) {
        let revision = self.author.publish(vec![change]).await;
        self.sidecar.until_applied(revision).await;
    }

    async fn expect(&self, name: &str, token: &str, reason: &str) {
        let expected =
            Verdict { status: if reason == "permit" { 200 } else { 401 }, reason: reason.to_owned() };
        assert_eq!(self.authz.check_token(token).await, expected, "{name}");
    }
}

#[tokio::test]
async fn a_token_by_its_jti() {
    let fleet = Fleet::start().await;
    let expires = now() + 600;
    let hit = fleet.main.token().claim("jti", "hit").claim("exp", expires).sign();
    let same_jti_elsewhere = fleet.other.token().claim("jti", "hit").claim("exp", expires).sign();
    let neighbour = fleet.main.token().claim("jti", "hit2").claim("exp", expires).sign();
    for token in [&hit, &same_jti_elsewhere, &neighbour] {
        fleet.expect("before", token, "permit").await;
    }
    fleet.put_in_force(revoked_tokens(expires, [fleet.main.id(IdKind::Token, "hit")])).await;
    fleet.expect("revoked", &hit, "revoked_token").await;
    fleet.expect("the same jti at another issuer", &same_jti_elsewhere, "permit").await;
    fleet.expect("another jti", &neighbour, "permit").await;

    // The expiry may be unknown to whoever revokes: bucket 0 is always probed.
    fleet.put_in_force(revoked_tokens(0, [fleet.main.id(IdKind::Token, "hit2")])).await;
    fleet.expect("revoked without its expiry", &neighbour, "revoked_token").await;
}

/// One scope: the claim that names it, a value that is hit and one that is not.
async fn check_scope(kind: IdKind, claim: &str, reason: &str) {
    let fleet = Fleet::start().await;
    let issued = now() - 60;
    let with =
        |mint: &TokenMint, value: &str, iat: i64| mint.token().claim(claim, value).claim("iat", iat).sign();
    let hit = with(&fleet.main, "hit", issued);
    let elsewhere = with(&fleet.other, "hit", issued);
    let neighbour = with(&fleet.main, "neighbour", issued);
    let later = with(&fleet.main, "hit", issued + 1);
    fleet.expect("before", &hit, "permit").await;
    // The watermark lies in the last millisecond of the second of issuance.
    fleet.put_in_force(watermark(kind, fleet.main.id(kind, "hit"), issued * 1000 + 999)).await;
    fleet.expect("revoked", &hit, reason).await;
    fleet.expect("the same value at another issuer", &elsewhere, "permit").await;
    fleet.expect("another value", &neighbour, "permit").await;
    fleet.expect("issued after the watermark", &later, "permit").await;
    // Registers merge by maximum: an earlier watermark takes nothing back.
    fleet.put_in_force(watermark(kind, fleet.main.id(kind, "hit"), 1)).await;
    fleet.expect("an earlier watermark later", &hit, reason).await;
}

#[tokio::test]
async fn a_session() {
    check_scope(IdKind::Session, "sid", "revoked_session").await;
}

#[tokio::test]
async fn a_subject() {
    check_scope(IdKind::Subject, "sub", "revoked_subject").await;
}

#[tokio::test]
async fn a_client() {
    check_scope(IdKind::Client, "client_id", "revoked_client").await;
}

#[tokio::test]
async fn a_watermark_cuts_within_one_second() {
    let fleet = Fleet::start().await;
    let issued = now() - 60;
    let at = |ms: i64| {
        fleet
            .main
            .token()
            .claim("sub", "bob")
            .claim("iat", issued)
            .claim("atm_iat_ms", issued * 1000 + ms)
            .sign()
    };
    let (before, after) = (at(500), at(501));
    let bob = fleet.main.id(IdKind::Subject, "bob");
    fleet.put_in_force(watermark(IdKind::Subject, bob, issued * 1000 + 500)).await;
    fleet.expect("issued at the watermark", &before, "revoked_subject").await;
    fleet.expect("issued one millisecond later", &after, "permit").await;
}

#[tokio::test]
async fn a_realm_and_an_issuer() {
    for (kind, name, reason) in
        [(IdKind::Realm, "main", "revoked_realm"), (IdKind::Issuer, "https://issuer.test", "revoked_issuer")]
    {
        let fleet = Fleet::start().await;
        let (hit, elsewhere) = (fleet.main.token().sign(), fleet.other.token().sign());
        let later = fleet.main.token().claim("iat", now()).sign();
        fleet.put_in_force(watermark(kind, fleet.main.id(kind, name), (now() - 5) * 1000)).await;
        fleet.expect("revoked", &hit, reason).await;
        fleet.expect("another issuer", &elsewhere, "permit").await;
        fleet.expect("issued after the watermark", &later, "permit").await;
    }
}

#[tokio::test]
async fn a_key_whatever_the_time_of_issuance() {
    let fleet = Fleet::start().await;
    let hit = fleet.main.token().sign();
    let other_key = fleet.main.token().with_key("two").sign();
    let same_kid_elsewhere = fleet.other.token().sign();
    let key = fleet.main.id(IdKind::Key, "one");
    fleet.put_in_force(watermark(IdKind::Key, key, now_ms() - 3_600_000)).await;
    fleet.expect("revoked key", &hit, "revoked_key").await;
    // Whoever stole the key sets the clock as he likes.
    let later = fleet.main.token().claim("iat", now()).sign();
    fleet.expect("issued after the revocation", &later, "revoked_key").await;
    fleet.expect("another key of the issuer", &other_key, "permit").await;
    fleet.expect("the same kid at another issuer", &same_kid_elsewhere, "permit").await;
}

#[tokio::test]
async fn a_removed_key_takes_its_cached_verdicts_with_it() {
    let fleet = Fleet::start().await;
    let token = fleet.main.token().sign();
    fleet.expect("before", &token, "permit").await;
    fleet.expect("from the cache", &token, "permit").await;
    let Kind::IssuerKeys(mut keys) = fleet.main.to_change() else { unreachable!("keys") };
    keys.keys.retain(|key| key.kid != "one");
    fleet.put_in_force(Kind::IssuerKeys(keys.clone())).await;
    fleet.expect("the key is gone", &token, "key_unknown").await;
    keys.keys.clear();
    fleet.put_in_force(Kind::IssuerKeys(keys)).await;
    fleet.expect("the issuer is gone", &token, "issuer_unknown").await;
}

#[tokio::test]
async fn the_http_service_answers_as_the_grpc_service_does() {
    let fleet = Fleet::start().await;
    let expires = now() + 600;
    let token = fleet.main.token().claim("jti", "by-http").claim("exp", expires).sign();
    let ask = async |token: &str| {
        let authorization = format!("Bearer {token}");
        let request =
            http::request("GET", "/orders", "orders.test", &[("authorization", &authorization)], "");
        http::exchange(fleet.sidecar.address("http"), &request).await.expect("the HTTP listener answers")
    };
    let answer = ask(&token).await;
    assert_eq!((answer.status, answer.header("x-atm-subject")), (200, Some("alice")), "{}", answer.text());
    fleet.put_in_force(revoked_tokens(expires, [fleet.main.id(IdKind::Token, "by-http")])).await;
    let answer = ask(&token).await;
    assert_eq!((answer.status, answer.header("x-atm-reason")), (401, Some("revoked_token")));
}
