//! Issuers that are not ours: which addresses they may be fetched from, how long an answer is good for, and what of a
//! published key set is used.

pub mod address;
pub mod cache;
pub mod fetch;
pub mod key_set;
