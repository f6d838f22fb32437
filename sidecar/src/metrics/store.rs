//! Where revocations are held, and how the store under them fares.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, GaugeVec, Opts};

use crate::state::StateReader;

/// The families, from the numbers now.
#[expect(clippy::cast_precision_loss, reason = "sizes and counts far below 2^53")]
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
            gauge.with_label_values(&[place]).set(value as f64);
        }
        families.extend(gauge.collect());
    }
    let gauges = [
        (
            "atm_sidecar_revocation_buckets",
            "Buckets of expiry that hold revoked tokens.",
            sizes.buckets as u64,
        ),
        ("atm_sidecar_store_memtable_bytes", "Bytes in RocksDB's memtables.", store.memtable_bytes),
        ("atm_sidecar_store_block_cache_bytes", "Bytes in RocksDB's block cache.", store.block_cache_bytes),
        (
            "atm_sidecar_store_block_cache_capacity_bytes",
            "Bytes that RocksDB's block cache may have.",
            store.block_cache_capacity_bytes,
        ),
        (
            "atm_sidecar_store_table_reader_bytes",
            "Bytes of RocksDB's index blocks.",
            store.table_reader_bytes,
        ),
        ("atm_sidecar_store_disk_bytes", "Bytes of RocksDB's table files.", store.disk_bytes),
        (
            "atm_sidecar_store_pending_compaction_bytes",
            "Bytes that RocksDB has still to rewrite.",
            store.pending_compaction_bytes,
        ),
        ("atm_sidecar_store_running_compactions", "Compactions under way.", store.running_compactions),
        ("atm_sidecar_store_running_flushes", "Flushes under way.", store.running_flushes),
        (
            "atm_sidecar_store_delayed_write_bytes_per_second",
            "What RocksDB slows writes down to; 0 when it does not.",
            store.delayed_write_bytes_per_second,
        ),
        (
            "atm_sidecar_store_write_stopped",
            "1 while writes wait for compactions.",
            store.write_stopped.into(),
        ),
    ];
    for (name, help, value) in gauges {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value as f64);
        families.extend(gauge.collect());
    }
    let counters = [
        (
            "atm_sidecar_revocation_confirmations_total",
            "Hits of filters that were looked up on disk.",
            store.confirmations,
        ),
        (
            "atm_sidecar_revocation_false_positives_total",
            "Hits of filters that were not on disk.",
            store.false_positives,
        ),
        (
            "atm_sidecar_revocation_confirmation_errors_total",
            "Hits of filters that could not be looked up, and were refused.",
            store.confirmation_errors,
        ),
        (
            "atm_sidecar_store_background_errors_total",
            "Errors of RocksDB's background threads.",
            store.background_errors,
        ),
    ];
    for (name, help, value) in counters {
        let counter = Counter::new(name, help)?;
        counter.inc_by(value as f64);
        families.extend(counter.collect());
    }
    Ok(families)
}
