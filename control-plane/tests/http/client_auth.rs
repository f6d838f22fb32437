//! Client authentication: RFC 6749 §2.3, RFC 7521 §4.2, RFC 7523 §3, RFC 8705 §2.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::{Registered, Server, answer, assert_oauth_error, assert_problem, part};
use crate::keys::{SigningKey, now, unique};
use crate::sessions::LISTEN;

const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

async fn key_client(server: &Server, key: &SigningKey) -> String {
    let fields = json!({
        "audiences": ["api"], "token_endpoint_auth_method": "private_key_jwt", "jwks": key.jwks(),
    });
    let (status, body) = answer(server.admin("POST", "/admin/v1/clients").json(&fields)).await;
    assert_eq!(status, 201, "{body}");
    assert!(body.get("client_secret").is_none(), "there is none");
    body["client_id"].as_str().unwrap().to_owned()
}

fn by_assertion(server: &Server, assertion: &str, more: &[(&str, &str)]) -> reqwest::RequestBuilder {
    let mut form = vec![
        ("grant_type", "client_credentials"),
        ("client_assertion_type", TYPE),
        ("client_assertion", assertion),
    ];
    form.extend(more);
    server.http.post(server.oauth("/oauth2/token")).form(&form)
}

#[tokio::test]
async fn an_assertion_authenticates_once() {
    let server = Server::start().await;
    let key = SigningKey::new();
    let client = key_client(&server, &key).await;
    let assertion = key.assertion(&client, &client, &json!({}));
    let (status, body) = answer(by_assertion(&server, &assertion, &[])).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(part(body["access_token"].as_str().unwrap(), 1)["client_id"], client);
    assert_oauth_error(by_assertion(&server, &assertion, &[]), 401, "invalid_client").await;
    // RFC 7521 §4.2: client_id is optional, and must be the same where it is there.
    let named = key.assertion(&client, &client, &json!({}));
    assert_eq!(answer(by_assertion(&server, &named, &[("client_id", &client)])).await.0, 200);
    let misnamed = key.assertion(&client, &client, &json!({}));
    assert_oauth_error(by_assertion(&server, &misnamed, &[("client_id", "another")]), 401, "invalid_client")
        .await;
    // Remembered through a restart.
    let server = server.restarted().await;
    assert_oauth_error(by_assertion(&server, &assertion, &[]), 401, "invalid_client").await;
}

#[tokio::test]
async fn a_client_may_publish_its_keys_itself() {
    let (first, second) = (SigningKey::new(), SigningKey::named("k2"));
    let published = Arc::new(Mutex::new(Some(first.jwks())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/keys", listener.local_addr().unwrap());
    let serve = {
        let published = Arc::clone(&published);
        move || {
            let keys = published.lock().unwrap().clone();
            async move { keys.map(axum::Json).ok_or(axum::http::StatusCode::SERVICE_UNAVAILABLE) }
        }
    };
    let router = axum::Router::new().route("/keys", axum::routing::get(serve));
    tokio::spawn(async move { axum::serve(listener, router).await });

    let server = Server::with(&format!("{LISTEN}\nclientKeys: {{ allowPrivateAddresses: true }}")).await;
    let fields = json!({
        "audiences": ["api"], "token_endpoint_auth_method": "private_key_jwt", "jwks_uri": uri,
    });
    let (status, body) = answer(server.admin("POST", "/admin/v1/clients").json(&fields)).await;
    assert_eq!((status, &body["jwks_uri"]), (201, &json!(uri)), "{body}");
    let client = body["client_id"].as_str().unwrap();
    let by = |key: &SigningKey| by_assertion(&server, &key.assertion(client, client, &json!({})), &[]);
    assert_eq!(answer(by(&first)).await.0, 200);
    assert_oauth_error(by(&second), 401, "invalid_client").await;
    // What was had once is enough through an outage; what was never had is no refusal, but a 503.
    *published.lock().unwrap() = None;
    assert_eq!(answer(by(&first)).await.0, 200);
    let server = server.restarted().await;
    let fresh = by_assertion(&server, &first.assertion(client, client, &json!({})), &[]);
    assert_oauth_error(fresh, 503, "temporarily_unavailable").await;
}

/// RFC 7523 §3, over the wire; each rule by itself is tested beside the code.
#[tokio::test]
async fn an_assertion_for_another_audience_or_time_is_refused() {
    let server = Server::start().await;
    let (key, other) = (SigningKey::new(), SigningKey::new());
    let client = key_client(&server, &key).await;
    for changes in [
        json!({ "aud": "http://127.0.0.1:8080/oauth2/token" }),
        json!({ "aud": ["http://127.0.0.1:8080", "https://another.example"] }),
        json!({ "exp": now() - 3_600 }),
        json!({ "exp": null }),
        json!({ "jti": null }),
        json!({ "sub": "another" }),
    ] {
        let assertion = key.assertion(&client, &client, &changes);
        assert_oauth_error(by_assertion(&server, &assertion, &[]), 401, "invalid_client").await;
    }
    let forged = other.assertion(&client, &client, &json!({}));
    assert_oauth_error(by_assertion(&server, &forged, &[]), 401, "invalid_client").await;
    let form = |form: &str| server.form("/oauth2/token", form);
    let assertion = key.assertion(&client, &client, &json!({}));
    let without_type = format!("grant_type=client_credentials&client_assertion={assertion}");
    assert_oauth_error(form(&without_type), 400, "invalid_request").await;
    let both = by_assertion(&server, &assertion, &[("client_secret", "x"), ("client_id", &client)]);
    assert_oauth_error(both, 400, "invalid_request").await;
}

#[tokio::test]
async fn a_client_authenticates_as_it_is_registered_and_in_no_other_way() {
    let server = Server::start().await;
    let key = SigningKey::new();
    let by_key = key_client(&server, &key).await;
    let by_secret = server.client().await;
    // One with a secret has no assertion to show, one with a key no secret, and none of them is a public client.
    let assertion = key.assertion(&by_secret.id, &by_secret.id, &json!({}));
    assert_oauth_error(by_assertion(&server, &assertion, &[]), 401, "invalid_client").await;
    let with_secret = Registered { id: by_key.clone(), secret: by_secret.secret.clone() };
    let grant = [("grant_type", "client_credentials")];
    assert_oauth_error(server.post("/oauth2/token", &with_secret, &grant), 401, "invalid_client").await;
    for id in [&by_key, &by_secret.id] {
        let bare = server.form("/oauth2/token", &format!("grant_type=client_credentials&client_id={id}"));
        assert_oauth_error(bare, 401, "invalid_client").await;
    }
}

#[tokio::test]
async fn two_secrets_overlap_and_a_third_ends_the_first() {
    let server = Server::start().await;
    let first = server.client().await;
    let path = format!("/admin/v1/clients/{}/secret", first.id);
    let rotate = async |body: Value| {
        let (status, body) = answer(server.admin("POST", &path).json(&body)).await;
        assert_eq!(status, 200, "{body}");
        Registered { id: first.id.clone(), secret: body["client_secret"].as_str().unwrap().to_owned() }
    };
    let works = async |client: &Registered| {
        answer(server.post("/oauth2/token", client, &[("grant_type", "client_credentials")])).await.0 == 200
    };
    let second = rotate(json!({})).await;
    assert!(works(&first).await && works(&second).await);
    let third = rotate(json!({ "overlap_seconds": 60 })).await;
    assert!(!works(&first).await && works(&second).await && works(&third).await);
    let (_, shown) = answer(server.admin("GET", &format!("/admin/v1/clients/{}", first.id))).await;
    assert!(shown["previous_secret_expires_at"].is_i64() && shown.get("client_secret").is_none());
    assert_eq!(answer(server.admin("DELETE", &format!("{path}/previous"))).await.0, 200);
    assert!(!works(&second).await && works(&third).await);
    let fourth = rotate(json!({ "overlap_seconds": 0 })).await;
    assert!(!works(&third).await && works(&fourth).await);
    assert_problem(server.admin("POST", &path).json(&json!({ "overlap_seconds": 99_999_999 })), 422).await;
}

#[tokio::test]
async fn secrets_are_shown_once_and_never_again() {
    let server = Server::start().await;
    let client = server.client().await;
    for path in ["/admin/v1/clients".to_owned(), format!("/admin/v1/clients/{}", client.id)] {
        let text = server.admin("GET", &path).send().await.unwrap().text().await.unwrap();
        assert!(!text.contains(&client.secret) && !text.contains("hash"), "{path}");
    }
    let database = std::fs::read(server.dir.path().join("atm.db")).unwrap();
    let wal = std::fs::read(server.dir.path().join("atm.db-wal")).unwrap_or_default();
    let body = &client.secret.as_bytes()[7..];
    for file in [database, wal] {
        assert!(!file.windows(body.len()).any(|window| window == body), "only hashes are kept");
    }
}

/// RFC 8705 §2 and §3: both ways, and the tokens that come of them.
#[tokio::test]
async fn a_certificate_authenticates_and_binds_the_token() {
    let pki = Pki::new();
    let server = pki.server().await;
    let url = server.oauth("/oauth2/token").replace("http://", "https://");
    let named = json!({
        "client_id": "by-name", "audiences": ["api"], "token_endpoint_auth_method": "tls_client_auth",
        "tls_client_auth_san_dns": "client.example", "tls_client_certificate_bound_access_tokens": true,
    });
    let own = json!({
        "client_id": "by-self", "audiences": ["api"], "token_endpoint_auth_method": "self_signed_tls_client_auth",
        "jwks": { "keys": [{ "x5t#S256": pki.self_signed.thumbprint() }] },
    });
    for fields in [named, own] {
        let (status, body) = answer(server.admin("POST", "/admin/v1/clients").json(&fields)).await;
        assert_eq!(status, 201, "{body}");
    }
    let ask = |identity: Option<&Identity>, id: &str| {
        let form = [("grant_type", "client_credentials"), ("client_id", id)];
        pki.http(identity).post(&url).form(&form)
    };
    let (status, body) = answer(ask(Some(&pki.issued), "by-name")).await;
    assert_eq!(status, 200, "{body}");
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(part(token, 1)["cnf"]["x5t#S256"], pki.issued.thumbprint());
    let (status, body) = answer(ask(Some(&pki.self_signed), "by-self")).await;
    assert_eq!(status, 200, "{body}");
    assert!(
        part(body["access_token"].as_str().unwrap(), 1).get("cnf").is_none(),
        "not registered for binding"
    );
    for (identity, id) in [
        (None, "by-name"),
        (None, "by-self"),
        (Some(&pki.self_signed), "by-name"), // nobody vouches for its name
        (Some(&pki.stranger), "by-name"),    // another authority
        (Some(&pki.issued), "by-self"),
    ] {
        assert_oauth_error(ask(identity, id), 401, "invalid_client").await;
    }
}

/// A proxy in front that ends TLS is believed where it is configured, and nobody else.
#[tokio::test]
async fn a_forwarded_certificate_counts_from_a_configured_proxy_only() {
    let pki = Pki::new();
    let ca = pki.dir.path().join("ca.pem").display().to_string();
    let with = |networks: &str| {
        format!(
            "listen: {{ oauth: '127.0.0.1:0', admin: '127.0.0.1:0', clientCaFile: {ca} }}\n\
             trustedProxy: {{ networks: '{networks}', certificateHeader: x-client-cert }}"
        )
    };
    let fields = json!({
        "client_id": "by-name", "audiences": ["api"], "token_endpoint_auth_method": "tls_client_auth",
        "tls_client_auth_san_dns": "client.example",
    });
    let encoded = pki.issued.certificate_pem.replace('\n', "%0A").replace(' ', "%20").replace('+', "%2B");
    for (networks, expected) in [("127.0.0.0/8, ::1", 200), ("10.0.0.0/8", 401)] {
        let server = Server::with(&with(networks)).await;
        assert_eq!(answer(server.admin("POST", "/admin/v1/clients").json(&fields)).await.0, 201);
        let ask = server.form("/oauth2/token", "grant_type=client_credentials&client_id=by-name");
        assert_eq!(answer(ask.header("x-client-cert", &encoded)).await.0, expected, "{networks}");
    }
}

/// A certificate with its key.
struct Identity {
    certificate: rustls_pki_types::CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

impl Identity {
    fn thumbprint(&self) -> String {
        atm_core::binding::ClientCertificate::from_der(self.certificate.to_vec()).thumbprint().to_owned()
    }
}

struct Pki {
    dir: tempfile::TempDir,
    issued: Identity,
    self_signed: Identity,
    stranger: Identity,
}

impl Pki {
    fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let dir = tempfile::tempdir().unwrap();
        let authority = |name: Option<&str>| {
            let mut parameters = CertificateParams::new(Vec::new()).unwrap();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.distinguished_name.push(rcgen::DnType::CommonName, unique());
            let key = KeyPair::generate().unwrap();
            let pem = parameters.self_signed(&key).unwrap().pem();
            if let Some(name) = name {
                std::fs::write(dir.path().join(name), pem).unwrap();
            }
            Issuer::new(parameters, key)
        };
        let issue = |authority: Option<&Issuer<'static, KeyPair>>, host: &str| {
            let mut parameters = CertificateParams::new(vec![host.to_owned()]).unwrap();
            parameters.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
            parameters.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
            let key = KeyPair::generate().unwrap();
            let made = match authority {
                Some(authority) => parameters.signed_by(&key, authority).unwrap(),
                None => parameters.self_signed(&key).unwrap(),
            };
            Identity {
                certificate: made.der().clone(),
                certificate_pem: made.pem(),
                key_pem: key.serialize_pem(),
            }
        };
        let (ours, another) = (authority(Some("ca.pem")), authority(None));
        let server = issue(Some(&ours), "127.0.0.1");
        std::fs::write(dir.path().join("tls.crt"), &server.certificate_pem).unwrap();
        std::fs::write(dir.path().join("tls.key"), &server.key_pem).unwrap();
        let (issued, self_signed) = (issue(Some(&ours), "client.example"), issue(None, "client.example"));
        let stranger = issue(Some(&another), "client.example");
        Self { dir, issued, self_signed, stranger }
    }

    async fn server(&self) -> Server {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let (certificate, key, ca) = (file("tls.crt"), file("tls.key"), file("ca.pem"));
        Server::with(&format!(
            "listen: {{ oauth: '127.0.0.1:0', admin: '127.0.0.1:0', clientCertificates: true, clientCaFile: {ca}, \
             oauthTls: {{ certificate: {certificate}, key: {key} }} }}"
        ))
        .await
    }

    fn http(&self, identity: Option<&Identity>) -> reqwest::Client {
        use rustls_pki_types::pem::PemObject;
        let ca = std::fs::read(self.dir.path().join("ca.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder().with_root_certificates(Arc::new(roots));
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(
                    vec![identity.certificate.clone()],
                    rustls_pki_types::PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        reqwest::Client::builder().no_proxy().tls_backend_preconfigured(config).build().unwrap()
    }
}
