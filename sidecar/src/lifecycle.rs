//! Start and stop: the signals that end the program, and how long what is under way may take.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long connections may drain after a stop was asked for. Envoy keeps its connection open for ever: what is answered
/// in this time is answered, then the connection is closed.
pub const DRAIN: Duration = Duration::from_secs(5);

/// A token that is cancelled by SIGTERM or SIGINT.
pub fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(stop)
}
