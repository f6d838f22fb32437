//! The connection to NATS, which may be away at any time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Event, ServerAddr};

use super::{FeedError, Shared};

/// How the carrier stands. Anything but connected is a degraded state, never an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    /// Since the start there was no connection yet.
    Connecting,
    /// Connected, and the stream takes what is published.
    Connected,
    /// Not connected, or JetStream refuses; what and why.
    Degraded(String),
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("nats not reached yet"),
            Self::Connected => f.write_str("connected"),
            Self::Degraded(why) => f.write_str(why),
        }
    }
}

impl Shared {
    pub(super) fn set_carrier(&self, carrier: Carrier) {
        let changed = self.carrier.send_if_modified(|current| {
            let changed = *current != carrier;
            if changed {
                current.clone_from(&carrier);
            }
            changed
        });
        match carrier {
            Carrier::Degraded(why) if changed => tracing::warn!(why, "the feed's carrier is degraded"),
            Carrier::Connected if changed => tracing::info!("the feed's carrier is connected"),
            _ => {}
        }
    }
}

pub(super) fn is_connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

/// A client that connects in the background and for ever.
pub(super) async fn connect(shared: &Arc<Shared>) -> Result<Client, FeedError> {
    let settings = &shared.settings;
    let failed = |problem: String| FeedError::Connection { url: redacted(&settings.nats_url), problem };
    let options = settings.nats_access.options().map_err(|error| failed(error.to_string()))?;
    // Weak: the client outlives nothing, and holds no cycle.
    let weak = Arc::downgrade(shared);
    options
        .name("atm-control-plane")
        .custom_inbox_prefix("_INBOX.control-plane")
        .retry_on_initial_connect()
        .connection_timeout(Duration::from_secs(2))
        .request_timeout(Some(Duration::from_secs(2)))
        .ping_interval(Duration::from_secs(5))
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis(25 << attempts.min(5)) // to 800 ms: sidecars are fresh for 3 s
        })
        .event_callback(move |event| {
            let shared = weak.upgrade();
            async move {
                if let Some(shared) = shared {
                    on_event(&shared, &event);
                }
            }
        })
        .connect(servers(&settings.nats_url).map_err(|error| failed(error.to_string()))?)
        .await
        .map_err(|error| failed(error.to_string()))
}

/// The servers of a URL, or of several with commas.
fn servers(urls: &str) -> std::io::Result<Vec<ServerAddr>> {
    urls.split(',').map(|url| url.trim().parse()).collect()
}

fn on_event(shared: &Shared, event: &Event) {
    match event {
        // The relay calls it connected, once the stream answers.
        Event::Connected => shared.sequenced.notify_one(),
        Event::Disconnected => shared.set_carrier(Carrier::Degraded("nats disconnected".to_owned())),
        other => tracing::warn!(event = %other, "nats"),
    }
}

/// A URL may carry a password.
fn redacted(url: &str) -> String {
    url.split(',')
        .map(|url| match (url.find("://"), url.rfind('@')) {
            (Some(scheme), Some(at)) if scheme + 3 < at => format!("{}***{}", &url[..scheme + 3], &url[at..]),
            (None, Some(at)) => format!("***{}", &url[at..]),
            _ => url.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        assert_eq!(redacted("nats://u:secret@h:1,nats://h:2"), "nats://***@h:1,nats://h:2");
        assert_eq!(redacted("u:secret@h"), "***@h");
    }
}
