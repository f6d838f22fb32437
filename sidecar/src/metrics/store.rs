//! Where revocations are held, and how the store under them fares.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use super::state::{counters, gauges, number, size};
use crate::state::StateReader;

/// The families, from the numbers now.
pub(super) fn families(reader: &StateReader) -> prometheus::Result<Vec<MetricFamily>> {
    let sizes = reader.load().view.revocations.sizes();
    let store = reader.store_numbers().unwrap_or_default();
    let mut families = Vec::new();
    let by_place = [
        (
            "atm_sidecar_revocations_held",
            "Revoked tokens by where they are: in full, or behind a filter.",
            [("full", sizes.front_ids), ("filter", sizes.settled_ids)],
        ),
        (
            "atm_sidecar_revocation_index_bytes",
            "Bytes of the revocation index by what they hold.",
            [("full", sizes.front_bytes as u64), ("filter", sizes.filter_bytes as u64)],
        ),
    ];
    for (name, help, values) in by_place {
        let gauge = GaugeVec::new(Opts::new(name, help), &["place"])?;
        for (place, value) in values {
            gauge.with_label_values(&[place]).set(number(value));
        }
        families.extend(gauge.collect());
    }
    families.extend(gauges(vec![
        (
            "atm_sidecar_revocation_buckets",
            "Buckets of expiry that hold revoked tokens.",
            size(sizes.buckets),
        ),
        ("atm_sidecar_store_memtable_bytes", "Bytes in RocksDB's memtables.", number(store.memtable_bytes)),
        (
            "atm_sidecar_store_block_cache_bytes",
            "Bytes in RocksDB's block cache.",
            number(store.block_cache_bytes),
        ),
        (
            "atm_sidecar_store_block_cache_capacity_bytes",
            "Bytes that RocksDB's block cache may have.",
            number(store.block_cache_capacity_bytes),
        ),
        (
            "atm_sidecar_store_table_reader_bytes",
            "Bytes of RocksDB's index blocks.",
            number(store.table_reader_bytes),
        ),
        ("atm_sidecar_store_disk_bytes", "Bytes of RocksDB's table files.", number(store.disk_bytes)),
        (
            "atm_sidecar_store_pending_compaction_bytes",
            "Bytes that RocksDB has still to rewrite.",
            number(store.pending_compaction_bytes),
        ),
        (
            "atm_sidecar_store_running_compactions",
            "Compactions under way.",
            number(store.running_compactions),
        ),
        ("atm_sidecar_store_running_flushes", "Flushes under way.", number(store.running_flushes)),
        (
            "atm_sidecar_store_delayed_write_bytes_per_second",
            "What RocksDB slows writes down to; 0 when it does not.",
            number(store.delayed_write_bytes_per_second),
        ),
        (
            "atm_sidecar_store_write_stopped",
            "1 while writes wait for compactions.",
            number(store.write_stopped.into()),
        ),
    ])?);
    families.extend(counters(vec![
        (
            "atm_sidecar_revocation_confirmations_total",
            "Hits of filters that were looked up on disk.",
            number(store.confirmations),
        ),
        (
            "atm_sidecar_revocation_false_positives_total",
            "Hits of filters that were not on disk.",
            number(store.false_positives),
        ),
        (
            "atm_sidecar_revocation_confirmation_errors_total",
            "Hits of filters that could not be looked up, and were refused.",
            number(store.confirmation_errors),
        ),
        (
            "atm_sidecar_store_background_errors_total",
            "Errors of RocksDB's background threads.",
            number(store.background_errors),
        ),
    ])?);
    Ok(families)
}
