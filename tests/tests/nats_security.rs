//! The NATS configuration that ships, in a real server: each program can do its work, and whoever steals a sidecar's credential
//! can do nothing to the others.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use atm_tests::authority::FeedAuthority;
use atm_tests::nats::NatsServer;
use atm_tests::programs;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::now;
use atm_tests::wait;
use futures::StreamExt;
use serde_json::json;

#[path = "nats_security/callout.rs"]
mod callout;

/// The server, and who may connect to it.
struct Secured {
    nats: NatsServer,
    files: tempfile::TempDir,
}

fn shipped(name: &str) -> String {
    let path = programs::workspace().join("examples/nats").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Secured {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// With `more` at the end of the server's configuration.
    async fn start_with(more: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let certified =
            rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        std::fs::write(files.path().join("nats.pem"), certified.cert.pem()).unwrap();
        std::fs::write(files.path().join("nats.key"), certified.signing_key.serialize_pem()).unwrap();
        let (mut accounts, mut more) = (shipped("accounts.conf"), more.to_owned());
        for user in ["CONTROL_PLANE", "SIDECAR_A", "SIDECAR_B", "OPERATOR", "CALLOUT"] {
            let is_account = user == "CALLOUT";
            let key = if is_account { nkeys::KeyPair::new_account() } else { nkeys::KeyPair::new_user() };
            let name = format!("${{{user}_NKEY}}");
            accounts = accounts.replace(&name, &key.public_key());
            more = more.replace(&name, &key.public_key());
            std::fs::write(files.path().join(user), key.seed().unwrap()).unwrap();
        }
        let nats = NatsServer::start_configured(|port, directory| {
            std::fs::write(directory.join("accounts.conf"), accounts).unwrap();
            shipped("server.conf")
                .replace("${NAME}", "one")
                .replace("${LISTEN}", &format!("127.0.0.1:{port}"))
                .replace("${CERTIFICATE}", &file(files.path(), "nats.pem"))
                .replace("${KEY}", &file(files.path(), "nats.key"))
                .replace("${STORE}", &directory.join("jetstream").display().to_string())
                .replace("${CLUSTER}", &more)
        })
        .await;
        Self { nats, files }
    }

    fn url(&self) -> String {
        format!("tls://localhost:{}", self.nats.port())
    }

    fn seed(&self, user: &str) -> PathBuf {
        self.files.path().join(user)
    }

    /// The part of a configuration that says who a program is.
    fn access(&self, user: &str) -> serde_json::Value {
        json!({ "nats": {
            "url": self.url(),
            "nkeySeedFile": self.seed(user).display().to_string(),
            "caFile": file(self.files.path(), "nats.pem"),
        } })
    }

    /// A client with the credential of `user`, as a thief would use it.
    async fn client(&self, user: &str, inbox: &str) -> async_nats::Client {
        let seed = std::fs::read_to_string(self.seed(user)).unwrap();
        async_nats::ConnectOptions::with_nkey(seed)
            .add_root_certificates(self.files.path().join("nats.pem"))
            .require_tls(true)
            .custom_inbox_prefix(inbox)
            .request_timeout(Some(Duration::from_secs(2)))
            .connect(self.url())
            .await
            .expect("the credential is good")
    }
}

fn file(directory: &Path, name: &str) -> String {
    directory.join(name).display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_sidecar_credential_harms_nobody_else() {
    let secured = Secured::start().await;
    let control_plane =
        FeedAuthority::start_connected(&secured.url(), &secured.access("CONTROL_PLANE")).await;
    let key = control_plane.feed_key().await;
    let mut settings = secured.access("SIDECAR_A");
    settings["id"] = "sidecar-a".into();
    let sidecar = Sidecar::start_ready_with(&secured.url(), &key, &settings).await;
    let revision = control_plane.revoke(&["one".into()], now() + 3_600).await;
    sidecar.until_applied(revision).await;
    control_plane.until_snapshot(1).await;

    // What it is for works: its report arrives, its question is answered, it reads the log and the snapshot.
    wait::until("sidecar-a to report", wait::LONG, || async {
        let fleet = control_plane.fleet().await;
        if fleet["sidecars"][0]["id"] == "sidecar-a" { Ok(()) } else { Err(fleet) }
    })
    .await;
    let thief = secured.client("SIDECAR_B", "_INBOX.sidecar-b").await;
    let answer = thief.request("atm.default.resync", "".into()).await.expect("an answer to its own inbox");
    assert!(!answer.payload.is_empty());
    let context = jetstream::new(thief.clone());
    let feed = context.get_stream_no_info("ATM_FEED").await.unwrap();
    feed.direct_get_last_for_subject("atm.default.feed").await.expect("it may read the log");

    audit_arrives(&secured).await;

    let before = control_plane.feed().await;
    publishes_reach_nobody(&secured, &thief, &context).await;
    hears_nobody_else(&secured, &thief, &sidecar).await;
    streams_are_out_of_reach(&context).await;
    assert_eq!(control_plane.feed().await["revision"], before["revision"]);
    let revision = control_plane.revoke(&["two".into()], now() + 3_600).await;
    sidecar.until_applied(revision).await;
    assert!(!sidecar.log().contains("refused a message"), "nothing forged has even reached it");
}

/// The control plane may make the stream of its audit, and what it records is in it.
async fn audit_arrives(secured: &Secured) {
    let witness = secured.client("CONTROL_PLANE", "_INBOX.control-plane").await;
    let context = jetstream::new(witness);
    wait::until("the audit stream to hold the revocation", wait::LONG, || async {
        let mut stream = context.get_stream("ATM_AUDIT").await.map_err(|error| error.to_string())?;
        let held = stream.info().await.map_err(|error| error.to_string())?.state.messages;
        if held > 0 { Ok(()) } else { Err("it is empty".to_owned()) }
    })
    .await;
}

/// Publishing where sidecars listen, or under another one's name, is refused by the server.
async fn publishes_reach_nobody(secured: &Secured, thief: &async_nats::Client, context: &jetstream::Context) {
    let witness = secured.client("CONTROL_PLANE", "_INBOX.control-plane").await;
    let mut reports = witness.subscribe("atm.default.fleet.*").await.unwrap();
    witness.flush().await.unwrap();
    let other = secured.client("SIDECAR_A", "_INBOX.sidecar-a").await;
    let mut heard = Vec::new();
    for subject in ["atm.default.live", "atm.default.heartbeat", "atm.default.command"] {
        heard.push(other.subscribe(subject).await.unwrap());
    }
    other.flush().await.unwrap();
    for subject in [
        "atm.default.live",
        "atm.default.heartbeat",
        "atm.default.command",
        "atm.default.feed",
        "atm.default.snapshot.manifest",
        "atm.default.fleet.sidecar-a",
        "_INBOX.sidecar-a.1",
    ] {
        thief.publish(subject, "forged".into()).await.unwrap();
    }
    thief.publish("atm.default.fleet.sidecar-b", "its own".into()).await.unwrap();
    thief.flush().await.unwrap();
    // Its own report comes behind what was refused: what has not come by then never will.
    loop {
        let report = tokio::time::timeout(Duration::from_secs(10), reports.next()).await.unwrap().unwrap();
        assert_ne!(
            (report.subject.as_str(), &report.payload[..]),
            ("atm.default.fleet.sidecar-a", &b"forged"[..])
        );
        if report.subject.as_str() == "atm.default.fleet.sidecar-b" {
            break;
        }
    }
    for mut subscription in heard {
        while let Ok(Some(message)) =
            tokio::time::timeout(Duration::from_millis(50), subscription.next()).await
        {
            assert_ne!(&message.payload[..], b"forged");
        }
    }
    let ack = context.publish("atm.default.feed", "forged".into()).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_secs(1), ack).await.is_ok_and(|ack| ack.is_err()) || {
            // No answer at all is as good: the server has dropped it.
            let feed = context.get_stream_no_info("ATM_FEED").await.unwrap();
            let last = feed.direct_get_last_for_subject("atm.default.feed").await.unwrap();
            &last.payload[..] != b"forged"
        }
    );
}

/// Neither what another sidecar asks nor what it is answered.
async fn hears_nobody_else(secured: &Secured, thief: &async_nats::Client, sidecar: &Sidecar) {
    let mut taps = Vec::new();
    for subject in
        ["_INBOX.sidecar-a.>", "_INBOX.control-plane.>", "_INBOX.>", "atm.default.introspect", "atm.>", ">"]
    {
        taps.push(thief.subscribe(subject).await.unwrap());
    }
    thief.flush().await.unwrap();
    // The other one asks; it is answered, and nobody else hears it.
    let other = secured.client("SIDECAR_A", "_INBOX.sidecar-a").await;
    other.request("atm.default.digests", "".into()).await.expect("an answer");
    other.request("atm.default.introspect", "not a question".into()).await.expect("a refusal is an answer");
    assert_eq!(sidecar.admin("/healthz").await.unwrap().status, 200);
    for mut tap in taps {
        let heard = tokio::time::timeout(Duration::from_millis(100), tap.next()).await;
        assert!(!matches!(&heard, Ok(Some(_))), "{heard:?}");
    }
}

/// It can neither make, change, fill, empty nor delete a stream, nor have a consumer of one.
async fn streams_are_out_of_reach(context: &jetstream::Context) {
    let mut context = context.clone();
    context.set_timeout(Duration::from_millis(500));
    let config = |name: &str| stream::Config {
        name: name.into(),
        subjects: vec![format!("{name}.>")],
        ..Default::default()
    };
    assert!(context.create_stream(config("MINE")).await.is_err());
    assert!(context.update_stream(config("ATM_FEED")).await.is_err());
    assert!(context.delete_stream("ATM_FEED").await.is_err());
    assert!(context.delete_stream("ATM_SNAPSHOTS").await.is_err());
    let feed = context.get_stream_no_info("ATM_FEED").await.unwrap();
    assert!(feed.purge().await.is_err());
    assert!(feed.delete_message(1).await.is_err());
    let consumer = jetstream::consumer::pull::Config::default();
    assert!(context.create_consumer_on_stream(consumer, "ATM_FEED").await.is_err());
}
