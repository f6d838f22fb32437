//! The admission webhook: an HTTPS listener that answers the API server's reviews of new pods.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use kube::api::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificate::Current;
use crate::health::Health;
use crate::injection::Template;

/// Bytes of a review; a pod is at most 1.5 MiB in etcd.
const LARGEST: usize = 4 * 1024 * 1024;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 512;
/// For a handshake, and for what is under way at the end.
const BOUND: Duration = Duration::from_secs(10);

/// Answers reviews.
#[derive(Debug)]
pub struct Injector {
    /// What is injected.
    pub template: Template,
    /// Whether a pod whose annotations are wrong is refused.
    pub refuse_wrong_pods: bool,
    /// Counts.
    pub health: Arc<Health>,
}

impl Injector {
    /// The routes: `POST /mutate`.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new().route("/mutate", post(mutate)).layer(DefaultBodyLimit::max(LARGEST)).with_state(self)
    }

    fn answer(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let Some(object) = &request.object else { return response };
        let injected = serde_json::to_value(object)
            .map_err(|error| error.to_string())
            .and_then(|pod| Ok((self.template.inject(&pod).map_err(|wrong| wrong.to_string())?, pod)));
        match injected {
            Ok((None, _)) => {
                self.health.admitted("unchanged");
                response
            }
            Ok((Some(after), before)) => self.patched(response, request, &before, &after),
            Err(wrong) => self.wrong(response, request, wrong),
        }
    }

    fn patched(
        &self,
        response: AdmissionResponse,
        request: &AdmissionRequest<DynamicObject>,
        before: &Value,
        after: &Value,
    ) -> AdmissionResponse {
        match response.with_patch(json_patch::diff(before, after)) {
            Ok(response) => {
                self.health.admitted("injected");
                response
            }
            Err(error) => self.wrong(AdmissionResponse::from(request), request, error.to_string()),
        }
    }

    fn wrong(
        &self,
        mut response: AdmissionResponse,
        request: &AdmissionRequest<DynamicObject>,
        wrong: String,
    ) -> AdmissionResponse {
        self.health.admitted("refused");
        tracing::warn!(namespace = request.namespace, pod = request.name, wrong, "a pod cannot be injected");
        if self.refuse_wrong_pods {
            return response.deny(wrong);
        }
        response.warnings = Some(vec![format!("no ATM sidecar: {wrong}")]);
        response
    }
}

async fn mutate(
    State(injector): State<Arc<Injector>>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Result<Json<AdmissionReview<DynamicObject>>, (StatusCode, String)> {
    let request: AdmissionRequest<DynamicObject> =
        review.try_into().map_err(|_| (StatusCode::BAD_REQUEST, "the review holds no request".to_owned()))?;
    Ok(Json(injector.answer(&request).into_review()))
}

/// Serves until `stop`, then waits for what is under way.
pub async fn serve(
    listener: TcpListener,
    certificate: Arc<Current>,
    router: Router,
    stop: CancellationToken,
) {
    let config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(certificate);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (connections, tasks) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), TaskTracker::new());
    while let Some(accepted) = stop
        .run_until_cancelled(async {
            let permit = Arc::clone(&connections).acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        })
        .await
        .flatten()
    {
        let (Ok((stream, _)), permit) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await; // no more descriptors: let some go
            continue;
        };
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        tasks.spawn(async move {
            let _permit = permit;
            let Ok(Ok(stream)) = tokio::time::timeout(BOUND, acceptor.accept(stream)).await else { return };
            // A connection that breaks has told its client by that.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(BOUND, tasks.wait()).await; // what has not ended by now is cut off
}
