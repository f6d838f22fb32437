//! Key set and metadata: RFC 7517, RFC 8414, OpenID Connect Discovery 1.0.

use crate::harness::{ISSUER, Server, answer};
use atm_control_plane::config::{Config, Environment, Secrets};

#[tokio::test]
async fn metadata_names_the_issuer_as_it_is_and_nothing_empty() {
    let server = Server::start().await;
    for path in ["/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"] {
        let (status, document) = answer(server.http.get(server.oauth(path))).await;
        assert_eq!(status, 200);
        assert_eq!(document["issuer"], ISSUER);
        assert_eq!(document["token_endpoint"], format!("{ISSUER}/oauth2/token"));
        assert_eq!(document["introspection_endpoint"], format!("{ISSUER}/oauth2/introspect"));
        assert_eq!(document["revocation_endpoint"], format!("{ISSUER}/oauth2/revoke"));
        assert_eq!(document["jwks_uri"], format!("{ISSUER}/oauth2/jwks"));
        let grants = [
            "client_credentials",
            "refresh_token",
            "urn:ietf:params:oauth:grant-type:token-exchange",
            "urn:ietf:params:oauth:grant-type:jwt-bearer",
        ];
        assert_eq!(document["grant_types_supported"], serde_json::json!(grants));
        for (name, value) in document.as_object().unwrap() {
            assert!(!value.is_null() && value.as_array().is_none_or(|array| !array.is_empty()), "{name}");
        }
    }
}

#[tokio::test]
async fn the_well_known_part_goes_before_the_issuers_path() {
    let dir = tempfile::tempdir().unwrap();
    let listen = "listen: { oauth: '127.0.0.1:0', admin: '127.0.0.1:0' }";
    let text = crate::harness::configuration(dir.path(), listen);
    let text = text.replace(ISSUER, "http://127.0.0.1:8080/realms/a");
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config::parse(&text, &Environment::new()).unwrap();
    let secrets = Secrets::read(&config, &Environment::new()).unwrap();
    let app = atm_control_plane::app::App::start(config, secrets).await.unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for (path, expected) in [
        ("/.well-known/oauth-authorization-server/realms/a", 200),
        ("/realms/a/.well-known/openid-configuration", 200),
        ("/realms/a/oauth2/jwks", 200),
        ("/.well-known/oauth-authorization-server", 404),
        ("/oauth2/jwks", 404),
    ] {
        let response = http.get(format!("http://{}{path}", app.bound().oauth)).send().await.unwrap();
        assert_eq!(response.status(), expected, "{path}");
    }
}

#[tokio::test]
async fn the_key_set_has_public_keys_only() {
    let server = Server::start().await;
    let (status, jwks) = answer(server.http.get(server.oauth("/oauth2/jwks"))).await;
    assert_eq!(status, 200);
    let keys = jwks["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0]["alg"], "ES256");
    assert_eq!(keys[0]["use"], "sig");
    assert!(keys[0]["kid"].is_string() && keys[0].get("d").is_none());
}
