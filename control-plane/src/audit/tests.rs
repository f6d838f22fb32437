//! The pipeline over a real store.

use std::path::Path;

use atm_proto::audit::{Report, Verifier};
use atm_proto::signature::TrustedFeedKeys;
use proptest::prelude::*;
use tempfile::TempDir;

use super::retention::Cutoffs;
use super::*;
use crate::store::tests::{Place, contract};
use crate::store::{query, transact};

contract!(
    what_is_recorded_is_kept_linked_and_vouched_for,
    events_are_found_by_what_they_are_about_newest_first,
    an_end_without_a_word_is_said_by_the_next_chain,
    processes_write_their_chains_side_by_side,
    a_restart_a_minute_does_not_make_checkpoints_grow,
    retention_takes_the_oldest_and_leaves_a_chain_that_verifies,
    an_event_is_kept_as_long_as_its_realm_says,
);

/// More than a checkpoint names.
const MANY_CHAINS: usize = 120;

fn signer() -> FeedSigner {
    FeedSigner::from_seed(&[9; 32]).unwrap()
}

/// A pipeline for the tests of others.
pub(crate) async fn recording(store: &Store) -> Audit {
    let Running { audit, task, .. } = Running::start(store).await;
    drop(task);
    audit
}

async fn open(dir: &Path) -> Store {
    Store::open_embedded(&dir.join("atm.db")).await.unwrap()
}

struct Running {
    audit: Audit,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(store: &Store) -> Self {
        let settings = AuditSettings {
            instance: "one".into(),
            checkpoint_every: Duration::from_millis(20),
            retention: None,
        };
        let stop = CancellationToken::new();
        let (audit, writer) = Audit::start(store.clone(), settings, signer(), stop.clone()).await.unwrap();
        Self { audit, stop, task: tokio::spawn(writer) }
    }

    async fn end(self) -> Audit {
        self.stop.cancel();
        self.task.await.unwrap();
        self.audit
    }
}

fn issued(number: usize) -> Event {
    Event::of(Action::TokenIssued).by(Actor::client("c")).client("c").token(format!("jti-{number}"))
}

async fn verify(audit: &Audit) -> Report {
    try_verify(audit).await.unwrap()
}

/// Everything that is stored, verified as `atmctl audit verify` does it. An error: a row cannot even be read.
async fn try_verify(audit: &Audit) -> Result<Report, AuditError> {
    let trusted = TrustedFeedKeys::new(vec![*signer().public_key()]);
    let mut verifier = Verifier::new(trusted, true);
    for chain in audit.chains().await? {
        let mut next = 0;
        loop {
            let page = audit.export(&chain.chain, next).await?;
            page.lines.lines().for_each(|line| verifier.line(line.as_bytes()));
            next = page.next;
            if !page.more {
                break;
            }
        }
    }
    Ok(verifier.finish())
}

/// Two ended chains with some events each.
async fn two_chains(store: &Store) -> Audit {
    let mut last = None;
    for _ in 0..2 {
        let running = Running::start(store).await;
        for number in 0..30 {
            running.audit.record(issued(number));
            if number % 10 == 0 {
                running.audit.written(issued(1_000 + number)).await;
            }
        }
        last = Some(running.end().await);
    }
    last.unwrap()
}

async fn what_is_recorded_is_kept_linked_and_vouched_for(place: Place) {
    let store = place.open().await;
    let audit = two_chains(&store).await;
    let report = verify(&audit).await;
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.events, 2 * (1 + 33 + 1));
    for chain in &report.chains {
        assert!(chain.closed && chain.proven_to == chain.last && chain.last == 35, "{chain:?}");
    }
}

async fn events_are_found_by_what_they_are_about_newest_first(place: Place) {
    let store = place.open().await;
    let audit = two_chains(&store).await;
    let events = audit.about("token", "jti-7", 10).await.unwrap();
    assert_eq!(events.len(), 2, "one in each chain: {events:?}");
    assert_eq!(events[0]["actor"]["id"], "c");
    assert!(audit.about("token", "jti-none", 10).await.unwrap().is_empty());
    let filter = Filter { action: Some("token.".into()), ..Filter::default() };
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = audit.list(&filter, after.as_deref(), 7).await.unwrap().unwrap();
        seen.extend(page.items.iter().map(|item| item.get().to_owned()));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen.len(), 66);
    seen.dedup();
    assert_eq!(seen.len(), 66, "none twice");
    assert!(audit.list(&filter, Some("nonsense"), 7).await.unwrap().is_none());
}

async fn an_end_without_a_word_is_said_by_the_next_chain(place: Place) {
    let store = place.open().await;
    let first = Running::start(&store).await;
    first.audit.written(issued(1)).await;
    first.task.abort();
    let chain = first.audit.chain().to_owned();
    let second = Running::start(&store).await;
    let page = second.audit.export(second.audit.chain(), 0).await.unwrap();
    let opened = page.lines.lines().next().unwrap().to_owned();
    assert!(opened.contains("unclosed") && opened.contains(&chain), "{opened}");
    let audit = second.end().await;
    let report = verify(&audit).await;
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.chains.iter().filter(|chain| chain.closed).count(), 1);
}

async fn processes_write_their_chains_side_by_side(place: Place) {
    let store = place.open().await;
    // The embedded store is one process's; there, two chains share it.
    let second = if store.is_shared() { place.open().await } else { store.clone() };
    let [one, other] = [Running::start(&store).await, Running::start(&second).await];
    for number in 0..200 {
        one.audit.record(issued(number));
        other.audit.record(issued(1_000 + number));
        if number % 20 == 0 {
            tokio::join!(
                one.audit.written(issued(2_000 + number)),
                other.audit.written(issued(3_000 + number))
            );
        }
    }
    one.end().await;
    let report = verify(&other.end().await).await;
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.events, 2 * (1 + 210 + 1));
    assert!(report.chains.iter().all(|chain| chain.closed && chain.lost == 0), "{report:?}");
}

async fn a_restart_a_minute_does_not_make_checkpoints_grow(place: Place) {
    let store = place.open().await;
    let mut last = None;
    for _ in 0..MANY_CHAINS {
        last = Some(Running::start(&store).await.end().await);
    }
    let audit = last.unwrap();
    let report = verify(&audit).await;
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.chains.len(), MANY_CHAINS);
    let page = audit.export(audit.chain(), 0).await.unwrap();
    let longest = page.lines.lines().map(str::len).max().unwrap();
    assert!(longest < atm_proto::audit::MAX_LINE / 2, "{longest}");
}

#[tokio::test]
async fn a_blocked_store_stops_nobody_and_what_is_lost_is_said_in_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let running = Running::start(&store).await;
    // Whoever holds the embedded store's write lock blocks the chain.
    let blocker = store.begin().await.unwrap();
    let beyond = 500;
    let before = std::time::Instant::now();
    for number in 0..QUEUE + segment::MAX_EVENTS + beyond {
        running.audit.record(issued(number));
    }
    assert!(before.elapsed() < Duration::from_secs(5), "recording never waits for the store");
    let lost = running.audit.counters().lost;
    assert!(lost > 0);
    blocker.rollback().await.unwrap();
    let recorded = (QUEUE + segment::MAX_EVENTS + beyond) as u64 - lost;
    let audit = running.end().await;
    let report = verify(&audit).await;
    assert!(report.is_intact(), "{report:?}");
    let [chain] = &report.chains[..] else { panic!("{report:?}") };
    assert_eq!(chain.lost, lost);
    assert!(report.events > recorded, "opening, gap and end beside what was taken: {}", report.events);
}

#[tokio::test]
async fn refusals_are_recorded_up_to_a_rate_and_then_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let running = Running::start(&store).await;
    for _ in 0..3_000 {
        running.audit.record(Event::of(Action::ClientAuthentication).refused("wrong secret"));
    }
    let counters = running.audit.counters();
    assert!(
        counters.suppressed >= 3_000 - 2 * u64::from(REFUSALS_A_SECOND) - 200 && counters.lost == 0,
        "{counters:?}"
    );
    running.end().await;
}

async fn retention_takes_the_oldest_and_leaves_a_chain_that_verifies(place: Place) {
    let store = place.open().await;
    let running = Running::start(&store).await;
    running.audit.written(issued(1)).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while crate::clock::wall_now().0 <= last_ms(&running.audit).await {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let before = crate::clock::wall_now().0;
    running.audit.written(issued(2)).await;
    let cutoffs = Cutoffs::new(Some(Duration::ZERO), vec![], before);
    running.audit.remove_over(&cutoffs).await.unwrap();
    let audit = running.end().await;
    let report = verify(&audit).await;
    assert!(report.is_intact(), "{report:?}");
    let [chain] = &report.chains[..] else { panic!("{report:?}") };
    assert_eq!(chain.beginning, atm_proto::audit::Beginning::Retention);
    assert!(audit.about("token", "jti-1", 10).await.unwrap().is_empty());
    assert_eq!(audit.about("token", "jti-2", 10).await.unwrap().len(), 1);
}

async fn an_event_is_kept_as_long_as_its_realm_says(place: Place) {
    const DAY: i64 = 86_400 * 1_000;
    let store = place.open().await;
    let running = Running::start(&store).await;
    let events = [issued(1).realm("short"), issued(2), issued(3).realm("long"), issued(4).realm("short")];
    for event in events {
        running.audit.written(event).await;
    }
    let left = async |days: i64| {
        let own = vec![("short".to_owned(), 1), ("long".to_owned(), 5)];
        let now = crate::clock::wall_now().0 + days * DAY;
        let cutoffs = Cutoffs::new(Some(Duration::from_hours(3 * 24)), own, now);
        running.audit.remove_over(&cutoffs).await.unwrap();
        let mut left = Vec::new();
        for number in 1..=4 {
            let token = format!("jti-{number}");
            if !running.audit.about("token", &token, 10).await.unwrap().is_empty() {
                left.push(number);
            }
        }
        left
    };
    // Ahead of it all is the chain's own first event, which is of no realm.
    assert_eq!(left(2).await, [1, 2, 3, 4]);
    assert_eq!(left(4).await, [3, 4], "the configured time holds up nothing of a realm with more");
    assert_eq!(left(6).await, Vec::<i32>::new());
    let audit = running.end().await;
    let report = verify(&audit).await;
    assert!(report.is_intact(), "{report:?}");
}

async fn last_ms(audit: &Audit) -> i64 {
    let page = audit.list(&Filter::default(), None, 1).await.unwrap().unwrap();
    let event: serde_json::Value = serde_json::from_str(page.items[0].get()).unwrap();
    event["time_ms"].as_i64().unwrap()
}

/// What somebody with access to the database does to it.
#[derive(Debug, Clone)]
enum Tampering {
    Byte { column: &'static str, row: prop::sample::Index, byte: prop::sample::Index, bit: u8 },
    Number { column: &'static str, row: prop::sample::Index, by: i64 },
    Remove { row: prop::sample::Index },
    Swap { one: prop::sample::Index, other: prop::sample::Index },
    Rename { row: prop::sample::Index },
}

fn tampering() -> impl Strategy<Value = Tampering> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (prop::sample::select(vec!["previous", "link", "refs", "events"]), index(), index(), 0u8..8)
            .prop_map(|(column, row, byte, bit)| Tampering::Byte { column, row, byte, bit }),
        (
            prop::sample::select(vec!["first_seq", "last_seq", "first_ms", "last_ms"]),
            index(),
            prop_oneof![-5i64..0, 1i64..5]
        )
            .prop_map(|(column, row, by)| Tampering::Number { column, row, by }),
        index().prop_map(|row| Tampering::Remove { row }),
        (index(), index()).prop_map(|(one, other)| Tampering::Swap { one, other }),
        index().prop_map(|row| Tampering::Rename { row }),
    ]
}

async fn tamper(store: &Store, tampering: &Tampering) -> bool {
    let rows =
        query("SELECT chain, first_seq FROM audit_segments ORDER BY chain, first_seq").fetch_all(store).await;
    let rows: Vec<(String, i64)> =
        rows.unwrap().iter().map(|row| (row.get("chain").unwrap(), row.get("first_seq").unwrap())).collect();
    let at = |index: &prop::sample::Index| rows[index.index(rows.len())].clone();
    match tampering {
        Tampering::Byte { column, row, byte, bit } => {
            let (chain, first) = at(row);
            let select =
                format!("SELECT {column} AS value FROM audit_segments WHERE chain = $1 AND first_seq = $2");
            let row =
                query(sqlx::AssertSqlSafe(select)).bind(&chain).bind(first).fetch_one(store).await.unwrap();
            let mut value: Vec<u8> = row.get("value").unwrap();
            if value.is_empty() {
                return false;
            }
            let byte = byte.index(value.len());
            value[byte] ^= 1 << bit;
            let update =
                format!("UPDATE audit_segments SET {column} = $3 WHERE chain = $1 AND first_seq = $2");
            query(sqlx::AssertSqlSafe(update))
                .bind(&chain)
                .bind(first)
                .bind(value)
                .execute_alone(store)
                .await
                .unwrap();
        }
        Tampering::Number { column, row, by } => {
            let (chain, first) = at(row);
            let update = format!(
                "UPDATE audit_segments SET {column} = {column} + $3 WHERE chain = $1 AND first_seq = $2"
            );
            let done = query(sqlx::AssertSqlSafe(update))
                .bind(&chain)
                .bind(first)
                .bind(*by)
                .execute_alone(store)
                .await;
            return done.is_ok();
        }
        Tampering::Remove { row } => {
            let (chain, first) = at(row);
            query("DELETE FROM audit_segments WHERE chain = $1 AND first_seq = $2")
                .bind(&chain)
                .bind(first)
                .execute_alone(store)
                .await
                .unwrap();
        }
        Tampering::Swap { one, other } => {
            let ((chain, first), (chain2, first2)) = (at(one), at(other));
            if (&chain, first) == (&chain2, first2) {
                return false;
            }
            transact!(store, |transaction| -> Result<(), crate::store::StoreError> {
                for (chain, from, to) in [(&chain, first, -1), (&chain2, first2, -2)] {
                    query("UPDATE audit_segments SET first_seq = $3 WHERE chain = $1 AND first_seq = $2")
                        .bind(chain).bind(from).bind(i64::from(to)).execute(transaction).await?;
                }
                for (old, place, chain, first) in [(&chain, -1, &chain2, first2), (&chain2, -2, &chain, first)] {
                    query("UPDATE audit_segments SET first_seq = $3, chain = $4 WHERE chain = $1 AND first_seq = $2")
                        .bind(old).bind(i64::from(place)).bind(first).bind(chain).execute(transaction).await?;
                }
                Ok(())
            })
            .unwrap();
        }
        Tampering::Rename { row } => {
            let (chain, first) = at(row);
            query("UPDATE audit_segments SET chain = 'another' WHERE chain = $1 AND first_seq = $2")
                .bind(&chain)
                .bind(first)
                .execute_alone(store)
                .await
                .unwrap();
        }
    }
    true
}

/// The store of [`two_chains`], to be copied and tampered with.
async fn template() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    two_chains(&store).await;
    store.close().await;
    dir
}

#[test]
fn any_tampering_with_the_stored_rows_is_found() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let template = runtime.block_on(template());
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 60, ..ProptestConfig::default() });
    let found = runner.run(&tampering(), |tampering| {
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            std::fs::copy(template.path().join("atm.db"), dir.path().join("atm.db")).unwrap();
            let store = open(dir.path()).await;
            if !tamper(&store, &tampering).await {
                return Ok(());
            }
            // Whoever reads it: a process that has just opened its own chain.
            let audit = Running::start(&store).await.end().await;
            let report = try_verify(&audit).await;
            store.close().await;
            prop_assert!(!report.is_ok_and(|report| report.is_intact()), "{:?}", tampering);
            Ok(())
        })
    });
    found.unwrap();
}

#[tokio::test]
async fn files_hold_the_same_chain_and_go_on_where_they_were() {
    use sinks::{FileSettings, FileSink};
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let settings = FileSettings { directory: dir.path().join("audit"), max_bytes: 4_000, keep: 100 };
    for _ in 0..2 {
        let running = Running::start(&store).await;
        let stop = CancellationToken::new();
        let sink = tokio::spawn(FileSink::new(running.audit.clone(), settings.clone()).run(stop.clone()));
        for number in 0..50 {
            running.audit.written(issued(number)).await;
        }
        running.audit.written(issued(999)).await;
        // The first time it ends before all is in the files.
        stop.cancel();
        sink.await.unwrap();
        running.end().await;
    }
    let last = Running::start(&store).await;
    let stop = CancellationToken::new();
    let sink = tokio::spawn(FileSink::new(last.audit.clone(), settings.clone()).run(stop.clone()));
    let trusted = TrustedFeedKeys::new(vec![*signer().public_key()]);
    let report = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let mut files: Vec<_> = std::fs::read_dir(&settings.directory)
                .map(|files| files.map(|file| file.unwrap().path()).collect())
                .unwrap_or_default();
            files.sort();
            let mut verifier = Verifier::new(trusted.clone(), false);
            for file in files {
                for line in std::fs::read_to_string(file).unwrap().lines() {
                    verifier.line(line.as_bytes());
                }
            }
            let report = verifier.finish();
            if report.chains.iter().filter(|chain| chain.closed).count() == 2 {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert!(report.is_intact(), "{report:?}");
    stop.cancel();
    sink.await.unwrap();
    last.end().await;
}

#[tokio::test]
async fn files_that_cannot_be_written_hold_nobody_up_and_are_made_up_for() {
    use sinks::{FileSettings, FileSink};
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    // A file stands where the directory should be: every attempt fails.
    let place = dir.path().join("audit");
    std::fs::write(&place, "in the way").unwrap();
    let settings = FileSettings { directory: place.clone(), max_bytes: 1 << 20, keep: 10 };
    let running = Running::start(&store).await;
    let stop = CancellationToken::new();
    let sink = tokio::spawn(FileSink::new(running.audit.clone(), settings).run(stop.clone()));
    for number in 0..50 {
        running.audit.record(issued(number));
    }
    running.audit.written(issued(999)).await;
    let counters = running.audit.counters();
    assert_eq!((counters.lost, counters.written), (0, 52), "the store has all of it");
    std::fs::remove_file(&place).unwrap();
    let written = async {
        loop {
            let files = std::fs::read_dir(&place).into_iter().flatten().flatten();
            let lines: usize = files
                .map(|file| std::fs::read_to_string(file.path()).unwrap())
                .map(|text| text.lines().filter(|line| line.contains("token.issued")).count())
                .sum();
            if lines == 51 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written).await.unwrap();
    stop.cancel();
    sink.await.unwrap();
    running.end().await;
}
