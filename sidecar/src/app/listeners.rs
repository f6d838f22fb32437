//! What the sidecar listens on: bound before anything else starts, served once everything does.

use std::fs::Permissions;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use super::{Bound, StartError};
use crate::admin::{self, Admin};
use crate::config::{HttpSettings, Listen};
use crate::ext_authz::{self, Judge, grpc};
use crate::state::StateReader;

pub(super) struct Listeners {
    grpc_unix: Option<(PathBuf, grpc::Listener)>,
    grpc: Option<TcpListener>,
    http: Option<TcpListener>,
    settings: HttpSettings,
    admin: TcpListener,
}

impl Listeners {
    pub(super) fn bind(listen: &Listen) -> Result<Self, StartError> {
        Ok(Self {
            admin: tcp("listen.admin", listen.admin)?,
            grpc: listen.grpc.map(|address| tcp("listen.grpc", address)).transpose()?,
            http: listen.http.map(|address| tcp("listen.http", address)).transpose()?,
            settings: listen.http_settings.clone(),
            grpc_unix: match &listen.grpc_unix {
                Some(path) => Some((path.clone(), grpc::Listener::Unix(unix(path, listen.grpc_unix_mode)?))),
                None => None,
            },
        })
    }

    pub(super) fn bound(&self) -> io::Result<Bound> {
        Ok(Bound {
            grpc_unix: self.grpc_unix.as_ref().map(|(path, _)| path.clone()),
            grpc: self.grpc.as_ref().map(TcpListener::local_addr).transpose()?,
            http: self.http.as_ref().map(TcpListener::local_addr).transpose()?,
            admin: self.admin.local_addr()?,
        })
    }

    pub(super) fn serve(
        self,
        judge: &Arc<Judge>,
        admin: Admin,
        reader: &StateReader,
        workers: usize,
        stop: &CancellationToken,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> io::Result<Vec<std::thread::JoinHandle<()>>> {
        let (reporter, health) = tonic_health::server::health_reporter();
        tasks.spawn(report_health(reporter, reader.clone(), stop.clone()));
        tasks.spawn(http(self.admin, admin::router(admin), stop.clone())?);
        if let Some(listener) = self.http {
            tasks.spawn(http(
                listener,
                ext_authz::http::router(Arc::clone(judge), self.settings),
                stop.clone(),
            )?);
        }
        let mut threads = Vec::new();
        for listener in
            self.grpc_unix.map(|(_, listener)| listener).into_iter().chain(self.grpc.map(grpc::Listener::Tcp))
        {
            threads.extend(grpc::serve(&listener, judge, &health, workers, stop)?);
        }
        Ok(threads)
    }
}

fn tcp(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source: io::Error| StartError::Listen {
        key,
        address: address.to_string(),
        source,
        advice: "free the port or configure another one",
    })
}

/// Binds a unix socket. One that a dead process left behind is removed; one that answers is somebody's.
fn unix(path: &Path, mode: Option<u32>) -> Result<UnixListener, StartError> {
    let refuse = |source: io::Error, advice| StartError::Listen {
        key: "listen.grpcUnix",
        address: path.display().to_string(),
        source,
        advice,
    };
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(refuse(source, "what is there is no socket; remove it or configure another path"));
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)
                    .map_err(|source| refuse(source, "remove the socket that was left behind"))?;
            }
            Ok(_) => {
                let source = io::Error::from(io::ErrorKind::AddrInUse);
                return Err(refuse(
                    source,
                    "another process answers there; stop it or configure another path",
                ));
            }
            Err(source) => {
                return Err(refuse(source, "make the socket accessible to this user, or remove it"));
            }
        }
    }
    let listener = UnixListener::bind(path)
        .map_err(|source| refuse(source, "make the directory and let this user write to it"))?;
    if let Some(mode) = mode {
        std::fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(|source| refuse(source, "use a file system that keeps permissions"))?;
    }
    listener.set_nonblocking(true).map_err(|source| refuse(source, "try again"))?;
    Ok(listener)
}

fn http(
    listener: TcpListener,
    router: axum::Router,
    stop: CancellationToken,
) -> io::Result<impl Future<Output = ()>> {
    use axum::serve::ListenerExt;
    let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    Ok(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "a listener ended");
        }
    })
}

/// Keeps grpc.health in step with readiness.
async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    reader: StateReader,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    let mut told = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let ready = reader.ready();
        if told != Some(ready) {
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in ["", "envoy.service.auth.v3.Authorization"] {
                reporter.set_service_status(service, status).await;
            }
            let connected = reader.status().connected.load(Ordering::Relaxed);
            tracing::info!(ready, revision = reader.load().position.revision, connected, "readiness");
            told = Some(ready);
        }
    }
}
