//! Several control planes on one PostgreSQL, with one feed: killed at any instant, cut off from their store, or told by one
//! what the others must know.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

mod replicas {
    pub(crate) mod fleet;
    mod killed;
    mod refresh;
    mod snapshots;
    mod stale;
    mod store_away;
}
