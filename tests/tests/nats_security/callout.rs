//! Sidecars that share no secret: each is let in by the service-account token of its pod, for its own subjects, for a while.

use std::sync::{Arc, Mutex};

use atm_tests::token::{TokenBuilder, TokenMint};

use super::*;

const PLATFORM: &str = "https://kubernetes.test";
const AUDIENCE: &str = "atm-nats";

/// A projected token of a pod of the service account `orders`.
fn projected<'a>(mint: &'a TokenMint, namespace: &str, pod: &str) -> TokenBuilder<'a> {
    mint.token()
        .header("typ", "JWT")
        .claim("sub", format!("system:serviceaccount:{namespace}:orders"))
        .claim("aud", json!([AUDIENCE]))
        .claim("kubernetes.io", json!({ "namespace": namespace, "pod": { "name": pod, "uid": "u" } }))
}

async fn start() -> (Secured, FeedAuthority, TokenMint) {
    let secured = Secured::start_with(&shipped("callout.conf")).await;
    let mut settings = secured.access("CONTROL_PLANE");
    settings["nats"]["authCallout"] = json!({
        "seedFile": secured.seed("CALLOUT").display().to_string(),
        "issuer": PLATFORM,
        "audience": AUDIENCE,
        "serviceAccounts": ["shop/*"],
        "lifetimeSeconds": 5,
    });
    let control_plane = FeedAuthority::start_connected(&secured.url(), &settings).await;
    let mint = TokenMint::new(PLATFORM, "", &[("k1", "ES256")]);
    let key = mint.key("k1");
    let jwk = atm_core::jwk::jwk_from_spki("k1", atm_core::key::Algorithm::ES256, &key.spki()).unwrap();
    let issuer = json!({ "issuer": PLATFORM, "jwks": { "keys": [jwk] }, "token_types": ["JWT"] });
    let answer = control_plane.admin("POST", "/admin/v1/issuers", &issuer).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    (secured, control_plane, mint)
}

/// How a thief with a stolen token connects. What the server says is kept.
async fn connect(
    secured: &Secured,
    token: String,
    name: &str,
) -> Result<(async_nats::Client, Arc<Mutex<String>>), async_nats::ConnectError> {
    let said = Arc::new(Mutex::new(String::new()));
    let keep = Arc::clone(&said);
    let options = async_nats::ConnectOptions::with_token(token)
        .name(name)
        .add_root_certificates(secured.files.path().join("nats.pem"))
        .require_tls(true)
        .event_callback(move |event| {
            keep.lock().unwrap().push_str(&format!("{event}\n"));
            std::future::ready(())
        });
    Ok((options.connect(secured.url()).await?, said))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_does_not_fit_is_refused_with_its_reason() {
    let (secured, control_plane, mint) = start().await;
    let stranger = TokenMint::new("https://another.test", "", &[("k1", "ES256")]);
    let forger = TokenMint::new(PLATFORM, "", &[("k1", "ES256")]);
    let good = || projected(&mint, "shop", "orders-1");
    for (token, name, reason) in [
        (good().claim("aud", json!(["https://kubernetes.default.svc"])).sign(), "", "audience"),
        (good().claim("exp", now() - 120).sign(), "", "has expired"),
        (projected(&stranger, "shop", "orders-1").sign(), "", "another issuer"),
        (projected(&forger, "shop", "orders-1").sign(), "", "signed by no key"),
        (projected(&mint, "other", "orders-1").sign(), "", "serviceAccounts"),
        (good().without("kubernetes.io").sign(), "", "no pod"),
        (good().sign(), "atm-sidecar shop_orders-2", "NAMESPACE_POD"),
        ("no-token".to_owned(), "", "no service-account token"),
    ] {
        assert!(connect(&secured, token.clone(), name).await.is_err(), "{reason}");
        wait::until_some(&format!("the log to say {reason:?}"), wait::USUAL, || {
            control_plane.log().contains(reason).then_some(())
        })
        .await;
        assert!(!control_plane.log().contains(&token), "a token is in the log");
    }
    let (_client, _) = connect(&secured, good().sign(), "atm-sidecar shop_orders-1").await.expect("let in");
    wait::until("the refusals to be in the audit", wait::USUAL, || async {
        let audit =
            control_plane.admin("GET", "/admin/v1/audit?action=nats.login", &json!(null)).await.text();
        let has_both = audit.contains("\"refused\"") && audit.contains("shop_orders-1");
        if has_both { Ok(()) } else { Err(audit) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_for_its_own_subjects() {
    let (secured, _control_plane, mint) = start().await;
    let token = projected(&mint, "shop", "orders-2").sign();
    let (thief, said) = connect(&secured, token, "atm-sidecar shop_orders-2").await.expect("let in");
    let forbidden = [
        "atm.default.feed",
        "atm.default.live",
        "atm.default.heartbeat",
        "atm.default.command",
        "atm.default.fleet.shop_orders-1",
        "$JS.API.STREAM.PURGE.ATM_FEED",
        "$SYS.REQ.USER.AUTH",
    ];
    for subject in forbidden {
        thief.publish(subject, "x".into()).await.unwrap();
    }
    let _inbox = thief.subscribe("_INBOX.shop_orders-1.>").await.unwrap();
    let _questions = thief.subscribe("atm.default.introspect").await.unwrap();
    thief.flush().await.unwrap();
    wait::until_some("the server to refuse each", wait::USUAL, || {
        let said = said.lock().unwrap().to_lowercase();
        let refused = |what: &str| said.contains(&format!("\"{what}\"").to_lowercase());
        let all = forbidden.into_iter().chain(["_INBOX.shop_orders-1.>", "atm.default.introspect"]);
        all.into_iter().all(refused).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_ends_and_is_renewed_by_the_token_of_then() {
    let (secured, mut control_plane, mint) = start().await;
    let token_file = secured.files.path().join("token");
    std::fs::write(&token_file, projected(&mint, "shop", "orders-1").sign()).unwrap();
    let settings = json!({
        "id": "shop_orders-1",
        "nats": {
            "url": secured.url(),
            "tokenFile": token_file.display().to_string(),
            "caFile": file(secured.files.path(), "nats.pem"),
        },
    });
    let key = control_plane.feed_key().await;
    let sidecar = Sidecar::start_ready_with(&secured.url(), &key, &settings).await;
    let revision = control_plane.revoke(&["one".into()], now() + 3_600).await;
    sidecar.until_applied(revision).await;

    // The kubelet has renewed the token; the login ends after five seconds, and the next is by the new one.
    std::fs::write(&token_file, projected(&mint, "shop", "orders-1").sign()).unwrap();
    let logins = |log: &str| log.matches("let in to NATS").count();
    let before = logins(&control_plane.log());
    wait::until_some("another login", wait::LONG, || (logins(&control_plane.log()) > before).then_some(()))
        .await;
    let revision = control_plane.revoke(&["two".into()], now() + 3_600).await;
    sidecar.until_applied(revision).await;

    // Without a control plane nobody is let in; who is there goes on, and comes back by itself.
    control_plane.kill();
    let nobody = projected(&mint, "shop", "orders-3").sign();
    let refused = connect(&secured, nobody, "").await.expect_err("nobody can say that it may");
    assert_eq!(refused.kind(), async_nats::ConnectErrorKind::AuthorizationViolation, "{refused}");
    assert!(sidecar.state().await["revision"].as_u64() >= Some(revision));
    wait::until("the login to end", wait::LONG, || async {
        let connected = sidecar.metric("atm_sidecar_nats_connected").await;
        if connected < 0.5 { Ok(()) } else { Err(connected) }
    })
    .await;
    control_plane.start().await;
    control_plane.until_connected().await;
    let revision = control_plane.revoke(&["three".into()], now() + 3_600).await;
    sidecar.until_applied_within(revision, wait::LONG).await;
}
