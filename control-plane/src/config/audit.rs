//! The section `audit`: how events are kept, and what follows them.

use std::path::PathBuf;
use std::time::Duration;

use super::{Reader, boolean, number, path};
use crate::retention::MAX_DAYS;

/// How the audit chain is kept and where it goes.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// Who writes the chain, for people; the same over restarts.
    pub instance: String,
    /// Between two signed checkpoints.
    pub checkpoint_every: Duration,
    /// How long events are kept in the store; none: for ever.
    pub retention: Option<Duration>,
    /// File with the Ed25519 seed that signs checkpoints; none: the feed's.
    pub signing_key_file: Option<PathBuf>,
    /// The stream `ATM_AUDIT`: bytes and age that it keeps; none: no stream.
    pub stream: Option<(i64, Duration)>,
    /// Files of JSON Lines; none: no files.
    pub files: Option<AuditFiles>,
}

/// Rotated files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFiles {
    /// A directory of their own.
    pub directory: PathBuf,
    /// Bytes of a file at which the next one begins.
    pub max_bytes: u64,
    /// Files kept.
    pub keep: usize,
}

const MIB: u64 = 1024 * 1024;
const DAY: u64 = 24 * 60 * 60;

pub(super) fn read(reader: &mut Reader<'_>) -> AuditConfig {
    let instance = reader.optional("audit.instance", |text| {
        let fits = text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if fits {
            Ok(text.to_owned())
        } else {
            Err("must be at most 64 letters, digits or any of -._".to_owned())
        }
    });
    let checkpoint = reader.optional("audit.checkpointSeconds", |text| number(text, 1..=3_600));
    let retention =
        reader.optional("audit.retentionDays", |text| number(text, 0..=MAX_DAYS.into())).unwrap_or(400);
    let signing_key_file = reader.optional("audit.signingKeyFile", path);
    let stream = reader.optional("audit.stream", boolean).unwrap_or(true);
    let stream_mib =
        reader.optional("audit.streamMaxMiB", |text| number(text, 1..=1_048_576)).unwrap_or(1_024);
    let stream_days = reader.optional("audit.streamMaxDays", |text| number(text, 1..=3_650)).unwrap_or(30);
    let directory = reader.optional("audit.files.directory", path);
    let max_mib = reader.optional("audit.files.maxMiB", |text| number(text, 1..=4_096)).unwrap_or(64);
    let keep = reader.optional("audit.files.keep", |text| number(text, 2..=10_000)).unwrap_or(32);
    AuditConfig {
        instance: instance.unwrap_or_else(host_name),
        checkpoint_every: Duration::from_secs(checkpoint.unwrap_or(60)),
        retention: (retention > 0).then(|| Duration::from_secs(retention * DAY)),
        signing_key_file,
        stream: stream.then(|| {
            (i64::try_from(stream_mib * MIB).unwrap_or(i64::MAX), Duration::from_secs(stream_days * DAY))
        }),
        files: directory.map(|directory| AuditFiles {
            directory,
            max_bytes: max_mib * MIB,
            keep: usize::try_from(keep).unwrap_or(usize::MAX),
        }),
    }
}

/// What the system calls itself; a pod's name in Kubernetes.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).take(64).collect();
    if name.is_empty() { "control-plane".to_owned() } else { name }
}
