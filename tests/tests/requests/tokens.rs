//! Rows about tokens: good ones, wrong claims, wrong headers, forgeries, malformed ones.

use atm_tests::token::{TokenMint, base64url, now};
use serde_json::json;

use super::table::{Case, Want, bearer, case};

const fn denied(reason: &'static str) -> Want {
    Want::Denied(401, reason)
}

/// Tokens that must pass.
pub(crate) fn accepted(mint: &TokenMint, other: &TokenMint) -> Vec<Case> {
    let mut cases: Vec<Case> = ["es256", "es384", "ed", "rs256", "ps256"]
        .iter()
        .map(|kid| {
            bearer(&format!("valid, signed with {kid}"), &mint.token().with_key(kid).sign(), Want::Permit)
        })
        .collect();
    let good = |name: &str, token: String| bearer(name, &token, Want::Permit);
    cases.extend([
        good("audience in an array", mint.token().claim("aud", json!(["billing", "orders-api"])).sign()),
        good("typ with application/", mint.token().header("typ", "application/at+jwt").sign()),
        good("typ in upper case", mint.token().header("typ", "AT+JWT").sign()),
        good("alg by RFC 9864's name Ed25519", mint.token().with_key("ed").header("alg", "Ed25519").sign()),
        good("no kid where the issuer has one key", other.token().without_header("kid").sign()),
        good("the same kid at its own issuer", other.token().sign()),
        good("expired within the skew", mint.token().claim("exp", now() - 5).sign()),
        good("nbf within the skew", mint.token().claim("nbf", now() + 10).sign()),
        good("no session", mint.token().without("sid").sign()),
        good("issued with milliseconds", {
            let issued = now() - 5;
            mint.token().claim("iat", issued).claim("atm_iat_ms", issued * 1000 + 123).sign()
        }),
        good("unknown claims", mint.token().claim("roles", json!([{ "name": "x" }])).sign()),
    ]);
    cases
}

/// A good signature over wrong claims.
pub(crate) fn claims(mint: &TokenMint, other: &TokenMint) -> Vec<Case> {
    let token = || mint.token();
    let row = |name: &str, token: String, reason| bearer(name, &token, denied(reason));
    let stranger = TokenMint::new("https://stranger.test", "", &[("es256", "ES256")]);
    let mut cases = vec![
        row("expired", token().claim("exp", now() - 3600).sign(), "expired"),
        row("exp as a string", token().claim("exp", (now() + 600).to_string()).sign(), "claim_malformed"),
        row("exp negative", token().claim("exp", -1).sign(), "claim_malformed"),
        row("exp null", token().claim("exp", json!(null)).sign(), "claim_malformed"),
        row("nbf in the future", token().claim("nbf", now() + 3600).sign(), "not_yet_valid"),
        row("nbf as a string", token().claim("nbf", "0").sign(), "claim_malformed"),
        row("iat in the future", token().claim("iat", now() + 3600).sign(), "issued_in_future"),
        row("milliseconds that contradict iat", token().claim("atm_iat_ms", 1).sign(), "claim_malformed"),
        row("wrong audience", token().claim("aud", "billing").sign(), "audience_refused"),
        row("audience differs in case", token().claim("aud", "Orders-API").sign(), "audience_refused"),
        row("audience as a number", token().claim("aud", 1).sign(), "claim_malformed"),
        row(
            "audience array with a number",
            token().claim("aud", json!(["orders-api", 1])).sign(),
            "claim_malformed",
        ),
        row("audience array empty", token().claim("aud", json!([])).sign(), "claim_missing"),
        row("unknown issuer", stranger.token().sign(), "issuer_unknown"),
        row(
            "issuer with a slash more",
            token().claim("iss", "https://issuer.test/").sign(),
            "issuer_unknown",
        ),
        row(
            "issuer array that holds ours",
            token().claim("iss", json!([mint.issuer()])).sign(),
            "claim_malformed",
        ),
        row("client_id as a number", token().claim("client_id", 7).sign(), "claim_malformed"),
        row(
            "bound in a way that is not known (cnf)",
            token().claim("cnf", json!({ "jwk": {} })).sign(),
            "binding_unsupported",
        ),
        row(
            "bound to a DPoP key, and sent as a bearer token",
            token().claim("cnf", json!({ "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" })).sign(),
            "scheme_mismatch",
        ),
        row(
            "bound to a client certificate that is not there",
            token().claim("cnf", json!({ "x5t#S256": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" })).sign(),
            "certificate_missing",
        ),
        row(
            "a thumbprint that is none",
            token().claim("cnf", json!({ "jkt": "x" })).sign(),
            "claim_malformed",
        ),
        row("cnf as a string", token().claim("cnf", "x").sign(), "claim_malformed"),
        row("iat as a string", token().claim("iat", now().to_string()).sign(), "claim_malformed"),
        row("exp with a fraction", token().claim("exp", 4_102_444_800.5).sign(), "claim_malformed"),
        row("scope as an array", token().claim("scope", json!(["orders.read"])).sign(), "claim_malformed"),
        row("actors five deep", token().claim("act", actors(5)).sign(), "claim_malformed"),
        row(
            "nine ancestors",
            token().claim("atm_ancestors", vec![json!({ "jti": "a", "exp": 1 }); 9]).sign(),
            "claim_malformed",
        ),
    ];
    for claim in ["iss", "sub", "aud", "exp", "iat", "jti", "client_id"] {
        cases.push(row(&format!("{claim} missing"), token().without(claim).sign(), "claim_missing"));
    }
    let forbidden = |name: &str, token: String| bearer(name, &token, Want::Denied(403, "scope_insufficient"));
    cases.push(forbidden("no scope", token().without("scope").sign()));
    cases.push(forbidden("another scope", token().claim("scope", "orders.write").sign()));
    cases.push(forbidden("scope that only begins alike", token().claim("scope", "orders.read.all").sign()));
    let authorization = format!("Bearer {}", other.token().sign());
    let request =
        atm_tests::http::request("GET", "/internal", "orders.test", &[("authorization", &authorization)], "");
    cases.push(case("a trusted issuer, not for this rule", request, denied("issuer_refused")));
    cases
}

fn actors(depth: usize) -> serde_json::Value {
    (1..depth).fold(json!({ "sub": "agent" }), |inner, _| json!({ "sub": "agent", "act": inner }))
}

/// Wrong JOSE headers under a good signature.
pub(crate) fn headers(mint: &TokenMint) -> Vec<Case> {
    let token = || mint.token();
    let row = |name: &str, token: String, reason| bearer(name, &token, denied(reason));
    let jwk = json!({ "kty": "oct", "k": "AAAA" });
    vec![
        row("embedded jwk", token().header("jwk", jwk).sign(), "embedded_key_refused"),
        row("jku", token().header("jku", "https://evil.test/jwks").sign(), "embedded_key_refused"),
        row("x5u", token().header("x5u", "https://evil.test/cert").sign(), "embedded_key_refused"),
        row("x5c", token().header("x5c", json!(["AAAA"])).sign(), "embedded_key_refused"),
        row(
            "crit with an unknown name",
            token().header("crit", json!(["x"])).header("x", 1).sign(),
            "critical_header_refused",
        ),
        row("crit empty", token().header("crit", json!([])).sign(), "critical_header_refused"),
        row(
            "b64 false, in crit",
            token().header("crit", json!(["b64"])).header("b64", false).sign(),
            "critical_header_refused",
        ),
        row("b64 false, not in crit", token().header("b64", false).sign(), "critical_header_refused"),
        row("ID token: typ JWT", token().header("typ", "JWT").sign(), "token_type_refused"),
        row("ID token: no typ", token().without_header("typ").sign(), "token_type_refused"),
        row("typ of a logout token", token().header("typ", "logout+jwt").sign(), "token_type_refused"),
        row("unknown kid", token().header("kid", "nobody").sign(), "key_unknown"),
        row("kid with a path", token().header("kid", "../../../../dev/null").sign(), "token_malformed"),
        row("kid with SQL", token().header("kid", "x'/**/OR/**/'1'='1").sign(), "token_malformed"),
        row("kid with spaces", token().header("kid", "x' OR '1'='1").sign(), "token_malformed"),
        row("kid as a number", token().header("kid", 1).sign(), "token_malformed"),
        row("kid empty", token().header("kid", "").sign(), "token_malformed"),
        row(
            "no kid where the issuer has several keys",
            token().without_header("kid").sign(),
            "key_ambiguous",
        ),
        row("alg missing", token().without_header("alg").sign(), "algorithm_refused"),
        row("alg in lower case", token().header("alg", "es256").sign(), "algorithm_refused"),
        row("alg of another curve", token().header("alg", "ES256K").sign(), "algorithm_refused"),
        row(
            "alg EdDSA by a name for another curve",
            token().header("alg", "Ed448").sign(),
            "algorithm_refused",
        ),
        row("compressed", token().header("zip", "DEF").sign(), "critical_header_refused"),
        row("a header over its bound", token().header("x", "x".repeat(5_000)).sign(), "token_too_large"),
    ]
}

/// Signatures that prove nothing.
pub(crate) fn forged(mint: &TokenMint, other: &TokenMint) -> Vec<Case> {
    let token = || mint.token();
    let row = |name: &str, token: String, reason| bearer(name, &token, denied(reason));
    let valid = token().sign();
    let (input, signature) = valid.rsplit_once('.').expect("three parts");
    let mut bytes = base64_decode(signature);
    bytes[10] ^= 1;
    let mutated = format!("{input}.{}", base64url(&bytes));
    let short = format!("{input}.{}", base64url(&bytes[..bytes.len() - 1]));
    let zero = format!("{input}.{}", base64url([0; 64]));
    let mut parts = valid.split('.');
    let (header, _payload) = (parts.next().expect("header"), parts.next());
    let claims = token().claim("sub", "root").claims_text();
    let swapped = format!("{header}.{}.{signature}", base64url(claims));
    vec![
        row("alg none, no signature", token().header("alg", "none").unsigned(), "algorithm_refused"),
        row("alg noNE, no signature", token().header("alg", "noNE").unsigned(), "algorithm_refused"),
        row("alg none with a signature", token().header("alg", "none").sign(), "algorithm_refused"),
        row("alg ES256, no signature", token().unsigned(), "signature_invalid"),
        row(
            "HS256 with the public key as secret",
            token().header("alg", "HS256").sign_hmac(&mint.key("es256").spki()),
            "algorithm_refused",
        ),
        row(
            "HMAC under alg RS256",
            token().with_key("rs256").sign_hmac(&mint.key("rs256").spki()),
            "signature_invalid",
        ),
        row(
            "PS256 claimed for an RS256 key",
            token().with_key("rs256").header("alg", "PS256").sign(),
            "algorithm_refused",
        ),
        row("ES384 claimed for an ES256 key", token().header("alg", "ES384").sign(), "algorithm_refused"),
        row(
            "another issuer's key of the same kid",
            token().forged_by(other.key("es256")).sign(),
            "signature_invalid",
        ),
        row(
            "another issuer's name, our key",
            other.token().forged_by(mint.key("es256")).sign(),
            "signature_invalid",
        ),
        row(
            "another key of the issuer under this kid",
            token().header("kid", "es384").header("alg", "ES384").sign(),
            "signature_invalid",
        ),
        row("a flipped bit in the signature", mutated, "signature_invalid"),
        row("a signature one byte short", short, "signature_invalid"),
        row("a signature of zeroes", zero, "signature_invalid"),
        row("another payload under the signature", swapped, "signature_invalid"),
    ]
}

/// Texts that are no JWS in compact serialisation.
pub(crate) fn malformed(mint: &TokenMint) -> Vec<Case> {
    let token = || mint.token();
    let row = |name: &str, token: String, reason| bearer(name, &token, denied(reason));
    let valid = token().sign();
    let parts: Vec<&str> = valid.split('.').collect();
    let claims = token().claims_text();
    let with = |member: &str| format!("{},{member}}}", claims.strip_suffix('}').expect("an object"));
    let deep = with(&format!("\"x\":{}1{}", "[".repeat(64), "]".repeat(64)));
    let header = |text: &str| format!("{}.{}.{}", base64url(text), parts[1], parts[2]);
    let duplicate_header = r#"{"alg":"none","alg":"ES256","typ":"at+jwt","kid":"es256"}"#;
    let json_form =
        format!(r#"{{"payload":"{}","protected":"{}","signature":"{}"}}"#, parts[1], parts[0], parts[2]);
    let big = |bytes: usize| token().claim("padding", "x".repeat(bytes)).sign();
    vec![
        row("two parts", format!("{}.{}", parts[0], parts[1]), "token_malformed"),
        row("one part", parts[0].to_owned(), "token_malformed"),
        row("four parts", format!("{valid}.AAAA"), "token_malformed"),
        row("JWE: five parts", format!("{}.AAAA.AAAA.AAAA.AAAA", parts[0]), "token_malformed"),
        row("JSON serialisation", json_form, "credential_multiple"),
        row("not base64url at all", "a.b.c".to_owned(), "token_malformed"),
        row("padded base64url", format!("{valid}="), "token_malformed"),
        row("non-canonical last character", non_canonical(&valid), "token_malformed"),
        row("standard base64 alphabet", format!("{}.{}.++//", parts[0], parts[1]), "token_malformed"),
        row("duplicate claim", token().sign_claims_text(&with("\"sub\":\"root\"")), "token_malformed"),
        row(
            "duplicate claim, escaped",
            token().sign_claims_text(&with("\"s\\u0075b\":\"root\"")),
            "token_malformed",
        ),
        row("duplicate header parameter", token().sign_header_text(duplicate_header), "token_malformed"),
        row("deep nesting", token().sign_claims_text(&deep), "token_malformed"),
        row("number beyond 64 bits", token().sign_claims_text(&with("\"x\":1e400")), "token_malformed"),
        row(
            "number beyond 2^53",
            token().sign_claims_text(&with("\"x\":9007199254740993")),
            "token_malformed",
        ),
        row("NaN", token().sign_claims_text(&with("\"x\":NaN")), "token_malformed"),
        row(
            "trailing bytes after the claims",
            token().sign_claims_text(&format!("{claims}{{}}")),
            "token_malformed",
        ),
        row("claims are an array", token().sign_claims_text("[]"), "token_malformed"),
        row(
            "claims are not UTF-8 JSON",
            format!("{}.{}.{}", parts[0], base64url([0xff, 0xfe]), parts[2]),
            "token_malformed",
        ),
        row("header is no JSON", header("hello"), "token_malformed"),
        row("token over the limit", big(13_000), "token_too_large"),
        bearer("header over Envoy's limit", &"a".repeat(100_000), Want::Envoy(&[431, 400])),
        bearer("a token near the limit", &big(8_000), Want::Permit),
        row("cut in the middle", valid[..valid.len() / 2].to_owned(), "token_malformed"),
    ]
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

/// The same bytes with one of the unused bits of the last character set. An ES256 signature of 64 bytes leaves four.
fn non_canonical(token: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = token.split_at(token.len() - 1);
    let value = ALPHABET.iter().position(|c| *c == last.as_bytes()[0]).expect("base64url");
    format!("{rest}{}", char::from(ALPHABET[value | 1]))
}
