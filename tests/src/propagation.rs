//! How soon a revocation is in force at a sidecar.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::authz::Authz;
use crate::dev::DevClient;
use crate::figures::row;

/// How long each of some revocations took, measured one after the other.
#[derive(Debug, Default)]
pub struct Propagation {
    /// From the call to the first refusal.
    pub from_call: Vec<Duration>,
    /// From the call's return to the first refusal.
    pub from_return: Vec<Duration>,
}

impl Propagation {
    /// Issues, uses and revokes `count` tokens, and asks for each until it is refused.
    ///
    /// # Panics
    /// Where a token is not let through before, or still is ten seconds after.
    pub async fn measure(client: &DevClient, authz: &Authz, count: usize) -> Self {
        let mut measured = Self::default();
        for done in 0..count {
            if done % 100 == 0 {
                eprintln!("revocations: {done} of {count}");
            }
            let token = client.issue().await.expect("a token");
            assert!(
                authz.check_token(&token).await.is_permit(),
                "a token that was not revoked is let through"
            );
            let body = json!({ "token": token });
            let started = Instant::now();
            let answer = client.admin("POST", "/admin/v1/revocations", &body).await.expect("an answer");
            assert!(matches!(answer.status, 200..=202), "{} {}", answer.status, answer.text());
            let returned = Instant::now();
            while authz.check_token(&token).await.is_permit() {
                assert!(returned.elapsed() < Duration::from_secs(10), "a revoked token is still let through");
            }
            measured.from_call.push(started.elapsed());
            measured.from_return.push(returned.elapsed());
        }
        measured
    }

    /// Two lines: how many, median, 99th percentile and maximum.
    pub fn print(mut self, of: &str) {
        row(&format!("{of}: call to first refusal"), &mut self.from_call);
        row(&format!("{of}: return of the call to first refusal"), &mut self.from_return);
    }
}
