use serde_json::json;

use super::*;

fn rules(entries: &[&str]) -> Vec<ServiceAccounts> {
    entries.iter().map(|entry| entry.parse().unwrap()).collect()
}

fn judged(claims: &Value, allowed: &[&str]) -> Result<String, Refusal> {
    workload(claims.as_object().unwrap(), &rules(allowed), 9).map(|workload| workload.id)
}

#[test]
fn a_pod_is_named_by_its_token_and_let_in_by_a_rule() {
    let token = json!({
        "sub": "system:serviceaccount:shop:orders",
        "kubernetes.io": { "namespace": "shop", "pod": { "name": "orders-1" } },
    });
    for allowed in [&["shop/orders"][..], &["shop/*"], &["*/orders"], &["other/*", "*/*"]] {
        assert_eq!(judged(&token, allowed), Ok("shop_orders-1".to_owned()), "{allowed:?}");
    }
    for allowed in [&[][..], &["shop/carts"], &["sho/*"], &["other/*"]] {
        assert_eq!(judged(&token, allowed), Err(Refusal::Rule), "{allowed:?}");
    }
    for (pointer, value) in [
        ("/sub", json!("system:node:one")),
        ("/sub", json!("system:serviceaccount:other:orders")),
        ("/kubernetes.io/pod", json!(null)),
        ("/kubernetes.io/namespace", json!("other")),
    ] {
        let mut wrong = token.clone();
        *wrong.pointer_mut(pointer).unwrap() = value;
        assert_eq!(judged(&wrong, &["*/*"]), Err(Refusal::Pod), "{pointer}");
    }
}

#[test]
fn a_rule_is_a_namespace_and_a_name() {
    for wrong in ["", "shop", "shop/", "/orders", "shop/or*", "Shop/orders", "a/b/c"] {
        assert!(wrong.parse::<ServiceAccounts>().is_err(), "{wrong}");
    }
}

/// A question as `server` signs it.
fn question(server: &KeyPair, signer: &KeyPair, user: &str) -> String {
    let claims = json!({
        "iss": server.public_key(),
        "nats": {
            "type": "authorization_request",
            "server_id": { "id": server.public_key() },
            "user_nkey": user,
            "client_info": { "host": "192.0.2.1" },
            "connect_opts": { "auth_token": "t", "name": "atm-sidecar one" },
        },
    });
    let encode = |value: &Value| atm_core::base64url::encode(value.to_string().as_bytes());
    let input = format!("{}.{}", encode(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), encode(&claims));
    format!("{input}.{}", atm_core::base64url::encode(&signer.sign(input.as_bytes()).unwrap()))
}

#[test]
fn only_what_the_server_signed_is_a_question() {
    let (server, another, user) = (KeyPair::new_server(), KeyPair::new_server(), KeyPair::new_user());
    let asked = Request::read(question(&server, &server, &user.public_key()).as_bytes()).unwrap();
    assert_eq!((asked.token.as_deref(), asked.address.as_str()), (Some("t"), "192.0.2.1"));
    assert!(Request::read(question(&server, &another, &user.public_key()).as_bytes()).is_none());
    assert!(Request::read(question(&user, &user, &user.public_key()).as_bytes()).is_none(), "no server");
    assert!(Request::read(question(&server, &server, "UNONE").as_bytes()).is_none(), "no user");
    for broken in ["", "a.b.c", "{}"] {
        assert!(Request::read(broken.as_bytes()).is_none(), "{broken}");
    }
}
