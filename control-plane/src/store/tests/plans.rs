//! Every statement that runs often finds its rows by an index, however full its table is.

use super::*;
use crate::revocation::RevocationFilter;
use crate::store::query::{Query, recorded};
use crate::store::retention::Kept;

contract!(no_frequent_statement_scans_a_table_that_grows);

/// Tables of one row, or of a few.
const SMALL: [&str; 8] = [
    "feed_head",
    "feed_restored",
    "issue_clock",
    "outbox_positions",
    "schema_floor",
    "versions",
    // One a rotation; those of an issuer are read together.
    "signing_keys",
    // Its retention looks at each.
    "realms",
];

/// The tables that the plan reads from end to end.
async fn scans(store: &Store, statement: Query<'static>) -> Vec<String> {
    let how = if store.is_shared() { "EXPLAIN" } else { "EXPLAIN QUERY PLAN" };
    let mut transaction = store.begin().await.unwrap();
    if store.is_shared() {
        // A scan of an empty table is cheaper than any index; where it stays, there is no index.
        query("SET LOCAL enable_seqscan = off").execute(&mut transaction).await.unwrap();
    }
    let column = if store.is_shared() { "QUERY PLAN" } else { "detail" };
    let rows = statement.explained(how).fetch_all(&mut transaction).await.unwrap();
    let lines = rows.iter().map(|row| row.get::<String>(column).unwrap());
    let found = lines.filter_map(|line| {
        let scanned = if store.is_shared() {
            line.split_once("Seq Scan on ")?.1
        } else if line.contains("USING") || line.contains("CONSTANT ROW") {
            return None;
        } else {
            line.split_once("SCAN ")?.1
        };
        Some(scanned.split([' ', '(']).next()?.to_owned())
    });
    found.collect()
}

async fn no_frequent_statement_scans_a_table_that_grows(place: Place) {
    let store = place.open().await;
    let ticket = enqueued(&store, &tokens(1), 1).await;
    let epoch = log::head(&store).await.unwrap().epoch;
    let statements = recorded(async {
        let (tokens, scopes) = ([(Bucket(1), id(1))], [(IdKind::Subject, id(1)), (IdKind::Key, id(1))]);
        enforcement::is_revoked(&store, &tokens, &scopes, UnixMillis(1)).await.unwrap();
        enforcement::purge_tokens(&store, Bucket(1), 10).await.unwrap();
        enforcement::list(&store, "default", &RevocationFilter::default(), None, 10).await.unwrap();
        for kept in [Kept::Sessions, Kept::Revocations] {
            retention::purge(&store, kept, 1, UnixMillis(1), 10).await.unwrap();
        }
        outbox::revision_of(&store, &ticket).await.unwrap();
        sequenced(&store).await;
        outbox::purge(&store, UnixMillis(1), 10).await.unwrap();
        log::sets_from(&store, epoch, 1, 10).await.unwrap();
        clients::get(&store, "default", "x").await.unwrap();
        clients::list(&store, "default", "", 10).await.unwrap();
        api_keys::by_digest(&store, &[0; 32], UnixMillis(1)).await.unwrap();
        api_keys::get(&store, "x").await.unwrap();
        api_keys::list(&store, "", 10).await.unwrap();
        trusted_issuers::get(&store, "x").await.unwrap();
        trusted_issuers::due(&store, 0, 10).await.unwrap();
        policy_sets::newest(&store).await.unwrap();
        issue_clock::read(&store).await.unwrap();
    })
    .await;
    assert!(statements.len() > 20, "{}", statements.len());
    for statement in statements {
        let text = statement.text().to_owned();
        let scanned = scans(&store, statement).await;
        let growing: Vec<_> = scanned
            .iter()
            .filter(|table| !SMALL.contains(&table.as_str()) && !["c", "v", "r"].contains(&table.as_str()))
            .collect();
        assert!(growing.is_empty(), "{growing:?} is read from end to end by: {text}");
    }
}
