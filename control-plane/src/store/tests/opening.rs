//! Opening, reopening, migrating.

use super::*;

contract!(
    a_reopened_store_is_the_same_store,
    the_schema_has_every_migration_once,
    a_program_that_is_too_old_for_the_schema_says_so,
    a_migration_of_a_later_version_is_no_hindrance,
);

async fn a_reopened_store_is_the_same_store(place: Place) {
    let store = place.open().await;
    let head = log::head(&store).await.unwrap();
    assert_eq!((head.revision, head.digest), (0, Digest::ZERO));
    store.close().await;
    let again = place.open().await;
    assert_eq!(log::head(&again).await.unwrap(), head);
    again.check().await.unwrap();
}

async fn the_schema_has_every_migration_once(place: Place) {
    let store = place.open().await;
    let rows =
        query("SELECT version FROM _sqlx_migrations ORDER BY version").fetch_all(&store).await.unwrap();
    let applied: Vec<i64> = rows.iter().map(|row| row.get("version").unwrap()).collect();
    let known: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    assert_eq!(applied, known);
    let mut distinct = known.clone();
    distinct.dedup();
    assert_eq!(distinct, known, "two files in migrations/ have the same number");
}

async fn a_program_that_is_too_old_for_the_schema_says_so(place: Place) {
    let store = place.open().await;
    query("UPDATE schema_floor SET version = 999999 WHERE only_row = 1").execute_alone(&store).await.unwrap();
    store.close().await;
    let error = Store::open(&place.settings).await.unwrap_err().to_string();
    assert!(error.contains("999999") && error.contains("later version"), "{error}");
}

async fn a_migration_of_a_later_version_is_no_hindrance(place: Place) {
    let store = place.open().await;
    query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         SELECT 999999, description, success, checksum, execution_time FROM _sqlx_migrations WHERE version = 1",
    )
    .execute_alone(&store)
    .await
    .unwrap();
    store.close().await;
    place.open().await.check().await.unwrap();
}

/// As SQLite does by itself where the disk is full.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_engine_has_undone_by_itself_is_the_last_of_its_connection_and_not_of_the_store()
 {
    let place = Place::embedded();
    let store = place.open().await;
    for _ in 0..3 {
        let mut transaction = store.begin().await.unwrap();
        query("ROLLBACK").execute(&mut transaction).await.unwrap();
        transaction.rollback().await.unwrap();
        let mut transaction = store.begin().await.unwrap();
        query("ROLLBACK").execute(&mut transaction).await.unwrap();
        assert!(transaction.commit().await.is_err(), "nothing was committed, and nobody may believe it");
    }
    store.begin().await.unwrap().commit().await.unwrap();
    store.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_on_an_empty_database_all_start() {
    let place = Place::postgres().await;
    let opened = futures::future::join_all((0..6).map(|_| place.open())).await;
    let heads = futures::future::join_all(opened.iter().map(log::head)).await;
    let epochs: Vec<_> = heads.into_iter().map(|head| head.unwrap().epoch).collect();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_store_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atm.db");
    std::fs::write(&path, "this is no database, but long enough to be read as one".repeat(100)).unwrap();
    let error = Store::open_embedded(&path).await.unwrap_err().to_string();
    assert!(error.contains("atm.db"), "{error}");
    let error = Store::open_embedded(&directory.path().join("missing/atm.db")).await.unwrap_err().to_string();
    assert!(error.contains("missing/atm.db"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named_without_its_user() {
    let mut settings = postgres_settings("postgres://secretuser@127.0.0.1:1/atm".into());
    settings.acquire_timeout = std::time::Duration::from_millis(300);
    let error = Store::open(&StoreSettings::Postgres(settings)).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1/atm") && !error.contains("secretuser"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_has_the_embedded_store() {
    let place = Place::embedded();
    let store = place.open().await;
    let error = Store::open(&place.settings).await.unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    store.close().await;
    place.open().await.check().await.unwrap();
    drop(place.directory);
}
