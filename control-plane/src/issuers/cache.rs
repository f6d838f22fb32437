//! When to look at an issuer again: what its answer allows (RFC 9111), within bounds of ours, and later after failures.

use std::time::Duration;

use aws_lc_rs::rand;
use http::HeaderMap;
use http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES};

/// The bounds. Tests make them short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshIntervals {
    /// However short an answer says that it may be kept.
    pub shortest: Duration,
    /// Where an answer does not say.
    pub default: Duration,
    /// However long an answer says that it may be kept.
    pub longest: Duration,
    /// After a first failure; doubles with each further one.
    pub first_retry: Duration,
    /// After many failures.
    pub longest_retry: Duration,
}

impl Default for RefreshIntervals {
    fn default() -> Self {
        Self {
            shortest: Duration::from_mins(1),
            default: Duration::from_mins(15),
            // A day, which some answer with, would be the outage after a rotation that was not announced.
            longest: Duration::from_hours(1),
            first_retry: Duration::from_secs(5),
            longest_retry: Duration::from_mins(10),
        }
    }
}

impl RefreshIntervals {
    /// How long an answer with these headers is good for: `max-age` less `Age`, else `Expires` less `Date`, within bounds.
    pub fn freshness(&self, headers: &HeaderMap) -> Duration {
        lifetime(headers).unwrap_or(self.default).clamp(self.shortest, self.longest)
    }

    /// How long to wait after `failures` failures in a row, from 1.
    pub fn backoff(&self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_retry.saturating_mul(doubled).min(self.longest_retry)
    }
}

/// `duration` and up to a tenth more, so that issuers registered together are not asked together for ever.
pub(super) fn jittered(duration: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness there is no jitter, which harms nobody.
    let _ = rand::fill(&mut random);
    duration + duration.mul_f64(f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX) / 10.0)
}

fn lifetime(headers: &HeaderMap) -> Option<Duration> {
    let directives = || {
        let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim)
    };
    if directives().any(|name| name.eq_ignore_ascii_case("no-store") || name.eq_ignore_ascii_case("no-cache"))
    {
        return Some(Duration::ZERO);
    }
    let max_age = directives().find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then(|| value.trim_matches('"').parse().unwrap_or(0_u64))
    });
    if let Some(seconds) = max_age {
        let age = text(headers, &AGE).and_then(|age| age.parse().ok()).unwrap_or(0);
        return Some(Duration::from_secs(seconds.saturating_sub(age)));
    }
    // A date that cannot be read is one in the past (RFC 9111 §5.3).
    let expires = text(headers, &EXPIRES)?;
    let seconds =
        instant(expires).zip(text(headers, &DATE).and_then(instant)).map_or(0, |(end, now)| end - now);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn text<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Seconds since the Unix epoch of an HTTP date (RFC 9110 §5.6.7).
fn instant(date: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(date).ok().map(|at| at.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freshness(headers: &[(&'static str, &'static str)]) -> u64 {
        let pairs = headers.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        });
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name, value);
        }
        RefreshIntervals::default().freshness(&map).as_secs()
    }

    #[test]
    fn what_the_answer_says_counts_within_bounds() {
        for (headers, seconds) in [
            (&[][..], 900),
            (&[("cache-control", "public, max-age=300")], 300),
            (&[("cache-control", "Max-Age=\"300\"")], 300),
            (&[("cache-control", "max-age=300"), ("age", "100")], 200),
            (&[("cache-control", "max-age=300"), ("age", "1000")], 60),
            (&[("cache-control", "max-age=1")], 60),
            (&[("cache-control", "max-age=99999999")], 3_600),
            (&[("cache-control", "max-age=-1")], 60),
            (&[("cache-control", "no-store")], 60),
            (&[("cache-control", "max-age=300"), ("cache-control", "no-cache")], 60),
            (
                &[("expires", "Tue, 15 Nov 1994 09:12:31 GMT"), ("date", "Tue, 15 Nov 1994 08:12:31 GMT")],
                3_600,
            ),
            (&[("expires", "Tue, 15 Nov 1994 07:12:31 GMT"), ("date", "Tue, 15 Nov 1994 08:12:31 GMT")], 60),
            (&[("expires", "0")], 60),
            (&[("cache-control", "max-age=120"), ("expires", "0")], 120),
        ] {
            assert_eq!(freshness(headers), seconds, "{headers:?}");
        }
    }

    #[test]
    fn failures_wait_longer_each_time_and_not_for_ever() {
        let intervals = RefreshIntervals::default();
        let waits: Vec<u64> = [1, 2, 3, 8, 32, 33, u32::MAX].map(|n| intervals.backoff(n).as_secs()).to_vec();
        assert_eq!(waits, [5, 10, 20, 600, 600, 600, 600]);
        for _ in 0..100 {
            let jittered = jittered(Duration::from_secs(10)).as_secs_f64();
            assert!((10.0..=11.0).contains(&jittered), "{jittered}");
        }
    }
}
