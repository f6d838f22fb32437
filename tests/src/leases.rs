//! Thousands of sidecars as the control plane sees them: what each of them reports, over one connection to NATS.
//!
//! What these leave out is everything but the reports: they hold a lease, and say what they are told to say. For subscribers that
//! follow the feed see [`crate::simulation`].

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atm_proto::report::{SidecarCondition, SidecarReport};
use atm_proto::subject::Subjects;
use prost::Message;
use tokio::task::JoinHandle;

/// Time between two reports of each, while nothing changes; a lease runs out after ten seconds.
const REPORT_EVERY: Duration = Duration::from_secs(3);

/// Sidecars that hold leases.
#[derive(Debug)]
pub struct Leases {
    client: async_nats::Client,
    subjects: Subjects,
    /// None: silent.
    reports: Arc<Mutex<Vec<Option<SidecarReport>>>>,
    renewing: JoinHandle<()>,
}

impl Leases {
    /// So many sidecars, `leased-00000` and on, that have applied `revision` of `epoch` (16 bytes) and renew their leases.
    pub async fn start(nats_url: &str, number: usize, epoch: &[u8], revision: u64) -> Self {
        let client = async_nats::connect(nats_url).await.expect("NATS is there");
        let subjects = Subjects::new("default").expect("a realm group");
        let report = |number| SidecarReport {
            sidecar_id: Self::id(number),
            version: env!("CARGO_PKG_VERSION").into(),
            epoch: epoch.to_vec(),
            applied_revision: revision,
            ready: true,
            condition: SidecarCondition::Level.into(),
            revocations: 10_000_000,
            feed_age_ms: 500,
            ..Default::default()
        };
        let reports: Vec<_> = (0..number).map(|number| Some(report(number))).collect();
        let reports = Arc::new(Mutex::new(reports));
        let renewing = tokio::spawn(renew(client.clone(), subjects.clone(), Arc::clone(&reports)));
        Self { client, subjects, reports, renewing }
    }

    /// The name of one of them.
    pub fn id(number: usize) -> String {
        format!("leased-{number:05}")
    }

    /// Changes what these say, and has them say it.
    pub async fn change(&self, which: Range<usize>, change: impl Fn(&mut SidecarReport)) {
        let changed: Vec<_> = {
            let mut reports = self.reports.lock().expect("nobody panics with the lock");
            let changed = reports[which].iter_mut().flatten();
            changed
                .map(|report| {
                    change(report);
                    report.clone()
                })
                .collect()
        };
        send(&self.client, &self.subjects, changed).await;
    }

    /// These report no more.
    pub fn silence(&self, which: Range<usize>) {
        self.reports.lock().expect("nobody panics with the lock")[which].fill(None);
    }

    /// Reports once under each of so many names that nobody else has.
    pub async fn flood(&self, names: usize) {
        let stranger =
            |number| SidecarReport { sidecar_id: format!("stranger-{number}"), ..Default::default() };
        send(&self.client, &self.subjects, (0..names).map(stranger).collect()).await;
    }

    /// Bytes of one report.
    pub fn report_bytes(&self) -> usize {
        let reports = self.reports.lock().expect("nobody panics with the lock");
        reports.iter().flatten().map(Message::encoded_len).max().unwrap_or_default()
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn renew(
    client: async_nats::Client,
    subjects: Subjects,
    reports: Arc<Mutex<Vec<Option<SidecarReport>>>>,
) {
    let mut turns = tokio::time::interval(REPORT_EVERY);
    loop {
        turns.tick().await;
        let due: Vec<_> =
            reports.lock().expect("nobody panics with the lock").iter().flatten().cloned().collect();
        send(&client, &subjects, due).await;
    }
}

async fn send(client: &async_nats::Client, subjects: &Subjects, reports: Vec<SidecarReport>) {
    for report in reports {
        let subject = subjects.fleet(&report.sidecar_id).expect("a name of ours");
        let _ = client.publish(subject, report.encode_to_vec().into()).await; // NATS may be down just now
    }
    let _ = client.flush().await;
}
