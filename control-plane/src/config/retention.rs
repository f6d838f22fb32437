//! The section `retention`: for how long what is past is kept. Audit events have their own, in `audit`.

use super::{Reader, number};
use crate::retention::{MAX_DAYS, RetentionSettings};

pub(super) fn read(reader: &Reader<'_>) -> RetentionSettings {
    let default = RetentionSettings::default();
    let days = |key: &str, default: u32| {
        let days = reader.optional(key, |text| number(text, 0..=MAX_DAYS.into()));
        days.and_then(|days| u32::try_from(days).ok()).unwrap_or(default)
    };
    RetentionSettings {
        session_days: days("retention.sessionDays", default.session_days),
        revocation_days: days("retention.revocationDays", default.revocation_days),
    }
}
