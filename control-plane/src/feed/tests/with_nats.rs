//! The feed with a real nats-server, from `.tools/bin` or `ATM_TOOLS_DIR`. Without one these tests fail and say what installs it.

use atm_proto::change::Heartbeat;
use atm_proto::report::{ResyncReply, SidecarReport};
use futures::StreamExt;
use prost::Message;

use super::*;

/// Kills its server when dropped.
struct Nats {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Nats {
    fn program() -> PathBuf {
        let tools = std::env::var_os("ATM_TOOLS_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin"), PathBuf::from);
        let program = tools.join("nats-server");
        assert!(program.exists(), "{} is missing: run `make tools`", program.display());
        program
    }

    async fn start(dir: &Path, port: u16) -> Self {
        let child = Command::new(Self::program())
            .args(["-a", "127.0.0.1", "-js", "-p", &port.to_string(), "-sd"])
            .arg(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nats = Self { child, port, dir: dir.to_owned() };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return nats;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("nats-server does not listen");
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn connected() -> (TempDir, Nats, Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let nats = Nats::start(dir.path(), free_port()).await;
    let fixture = Fixture::start_in(tempfile::tempdir().unwrap(), &nats.url()).await;
    fixture.feed.carrier().wait_for(|carrier| *carrier == Carrier::Connected).await.unwrap();
    (dir, nats, fixture)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_live_subscribers_signed_and_in_order() {
    let (_dir, nats, fixture) = connected().await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let mut live = client.subscribe("atm.test.live").await.unwrap();
    client.flush().await.unwrap();
    let trusted = TrustedFeedKeys::new(vec![fixture.feed.public_key()]);
    for byte in 1..=3 {
        let revision = fixture.change(byte).await;
        let message = timeout(Duration::from_secs(5), live.next()).await.unwrap().unwrap();
        let set = ChangeSet::decode(&trusted.verify(Domain::ChangeSet, &message.payload).unwrap()).unwrap();
        assert_eq!(set.revision, revision);
        let headers = message.headers.unwrap();
        assert_eq!(headers.get("Atm-Revision").unwrap().as_str(), revision.to_string());
        assert!(fixture.feed.wait_published(revision, Duration::from_secs(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_resync_and_reports_work_over_nats() {
    let (_dir, nats, fixture) = connected().await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let mut heartbeats = client.subscribe("atm.test.heartbeat").await.unwrap();
    fixture.change(1).await;
    let trusted = TrustedFeedKeys::new(vec![fixture.feed.public_key()]);
    let position = fixture.feed.position();
    loop {
        let message = timeout(Duration::from_secs(5), heartbeats.next()).await.unwrap().unwrap();
        let payload = trusted.verify(Domain::Heartbeat, &message.payload).unwrap();
        let heartbeat = Heartbeat::decode(&payload).unwrap();
        if heartbeat.revision == 1 {
            assert_eq!((heartbeat.epoch, heartbeat.digest), (position.epoch, position.digest));
            break;
        }
    }
    let asked = ResyncRequest { epoch: position.epoch.as_bytes().to_vec(), from_revision: 1 };
    let reply = client.request("atm.test.resync", asked.encode_to_vec().into()).await.unwrap();
    assert_eq!(ResyncReply::decode(reply.payload).unwrap().signed_change_sets.len(), 1);
    let report = SidecarReport {
        sidecar_id: "one".into(),
        epoch: position.epoch.as_bytes().to_vec(),
        applied_revision: 1,
        ..Default::default()
    };
    client.publish("atm.test.fleet.one", report.encode_to_vec().into()).await.unwrap();
    let receipt = fixture.feed.wait_applied(1, 1.0, Duration::from_secs(5)).await;
    assert_eq!((receipt.complete, receipt.live, receipt.applied), (true, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_made_while_nats_was_away_are_published_when_it_is_back() {
    let (dir, nats, fixture) = connected().await;
    fixture.change(1).await;
    assert!(fixture.feed.wait_published(1, Duration::from_secs(5)).await);
    let port = nats.port;
    drop(nats);
    fixture.feed.carrier().wait_for(|carrier| *carrier != Carrier::Connected).await.unwrap();
    assert_eq!(fixture.change(2).await, 2, "revocations go on");
    let _nats = Nats::start(dir.path(), port).await;
    assert!(fixture.feed.wait_published(2, Duration::from_secs(15)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_jetstream_lost_is_published_again_with_the_same_bytes() {
    let (_dir, nats, fixture) = connected().await;
    for byte in 1..=3 {
        fixture.change(byte).await;
    }
    assert!(fixture.feed.wait_published(3, Duration::from_secs(5)).await);
    let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    let stream = context.get_stream("ATM_FEED").await.unwrap();
    let first = stream.get_raw_message(1).await.unwrap().payload;
    stream.purge().await.unwrap();
    let mut held = 0;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let state = stream.get_info().await.unwrap().state;
        held = state.messages;
        if held == 3 {
            assert_eq!(stream.get_raw_message(state.first_sequence).await.unwrap().payload, first);
            break;
        }
    }
    assert_eq!(held, 3);
    assert_eq!(fixture.feed.counters().change_sets_republished, 3);
    context.delete_stream("ATM_FEED").await.unwrap();
    fixture.change(4).await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Ok(stream) = context.get_stream("ATM_FEED").await
            && stream.get_info().await.is_ok_and(|info| info.state.messages == 4)
        {
            return;
        }
    }
    panic!("the recreated stream does not hold the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_restored_from_an_older_copy_begins_a_new_epoch() {
    let (_dir, nats, fixture) = connected().await;
    fixture.change(1).await;
    let first = fixture.feed.position().epoch;
    assert!(fixture.feed.wait_published(1, Duration::from_secs(5)).await);
    let dir = fixture.stop().await;
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("atm.db"), copy.path().join("atm.db")).unwrap();
    let fixture = Fixture::start_in(dir, &nats.url()).await;
    fixture.change(2).await;
    assert!(fixture.feed.wait_published(2, Duration::from_secs(5)).await);
    drop(fixture.stop().await);
    let fixture = Fixture::start_in(copy, &nats.url()).await;
    let mut position = fixture.feed.0.position.subscribe();
    timeout(Duration::from_secs(10), position.wait_for(|position| position.epoch != first))
        .await
        .unwrap()
        .unwrap();
    fixture.change(3).await;
    assert!(fixture.feed.wait_published(fixture.feed.position().revision, Duration::from_secs(5)).await);
    assert!(nats.dir.exists());
}

/// Reports for the sidecar `one`.
async fn report(nats: &async_nats::Client, fixture: &Fixture, applied_revision: u64) {
    let epoch = fixture.feed.position().epoch.as_bytes().to_vec();
    let report = SidecarReport { sidecar_id: "one".into(), epoch, applied_revision, ..Default::default() };
    nats.publish("atm.test.fleet.one", report.encode_to_vec().into()).await.unwrap();
    nats.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_key_signs_once_the_fleet_holds_it_through_a_restart() {
    use crate::keys::SigningKeyState;
    let (_dir, nats, fixture) = connected().await;
    let root = crate::secret::RootKey::generate().unwrap().0;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let before = crate::keys::tests::keys(&fixture, &root, crate::keys::tests::ISSUER).await;
    let rotation = before.rotate().await.unwrap();
    drop(before);
    let keys = crate::keys::tests::keys(&fixture, &root, crate::keys::tests::ISSUER).await;
    tokio::spawn(keys.clone().run(fixture.shutdown.clone()));
    // Until the fleet is in sight, and one look more.
    let until = Instant::now() + Duration::from_secs(9);
    while Instant::now() < until {
        report(&client, &fixture, rotation.revision - 1).await;
        assert_eq!(keys.active_kid(), rotation.active, "the sidecar does not hold it yet");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while keys.active_kid().as_ref() != Some(&rotation.pending) {
        assert!(Instant::now() < deadline, "the pending key is not activated");
        report(&client, &fixture, rotation.revision).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let states: Vec<_> = keys.list().await.unwrap().into_iter().map(|key| key.state).collect();
    assert_eq!(states, [SigningKeyState::Retiring, SigningKeyState::Active]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_does_not_report_holds_a_key_up_for_a_bounded_time_which_is_recorded() {
    use crate::keys::Custody;
    use crate::keys::tests::{ISSUER, keys_with, settings};
    let (_dir, nats, fixture) = connected().await;
    let custody = Custody::local(crate::secret::RootKey::generate().unwrap().0.wrapper().unwrap());
    let settings = crate::keys::KeySettings { fleet_wait: Duration::from_secs(2), ..settings(ISSUER) };
    let (keys, audit) = keys_with(&fixture, custody, settings).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let rotation = keys.rotate().await.unwrap();
    tokio::spawn(keys.clone().run(fixture.shutdown.clone()));
    let filter = crate::audit::Filter {
        action: Some("key.activated_unconfirmed".to_owned()),
        references: vec![("key", rotation.pending.clone())],
        ..Default::default()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let event: serde_json::Value = loop {
        assert!(Instant::now() < deadline, "it is not activated, or not recorded");
        report(&client, &fixture, rotation.revision - 1).await;
        let page = audit.list(&filter, None, 1).await.unwrap().unwrap();
        if let Some(event) = page.items.first() {
            break serde_json::from_str(event.get()).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(event["detail"]["missing"], serde_json::json!(["one"]), "{event}");
    assert_eq!(keys.active_kid(), Some(rotation.pending));
}
