//! The detectors: plain state over records, in bounded memory.

use std::collections::{HashMap, HashSet, VecDeque};

use atm_core::time::UnixMillis;
use serde_json::Value;

use super::{Anomaly, AnomalyKind};

/// Tokens that are remembered by each detector.
const TOKENS: usize = 20_000;
/// Clients that are remembered.
const CLIENTS: usize = 4_096;
/// One token tells at most once in so many milliseconds.
const QUIET_MS: i64 = 60 * 60 * 1_000;
/// Sidecars at which one token may be used within [`SPREAD_MS`].
const SPREAD: usize = 20;
/// The time in which uses of one token are counted.
const SPREAD_MS: i64 = 60_000;
/// Denials of one client in a minute below which there is no spike.
const SPIKE_LEAST: u64 = 50;
/// How many times as many denials as before make a spike.
const SPIKE_TIMES: f64 = 10.0;
/// Weight of the newest minute in what is usual.
const SMOOTHING: f64 = 0.3;

/// All detectors.
#[derive(Debug)]
pub(super) struct Detectors {
    presented: Recent<i64>,
    replayed: Recent<i64>,
    spread: Recent<Spread>,
    clients: Recent<Denials>,
}

/// Where one token was used lately.
#[derive(Debug, Default)]
struct Spread {
    since_ms: i64,
    sidecars: HashSet<String>,
    told_ms: i64,
}

/// How often one client is denied.
#[derive(Debug, Default)]
struct Denials {
    minute: i64,
    now: u64,
    /// In a minute, usually.
    usual: f64,
    told: bool,
}

impl Default for Detectors {
    fn default() -> Self {
        Self {
            presented: Recent::new(TOKENS),
            replayed: Recent::new(TOKENS),
            spread: Recent::new(TOKENS),
            clients: Recent::new(CLIENTS),
        }
    }
}

impl Detectors {
    /// What a decision record shows.
    pub(super) fn look(&mut self, record: &Value, now: UnixMillis) -> Vec<Anomaly> {
        if record["event"] != "decision" {
            return Vec::new();
        }
        let token = &record["token"];
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        let reason = record["reason"].as_str().unwrap_or_default();
        let anomaly = |kind, number| Anomaly {
            kind,
            token: text(&token["jti"]),
            client: text(&token["client_id"]),
            subject: text(&token["subject"]),
            number,
            reason: Some(reason.to_owned()),
        };
        let jti = token["jti"].as_str();
        let mut found = Vec::new();
        if let (Some(jti), Some(sidecar)) = (jti, record["sidecar"].as_str())
            && let Some(number) = self.spread(jti, sidecar, now)
        {
            found.push(anomaly(AnomalyKind::TokenSpread, number));
        }
        if record["outcome"] != "deny" {
            return found;
        }
        if reason.starts_with("revoked_")
            && let Some(jti) = jti
            && is_news(&mut self.presented, jti, now)
        {
            found.push(anomaly(AnomalyKind::RevokedTokenPresented, 1));
        }
        if reason == "dpop_proof_replayed" && is_news(&mut self.replayed, jti.unwrap_or_default(), now) {
            found.push(anomaly(AnomalyKind::ProofReplay, 1));
        }
        if let Some(client) = token["client_id"].as_str()
            && let Some(number) = self.denied(client, now)
        {
            found.push(Anomaly { token: None, subject: None, ..anomaly(AnomalyKind::DenialSpike, number) });
        }
        found
    }

    fn spread(&mut self, jti: &str, sidecar: &str, now: UnixMillis) -> Option<u64> {
        let spread = self.spread.entry(jti);
        if now.0 - spread.since_ms > SPREAD_MS {
            spread.since_ms = now.0;
            spread.sidecars.clear();
        }
        // One more than needed says enough.
        if spread.sidecars.len() <= SPREAD {
            spread.sidecars.insert(sidecar.to_owned());
        }
        let number = spread.sidecars.len();
        let news = number > SPREAD && (spread.told_ms == 0 || now.0 - spread.told_ms > QUIET_MS);
        if news {
            spread.told_ms = now.0;
        }
        news.then_some(number as u64)
    }

    fn denied(&mut self, client: &str, now: UnixMillis) -> Option<u64> {
        let minute = now.0.div_euclid(60_000);
        let denials = self.clients.entry(client);
        if denials.minute != minute {
            // Minutes without a denial count, too; after a while they are all that is usual.
            let silent = (minute - denials.minute - 1).clamp(0, 20);
            #[expect(clippy::cast_precision_loss, reason = "denials of a minute, far below 2^52")]
            let last = denials.now as f64;
            denials.usual = denials.usual * (1.0 - SMOOTHING) + last * SMOOTHING;
            for _ in 0..silent {
                denials.usual *= 1.0 - SMOOTHING;
            }
            (denials.minute, denials.now, denials.told) = (minute, 0, false);
        }
        denials.now += 1;
        #[expect(clippy::cast_precision_loss, reason = "denials of a minute, far below 2^52")]
        let much = denials.now as f64 > denials.usual * SPIKE_TIMES;
        let news = !denials.told && denials.now >= SPIKE_LEAST && much;
        denials.told |= news;
        news.then_some(denials.now)
    }
}

/// Whether this is the first time within [`QUIET_MS`].
fn is_news(told: &mut Recent<i64>, key: &str, now: UnixMillis) -> bool {
    let last = told.entry(key);
    let news = *last == 0 || now.0 - *last > QUIET_MS;
    if news {
        *last = now.0;
    }
    news
}

/// A map of the keys that came first last: full, the oldest goes.
#[derive(Debug)]
struct Recent<V> {
    values: HashMap<String, V>,
    order: VecDeque<String>,
    capacity: usize,
}

impl<V: Default> Recent<V> {
    fn new(capacity: usize) -> Self {
        Self { values: HashMap::new(), order: VecDeque::new(), capacity }
    }

    fn entry(&mut self, key: &str) -> &mut V {
        if !self.values.contains_key(key) {
            if self.order.len() >= self.capacity
                && let Some(oldest) = self.order.pop_front()
            {
                self.values.remove(&oldest);
            }
            self.order.push_back(key.to_owned());
        }
        self.values.entry(key.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(outcome: &str, reason: &str, jti: &str, client: &str, sidecar: &str) -> Value {
        json!({
            "event": "decision", "outcome": outcome, "reason": reason, "sidecar": sidecar,
            "token": { "jti": jti, "client_id": client, "subject": "s" },
        })
    }

    fn kinds(found: &[Anomaly]) -> Vec<&'static str> {
        found.iter().map(|anomaly| anomaly.kind.as_str()).collect()
    }

    #[test]
    fn a_revoked_token_is_told_once_an_hour() {
        let mut detectors = Detectors::default();
        let denied = record("deny", "revoked_client", "j", "c", "s1");
        assert_eq!(kinds(&detectors.look(&denied, UnixMillis(1_000))), ["revoked_token_presented"]);
        assert!(detectors.look(&denied, UnixMillis(2_000)).is_empty());
        assert_eq!(detectors.look(&denied, UnixMillis(2_000 + QUIET_MS)).len(), 1);
        let other = record("deny", "expired", "k", "c", "s1");
        assert!(detectors.look(&other, UnixMillis(3_000)).is_empty());
        let replayed = record("deny", "dpop_proof_replayed", "k", "c", "s1");
        assert_eq!(kinds(&detectors.look(&replayed, UnixMillis(3_000))), ["proof_replay"]);
    }

    #[test]
    fn a_token_at_many_sidecars_within_a_minute_is_told() {
        let mut detectors = Detectors::default();
        let mut used = |sidecar: usize, at: i64| {
            kinds(
                &detectors.look(&record("permit", "permit", "j", "c", &sidecar.to_string()), UnixMillis(at)),
            )
        };
        for sidecar in 0..SPREAD {
            assert!(used(sidecar, 1_000).is_empty());
        }
        assert!(used(0, 1_100).is_empty(), "the same again");
        assert_eq!(used(SPREAD, 1_200), ["token_spread"]);
        assert!(used(SPREAD + 1, 1_300).is_empty(), "told once");
        for sidecar in 0..3 * SPREAD {
            let at = 200_000 + i64::try_from(sidecar).unwrap() * SPREAD_MS / 10;
            assert!(used(sidecar, at).is_empty(), "slowly over many minutes");
        }
    }

    #[test]
    fn a_spike_is_many_times_the_usual() {
        let mut detectors = Detectors::default();
        let mut denials = |number: u64, minute: i64| {
            let denied = record("deny", "expired", "j", "c", "s");
            let found = (0..number).flat_map(|_| detectors.look(&denied, UnixMillis(minute * 60_000)));
            found.collect::<Vec<_>>().len()
        };
        for minute in 1..10 {
            assert_eq!(denials(30, minute), 0, "usual");
        }
        assert_eq!(denials(200, 10), 0, "more, but not ten times as much");
        assert_eq!(denials(2_000, 11), 1, "told once a minute");
    }

    #[test]
    fn memory_is_bounded() {
        let mut detectors = Detectors::default();
        for number in 0..3 * TOKENS {
            let jti = number.to_string();
            detectors.look(&record("deny", "revoked_token", &jti, &jti, &jti), UnixMillis(1_000));
        }
        assert!(detectors.presented.values.len() <= TOKENS && detectors.spread.values.len() <= TOKENS);
        assert!(detectors.clients.values.len() <= CLIENTS);
        assert_eq!(detectors.presented.values.len(), detectors.presented.order.len());
    }
}
