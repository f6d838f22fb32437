//! What follows the store: JetStream and files. Both read what is written, at their own pace; one that is away, slow or full
//! stands still and goes on later from where it was. Nothing waits for them.

use std::time::Duration;

use super::Audit;

mod files;
mod stream;

pub use files::{FileSettings, FileSink};
pub use stream::{StreamSettings, StreamSink};

/// How often a follower looks without being told: what other processes left.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two attempts at a sink that does not take anything.
const RETRY: Duration = Duration::from_secs(1);

impl Audit {
    /// Returns when something was appended, or after a while.
    async fn until_appended(&self) {
        let _ = tokio::time::timeout(PERIOD, self.0.appended.notified()).await;
    }
}
