//! A client of ext_authz, for suites that do not need Envoy between.

use std::collections::HashMap;
use std::path::Path;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use tonic::transport::Channel;

/// How long a sidecar that may be down is waited for.
const BOUND: std::time::Duration = std::time::Duration::from_secs(2);

/// What the sidecar said of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The HTTP status of the denial; 200 for a permit.
    pub status: u16,
    /// The reason code of the denial; `permit` for a permit.
    pub reason: String,
}

impl Verdict {
    /// Whether the request may pass.
    pub fn is_permit(&self) -> bool {
        self.status == 200
    }
}

/// A connection to a sidecar's gRPC listener; clones share it.
#[derive(Debug, Clone)]
pub struct Authz {
    client: AuthorizationClient<Channel>,
}

impl Authz {
    /// Connects to `host:port`.
    pub async fn connect(address: &str) -> Self {
        let client = AuthorizationClient::connect(format!("http://{address}"))
            .await
            .expect("the sidecar's gRPC listener");
        Self { client }
    }

    /// At a unix socket of a sidecar that may be down; connects when it is asked.
    pub fn lazy(socket: &Path) -> Self {
        let socket = format!("unix:{}", socket.display());
        let endpoint = tonic::transport::Endpoint::from_shared(socket).expect("a path");
        let endpoint = endpoint.connect_timeout(BOUND).timeout(BOUND);
        Self { client: AuthorizationClient::new(endpoint.connect_lazy()) }
    }

    /// As [`Self::check_token`]; none where the sidecar does not answer.
    pub async fn try_check_token(&self, token: &str) -> Option<Verdict> {
        let headers = HashMap::from([("authorization".to_owned(), format!("Bearer {token}"))]);
        let request = request("GET", "/orders", headers);
        self.client.clone().check(request).await.ok().map(|answer| verdict(&answer.into_inner()))
    }

    /// Asks for `GET /orders` with this bearer token.
    pub async fn check_token(&self, token: &str) -> Verdict {
        let headers = HashMap::from([("authorization".to_owned(), format!("Bearer {token}"))]);
        self.check("GET", "/orders", headers).await
    }

    /// Asks for any request at the host `orders.test`.
    pub async fn check(&self, method: &str, target: &str, headers: HashMap<String, String>) -> Verdict {
        let request = request(method, target, headers);
        let answer = self.client.clone().check(request).await.expect("a denial is no transport error");
        verdict(&answer.into_inner())
    }
}

fn request(method: &str, target: &str, mut headers: HashMap<String, String>) -> CheckRequest {
    headers.insert(":method".to_owned(), method.to_owned());
    headers.insert(":path".to_owned(), target.to_owned());
    headers.insert(":authority".to_owned(), "orders.test".to_owned());
    let http = HttpRequest {
        method: method.to_owned(),
        path: target.to_owned(),
        host: "orders.test".to_owned(),
        scheme: "http".to_owned(),
        protocol: "HTTP/1.1".to_owned(),
        headers,
        ..Default::default()
    };
    let attributes =
        AttributeContext { request: Some(Request { time: None, http: Some(http) }), ..Default::default() };
    CheckRequest { attributes: Some(attributes) }
}

fn verdict(response: &CheckResponse) -> Verdict {
    let code = response.status.as_ref().expect("a missing status means OK to Envoy").code;
    match &response.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => {
            assert_ne!(code, 0, "a denied response beside an OK status is a permit to Envoy: {response:?}");
            Verdict {
                status: u16::try_from(denied.status.as_ref().map_or(403, |status| status.code)).unwrap(),
                reason: denied
                    .headers
                    .iter()
                    .filter_map(|option| option.header.as_ref())
                    .find(|header| header.key == "x-atm-reason")
                    .map_or_else(|| "(none)".to_owned(), header_text),
            }
        }
        _ if code == 0 => Verdict { status: 200, reason: "permit".to_owned() },
        _ => panic!("a denial without a denied response: {response:?}"),
    }
}

fn header_text(header: &envoy_types::pb::envoy::config::core::v3::HeaderValue) -> String {
    if header.value.is_empty() {
        String::from_utf8_lossy(&header.raw_value).into_owned()
    } else {
        header.value.clone()
    }
}
