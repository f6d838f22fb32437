//! The feed under attack and under loss: what is not the next signed change set is never applied, is counted, and does not
//! keep the sidecar from what is.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::time::{Duration, Instant};

use atm_core::id::IdKind;
use atm_proto::signature::{Domain, FeedSigner};
use atm_proto::wire;
use atm_tests::feed::{FeedAuthor, Kind, policies, revoked_tokens, watermark};
use atm_tests::nats::NatsServer;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::{TokenMint, now, now_ms};
use futures::StreamExt;
use prost::Message;

const POLICY: &str = include_str!("requests/policy.yaml");

struct Feed {
    sidecar: Sidecar,
    author: FeedAuthor,
    nats: NatsServer,
    mint: TokenMint,
    expires: i64,
}

impl Feed {
    async fn start() -> Self {
        let mint = TokenMint::new("https://issuer.test", "main", &[("ed", "EdDSA")]);
        let nats = NatsServer::start().await;
        let author = FeedAuthor::start(&nats).await;
        author.publish(vec![mint.to_change(), policies(1, &[POLICY])]).await;
        let sidecar = Sidecar::start_ready(&nats.url(), &author.public_key()).await;
        sidecar.until_applied(1).await;
        Self { sidecar, author, nats, mint, expires: now() + 1800 }
    }

    fn token(&self, jti: &str) -> String {
        self.mint.token().claim("jti", jti).claim("exp", self.expires).sign()
    }

    fn revoke(&self, jti: &str) -> Vec<Kind> {
        vec![revoked_tokens(self.expires, [self.mint.id(IdKind::Token, jti)])]
    }

    async fn reason(&self, jti: &str) -> String {
        self.sidecar.authz().await.check_token(&self.token(jti)).await.reason
    }

    async fn until_refused(&self, cause: &str, least: f64) {
        let series = format!("atm_sidecar_change_sets_refused_total{{cause=\"{cause}\"}}");
        self.sidecar.until_metric(&series, least).await;
    }

    /// The next true revision still gets through.
    async fn assert_recovers(&self) {
        let revision = self.author.publish(self.revoke("after")).await;
        self.sidecar.until_applied(revision).await;
        assert_eq!(self.reason("after").await, "revoked_token");
        assert_eq!(self.reason("bystander").await, "permit");
        self.sidecar.until_ready().await;
    }
}

#[tokio::test]
async fn a_wrong_signature_changes_nothing() {
    let feed = Feed::start().await;
    let forged = feed.author.make_forgotten(feed.revoke("victim"));
    let payload = wire::Signed::decode(&forged.signed[..]).unwrap().payload;

    let (stranger, _) = FeedSigner::generate().unwrap();
    feed.author.inject_live(stranger.sign(Domain::ChangeSet, &payload)).await;
    feed.until_refused("signature", 1.0).await;
    // The right key, for another kind of message.
    feed.author.inject_live(feed.author.sign(Domain::Heartbeat, &payload)).await;
    feed.until_refused("signature", 2.0).await;
    // The right envelope with one byte of the payload changed.
    let mut envelope = wire::Signed::decode(&forged.signed[..]).unwrap();
    let last = envelope.payload.len() - 1;
    envelope.payload[last] ^= 1;
    feed.author.inject_live(envelope.encode_to_vec()).await;
    feed.until_refused("signature", 3.0).await;

    assert_eq!(feed.sidecar.applied().await, 1);
    assert_eq!(feed.reason("victim").await, "permit");
    assert!(feed.sidecar.log().contains("signature"), "the refusal is logged");
    feed.assert_recovers().await;
}

#[tokio::test]
async fn a_signed_message_that_is_not_understood_changes_nothing() {
    let feed = Feed::start().await;
    feed.author.inject_live(b"not even an envelope".to_vec()).await;
    feed.until_refused("signature", 1.0).await;
    feed.author.inject_live(feed.author.sign(Domain::ChangeSet, b"\xff\xff\xff")).await;
    feed.until_refused("decode", 1.0).await;
    // A change of a kind that only a later version knows, beside one that this version does know.
    let next = feed.author.make_forgotten(feed.revoke("victim"));
    let mut payload = wire::Signed::decode(&next.signed[..]).unwrap().payload;
    payload.extend([0x32, 0x02, 0x7a, 0x00]);
    feed.author.inject_live(feed.author.sign(Domain::ChangeSet, &payload)).await;
    feed.until_refused("decode", 2.0).await;
    assert_eq!(feed.sidecar.applied().await, 1);
    assert_eq!(feed.reason("victim").await, "permit");
    feed.assert_recovers().await;
}

#[tokio::test]
async fn beyond_a_gap_nothing_is_applied_until_it_is_filled() {
    let feed = Feed::start().await;
    feed.author.set_silent(true);
    let lost = feed.author.make(feed.revoke("lost"));
    let beyond = feed.author.make(feed.revoke("beyond"));
    feed.author.inject_live(beyond.signed.clone()).await;
    feed.until_refused("gap", 1.0).await;
    assert_eq!(feed.sidecar.applied().await, 1);
    assert_eq!(feed.reason("beyond").await, "permit");
    // Nobody has the lost one but the control plane: a resync request fills the gap.
    feed.author.set_silent(false);
    feed.sidecar.until_applied(beyond.revision).await;
    assert_eq!(feed.reason("lost").await, "revoked_token");
    assert_eq!(feed.reason("beyond").await, "revoked_token");
    assert_eq!(lost.revision + 1, beyond.revision);
    // The log goes on in the stream where the lost ones never were.
    feed.assert_recovers().await;
}

#[tokio::test]
async fn a_replayed_or_contradicting_revision_changes_nothing() {
    let feed = Feed::start().await;
    let first = feed.author.make(feed.revoke("first"));
    feed.author.send(&first).await;
    let second = feed.author.make(feed.revoke("second"));
    feed.author.send(&second).await;
    feed.sidecar.until_applied(second.revision).await;

    feed.author.inject_live(first.signed.clone()).await;
    feed.until_refused("replay", 1.0).await;

    // The feed key signs another change set for a revision that is already in force.
    let mut contradicting = feed.author.make_forgotten(feed.revoke("victim"));
    let mut set =
        wire::ChangeSet::decode(&wire::Signed::decode(&contradicting.signed[..]).unwrap().payload[..])
            .unwrap();
    set.revision = second.revision;
    set.previous_digest = first.digest.as_bytes().to_vec();
    contradicting = feed.author.seal(&set);
    feed.author.inject_live(contradicting.signed).await;
    feed.until_refused("conflict", 1.0).await;

    // The next revision, chained to bytes that never were.
    set.revision = second.revision + 1;
    set.previous_digest = vec![7; 32];
    feed.author.inject_live(feed.author.seal(&set).signed).await;
    feed.until_refused("conflict", 2.0).await;

    assert_eq!(feed.sidecar.applied().await, second.revision);
    assert_eq!(feed.reason("victim").await, "permit");
    feed.assert_recovers().await;
}

#[tokio::test]
async fn reordered_revisions_end_up_in_force_in_order() {
    let feed = Feed::start().await;
    let sets: Vec<_> = (0..6).map(|n| feed.author.make(feed.revoke(&format!("reordered-{n}")))).collect();
    for at in [3, 1, 5, 0, 4, 2] {
        feed.author.inject_live(sets[at].signed.clone()).await;
    }
    feed.sidecar.until_applied(sets[5].revision).await;
    for n in 0..6 {
        assert_eq!(feed.reason(&format!("reordered-{n}")).await, "revoked_token", "{n}");
    }
    feed.assert_recovers().await;
}

#[tokio::test]
async fn another_realm_groups_change_sets_are_refused() {
    let feed = Feed::start().await;
    let next = feed.author.make_forgotten(feed.revoke("victim"));
    let mut set =
        wire::ChangeSet::decode(&wire::Signed::decode(&next.signed[..]).unwrap().payload[..]).unwrap();
    set.realm_group = "elsewhere".to_owned();
    feed.author.inject_live(feed.author.seal(&set).signed).await;
    feed.assert_recovers().await;
    assert_eq!(feed.reason("victim").await, "permit");
}

#[tokio::test]
async fn a_forged_heartbeat_is_no_news() {
    let feed = Feed::start().await;
    let heartbeat = wire::Heartbeat {
        realm_group: "default".to_owned(),
        epoch: feed.author.epoch().as_bytes().to_vec(),
        revision: 1_000,
        oldest_revision: 1,
        time_ms: now_ms(),
        digest: vec![1; 32],
        ..Default::default()
    };
    let (stranger, _) = FeedSigner::generate().unwrap();
    feed.author.inject_heartbeat(stranger.sign(Domain::Heartbeat, &heartbeat.encode_to_vec())).await;
    feed.author.inject_heartbeat(b"\x00\x01".to_vec()).await;
    feed.assert_recovers().await;
}

#[tokio::test]
async fn a_bad_policy_set_leaves_the_good_one_and_revocations_in_force() {
    let feed = Feed::start().await;
    let mut changes = vec![policies(2, &["kind: Nonsense"])];
    changes.extend(feed.revoke("victim"));
    let revision = feed.author.publish(changes).await;
    feed.sidecar.until_applied(revision).await;
    assert_eq!(feed.reason("victim").await, "revoked_token");
    assert_eq!(feed.reason("bystander").await, "permit");
    let ready = feed.sidecar.admin("/readyz").await.unwrap().text();
    assert!(ready.contains("polic"), "the refused policy set is shown: {ready}");
    feed.assert_recovers().await;
}

#[tokio::test]
async fn a_restart_without_nats_decides_from_rocksdb() {
    let mut feed = Feed::start().await;
    let revision = feed.author.publish(feed.revoke("revoked")).await;
    // What a sidecar has reported is in a receipt: not even a crash in the same moment may lose it.
    feed.author.until_reported(revision).await;
    feed.sidecar.kill();
    feed.nats.kill();
    feed.sidecar.start().await;
    feed.sidecar.until_ready().await;
    assert_eq!(feed.sidecar.applied().await, revision);
    assert_eq!(feed.reason("revoked").await, "revoked_token");
    assert_eq!(feed.reason("bystander").await, "permit");
    let ready = feed.sidecar.admin("/readyz").await.unwrap().json();
    assert!(
        ready["degraded"].as_str().is_some_and(|text| !text.is_empty()),
        "it says what is wrong: {ready}"
    );

    // NATS comes back, and the sidecar with it.
    feed.nats.restart().await;
    feed.sidecar.until_metric("atm_sidecar_ready", 1.0).await;
    feed.assert_recovers().await;
}

#[tokio::test]
async fn after_a_restart_the_highest_watermark_counts_in_whatever_order_they_came() {
    let mut feed = Feed::start().await;
    let alice = feed.mint.id(IdKind::Subject, "alice");
    let instants = [now_ms() - 3_600_000, now_ms(), now_ms() - 7_200_000];
    // In one change set, and in several that the store may well write as one batch.
    let together = instants.iter().map(|at| watermark(IdKind::Subject, alice, *at)).collect();
    feed.author.publish(together).await;
    let mut revision = 0;
    for session in ["one", "two"] {
        for at in instants {
            let id = feed.mint.id(IdKind::Session, session);
            revision = feed.author.publish(vec![watermark(IdKind::Session, id, at)]).await;
        }
    }
    feed.sidecar.until_applied(revision).await;
    assert_eq!(feed.reason("bystander").await, "revoked_subject");
    feed.author.until_reported(revision).await;
    feed.sidecar.kill();
    feed.nats.kill();
    feed.sidecar.start().await;
    feed.sidecar.until_ready().await;
    assert_eq!(feed.sidecar.applied().await, revision);
    let authz = feed.sidecar.authz().await;
    let alice = feed.mint.token().sign();
    assert_eq!(authz.check_token(&alice).await.reason, "revoked_subject");
    for session in ["one", "two"] {
        let token = feed.mint.token().claim("sub", "bob").claim("sid", session).sign();
        assert_eq!(authz.check_token(&token).await.reason, "revoked_session", "{session}");
    }
}

#[tokio::test]
async fn a_lost_stream_is_repaired_by_the_control_plane() {
    let feed = Feed::start().await;
    // Revisions 2 and 3 are told of by heartbeats and are in no stream: only the control plane's store has them.
    feed.author.make(feed.revoke("two"));
    let three = feed.author.make(feed.revoke("three"));
    feed.sidecar.until_applied(three.revision).await;
    assert_eq!(feed.reason("two").await, "revoked_token");
    feed.assert_recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_revocations_while_it_was_off_are_in_force_before_it_is_ready() {
    const SETS: usize = 100;
    const EACH: usize = 100;
    let mut feed = Feed::start().await;
    feed.sidecar.kill();
    for set in 0..SETS {
        let ids = (0..EACH).map(|n| feed.mint.id(IdKind::Token, &format!("off-{}", set * EACH + n)));
        feed.author.publish(vec![revoked_tokens(feed.expires, ids)]).await;
    }
    let tokens: Vec<String> = (0..SETS * EACH).map(|n| feed.token(&format!("off-{n}"))).collect();
    feed.sidecar.start().await;

    // Until it is ready it refuses everything; from the first moment of readiness it refuses every one of these.
    let authz = feed.sidecar.authz().await;
    let start = Instant::now();
    loop {
        let probe = &tokens[usize::try_from(start.elapsed().as_micros()).unwrap() % tokens.len()];
        let verdict = authz.check_token(probe).await;
        assert!(!verdict.is_permit(), "a revoked token was accepted before readiness");
        if feed.sidecar.admin("/readyz").await.is_ok_and(|answer| answer.status == 200) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "not ready: {}", feed.sidecar.state().await);
    }
    let refused = futures::stream::iter(&tokens)
        .map(|token| authz.check_token(token))
        .buffer_unordered(64)
        .filter(|verdict| std::future::ready(verdict.reason == "revoked_token"))
        .count()
        .await;
    assert_eq!(refused, tokens.len());
    assert_eq!(feed.reason("bystander").await, "permit");
}
