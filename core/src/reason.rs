//! Why a request was refused: the one table behind status, challenge, metric label, log entry, `atmctl explain` and
//! `docs/reasons.md`.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $label:literal, $status:literal, $error:expr, $description:literal, $advice:literal;)+) => {
        /// Why a request was refused.
        ///
        /// Everything that is said of a refusal (HTTP status, RFC 6750 §3.1 error code, metric label, the sentence for
        /// people) is read from here, so that no two places can disagree.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the decision's steps; registers metrics and renders documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable code: metric label, log field and `x-atm-reason` header, in `snake_case`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// The HTTP status of the refusal: 400, 401, 403 or 503.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// The `error` of the `WWW-Authenticate` challenge (RFC 6750 §3.1, RFC 9449 §12.2); `None` where the challenge carries none,
            /// because no credential was sent or because the fault is not the credential's.
            pub const fn error(self) -> Option<&'static str> {
                match self { $(Self::$variant => $error,)+ }
            }

            /// One sentence for people. It never names a value of the request or of the token, and holds only characters
            /// that RFC 6750 §3 allows in `error_description`.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $description,)+ }
            }

            /// What it means, for operators; Markdown.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// What to do about it, for operators; Markdown.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)+ }
            }
        }
    };
}

const INVALID_REQUEST: Option<&str> = Some("invalid_request");
const INVALID_TOKEN: Option<&str> = Some("invalid_token");
const INSUFFICIENT_SCOPE: Option<&str> = Some("insufficient_scope");
/// RFC 9449 §12.2 and §9.
const INVALID_PROOF: Option<&str> = Some("invalid_dpop_proof");
const USE_NONCE: Option<&str> = Some("use_dpop_nonce");

const REFERENCE_HEAD: &str = "# Reasons

Why a request was refused. The same code is the label of `atm_sidecar_decisions_total`, `reason` in the decision log, in the body of the answer and in Envoy's
dynamic metadata, the header `x-atm-reason`, and what `atmctl explain` prints; `atmctl reason CODE` prints a row of this table. The rows follow the steps of a
decision. `error` is that of the `WWW-Authenticate` challenge (RFC 6750 section 3.1, RFC 9449 section 12.2). 503 is never a judgement on the credential.

This page is made from the code (`atmctl reason --markdown`), and a test compares them.

| Reason | Status | error | What it means | What to do |
|---|---|---|---|---|
";

reasons! {
    /// The request itself is not well formed: its host, its method or its target.
    MalformedRequest => "malformed_request", 400, INVALID_REQUEST, "The request's host, method or target is not well formed.",
        "Look at what the gateway sends: the target must begin with a slash, host and method must be well formed.";
    /// The path can be read in two ways (RFC 3986 §6.2.2), so no rule may be chosen by it.
    AmbiguousPath => "ambiguous_path", 400, INVALID_REQUEST, "The request path can be read in more than one way.",
        "The client must send the path in one form: no dot segments, empty segments, `;`, backslashes, encoded slashes or double encoding. Let the gateway normalise paths (Envoy: `normalize_path`, `merge_slashes`).";
    /// No rule of any policy covers the request.
    NoPolicy => "no_policy", 403, None, "No policy covers this request.",
        "`atmctl explain` shows host, method and path as they were matched. Add a rule that covers them, or leave it refused.";

    /// The rule asks for a credential and the request carries none.
    CredentialMissing => "credential_missing", 401, None, "The request carries no credential.",
        "The client must send a credential where the rule looks for one. If it did, see that the gateway forwards that header to the sidecar (Envoy: `allowed_headers`).";
    /// More than one credential was sent (RFC 6750 §2).
    CredentialMultiple => "credential_multiple", 401, INVALID_REQUEST, "The request carries more than one credential.",
        "The client must send one credential. Two `authorization` fields, a comma in one, or candidates in two places of the rule are refused.";
    /// The credential's header does not follow `scheme SP token68` (RFC 6750 §2.1).
    CredentialMalformed => "credential_malformed", 401, INVALID_REQUEST, "The credential's header is not well formed.",
        "The client must send `Bearer TOKEN` or `DPoP TOKEN`, one token without spaces.";

    /// The rule does not accept credentials of this kind (JWT, opaque access token, API key).
    CredentialKindRefused => "credential_kind_refused", 401, INVALID_TOKEN, "Credentials of this kind are not accepted here.",
        "Add the kind to `accepts` of the rule (`jwt`, `opaque`, `apiKey`), or give the client another credential.";

    /// The token is longer than any that is accepted.
    TokenTooLarge => "token_too_large", 401, INVALID_TOKEN, "The token is larger than the limit.",
        "Issue smaller tokens: 16 KiB in all, 4 KiB for the header.";
    /// The token is no JWS in compact serialisation (RFC 7515 §7.1), or its JSON is refused.
    TokenMalformed => "token_malformed", 401, INVALID_TOKEN, "The token is not a well formed JWT.",
        "`atmctl token inspect` reads the token. It must be a JWS in compact form, in canonical base64url, without duplicate members; an opaque token with a typo is refused by its checksum.";
    /// The header's `typ` is not that of an access token (RFC 9068 §4).
    TokenTypeRefused => "token_type_refused", 401, INVALID_TOKEN, "The token is not an access token.",
        "The client sends an ID token or another kind of JWT: it must send its access token. An external issuer that does not write `at+jwt` is registered with its `token_types`.";
    /// The algorithm is not allowed, or not the one pinned to the key (RFC 8725 §3.1).
    AlgorithmRefused => "algorithm_refused", 401, INVALID_TOKEN, "The token's signature algorithm is not accepted.",
        "The issuer must sign with the algorithm that its key set names for the key. `none` and HMAC are never accepted.";
    /// The header names critical extensions (RFC 7515 §4.1.11); none is understood here.
    CriticalHeaderRefused => "critical_header_refused", 401, INVALID_TOKEN, "The token's header names extensions that are not understood.",
        "The issuer must not use `crit`, `b64`, `zip` or `enc`.";
    /// The header brings or points to a key of its own (`jwk`, `jku`, `x5c`, `x5u`).
    EmbeddedKeyRefused => "embedded_key_refused", 401, INVALID_TOKEN, "The token's header must not bring a key of its own.",
        "The issuer must name its key by `kid` only. A client that sends its own key is forging.";

    /// The issuer is not trusted here.
    IssuerUnknown => "issuer_unknown", 401, INVALID_TOKEN, "The token's issuer is not trusted.",
        "Register the issuer (`atmctl issuer add`), exactly as in the token's `iss`; a slash at the end counts. `atmctl issuer list` shows whether its keys were fetched.";
    /// The issuer has no key of that id.
    KeyUnknown => "key_unknown", 401, INVALID_TOKEN, "The token's signing key is not known.",
        "The issuer has rotated and its key set has not been fetched since, or somebody forges. `atmctl issuer list` shows the last fetch; `atmctl issuer refresh` fetches now.";
    /// The token names no key and its issuer has several.
    KeyAmbiguous => "key_ambiguous", 401, INVALID_TOKEN, "The token names no signing key and its issuer has several.",
        "The issuer must write `kid` into its tokens as soon as it has more than one key.";
    /// The signature does not verify.
    SignatureInvalid => "signature_invalid", 401, INVALID_TOKEN, "The token's signature is not valid.",
        "Forged or damaged. If all tokens of an issuer fail, its key set is not the one that it signs with.";

    /// The control plane does not know the opaque credential, or says that it is no longer valid (RFC 7662 §2.2).
    TokenInactive => "token_inactive", 401, INVALID_TOKEN, "The token is not active.",
        "The credential was revoked, has expired, or was never issued here: the client needs a new one.";
    /// What the opaque credential stands for is not known here, and the control plane did not answer in time.
    IntrospectionTimeout => "introspection_timeout", 503, None, "The token could not be looked up in time.",
        "The control plane or NATS is slow: look at their health and at `introspection.timeoutMs`. The client may repeat the request.";
    /// As above, and NATS or the control plane is away or answers what is not believed.
    IntrospectionUnavailable => "introspection_unavailable", 503, None, "The token could not be looked up.",
        "Look at the health of NATS and the control plane (`/readyz`). JWTs and credentials seen before go on working.";
    /// As above, and too many look-ups are under way.
    IntrospectionOverload => "introspection_overload", 503, None, "Too many tokens are being looked up.",
        "Many credentials are new to the sidecar at once. Look for a flood of invalid ones; raise `introspection.concurrency` if they are good.";

    /// A claim that an access token must have is missing (RFC 9068 §2.2).
    ClaimMissing => "claim_missing", 401, INVALID_TOKEN, "The token lacks a required claim.",
        "The issuer must write `iss`, `sub`, `aud`, `exp` and `iat`; our own realms write `client_id` and `jti` too.";
    /// A claim has the wrong type or form.
    ClaimMalformed => "claim_malformed", 401, INVALID_TOKEN, "A claim of the token is not well formed.",
        "`atmctl token inspect` shows the claims. Times are whole numbers, `aud` is a text or a list of texts, identifiers have no control characters and at most 512 bytes.";
    /// The issuer is trusted, but not for this rule.
    IssuerRefused => "issuer_refused", 401, INVALID_TOKEN, "The token's issuer is not accepted here.",
        "Add the issuer to `issuers` of the rule or of the policy, if its tokens are meant to pass here.";
    /// No audience of the token is one of the rule's (RFC 9068 §4).
    AudienceRefused => "audience_refused", 401, INVALID_TOKEN, "The token is meant for another audience.",
        "The client must ask for a token with the audience of this service; or add its audience to `audiences`.";
    /// The token's `exp` has passed, beyond the clock skew allowed.
    Expired => "expired", 401, INVALID_TOKEN, "The token has expired.",
        "The client must fetch a new token before the old one ends. If fresh tokens expire, compare the clocks of issuer and sidecar.";
    /// The token's `nbf` lies in the future, beyond the clock skew allowed.
    NotYetValid => "not_yet_valid", 401, INVALID_TOKEN, "The token is not valid yet.",
        "Compare the clocks of issuer and sidecar; `clockSkewSeconds` forgives small differences.";
    /// The token's `iat` lies in the future, beyond the clock skew allowed.
    IssuedInFuture => "issued_in_future", 401, INVALID_TOKEN, "The token was issued in the future.",
        "Compare the clocks of issuer and sidecar; `clockSkewSeconds` forgives small differences.";

    /// The token itself is revoked.
    RevokedToken => "revoked_token", 401, INVALID_TOKEN, "The token has been revoked.",
        "Meant so: somebody revoked this token. The audit log says who and why; the client needs a new one.";
    /// A token that this one was derived from is revoked (RFC 8693).
    RevokedAncestor => "revoked_ancestor", 401, INVALID_TOKEN, "A token that this one was derived from has been revoked.",
        "Meant so: the token that this one was exchanged for was revoked.";
    /// The token's session (its family) is revoked.
    RevokedSession => "revoked_session", 401, INVALID_TOKEN, "The token's session has been revoked.",
        "Meant so: the session was revoked or a refresh token was used twice. The user must sign in again.";
    /// Tokens of the subject up to an instant are revoked.
    RevokedSubject => "revoked_subject", 401, INVALID_TOKEN, "The subject's tokens have been revoked.",
        "Meant so: everything of the subject up to an instant was revoked. Tokens issued since then pass.";
    /// Tokens of the client up to an instant are revoked.
    RevokedClient => "revoked_client", 401, INVALID_TOKEN, "The client's tokens have been revoked.",
        "Meant so: everything of the client up to an instant was revoked. Tokens issued since then pass.";
    /// Tokens of the realm up to an instant are revoked.
    RevokedRealm => "revoked_realm", 401, INVALID_TOKEN, "The realm's tokens have been revoked.",
        "Meant so: everything of the realm up to an instant was revoked. Tokens issued since then pass.";
    /// Tokens of the issuer up to an instant are revoked.
    RevokedIssuer => "revoked_issuer", 401, INVALID_TOKEN, "The issuer's tokens have been revoked.",
        "Meant so: everything of the issuer up to an instant was revoked. Tokens issued since then pass.";
    /// The signing key is revoked, and with it whatever it signed.
    RevokedKey => "revoked_key", 401, INVALID_TOKEN, "The token's signing key has been revoked.",
        "Meant so: the signing key was revoked. Clients need tokens that the new key signed.";
    /// A filter says that the token may be revoked, and the store that knows cannot be read.
    RevocationUnconfirmed => "revocation_unconfirmed", 503, None, "Whether the token has been revoked could not be looked up.",
        "The sidecar's disk fails: look at `/state` and at the log. Tokens that no filter names are decided as ever; a restart on a whole disk fetches the rest anew.";

    /// The token is bound to a key (`cnf`, RFC 7800 §3.1) in a way that cannot be checked here.
    BindingUnsupported => "binding_unsupported", 401, INVALID_TOKEN, "The token is bound to a key in a way that cannot be checked here.",
        "The issuer must bind by `jkt` (DPoP) or `x5t#S256` (client certificate).";
    /// The rule takes bound tokens only, and this one is not, or in another way.
    BindingRequired => "binding_required", 401, INVALID_TOKEN, "The token must be bound to a key.",
        "The client must ask for a bound token: with a DPoP proof, or over mutual TLS. Or change `binding.require` of the rule.";
    /// A token bound to a DPoP key came as a bearer token (RFC 9449 §7.2), or one that is not bound came as `DPoP`.
    SchemeMismatch => "scheme_mismatch", 401, INVALID_TOKEN, "The authentication scheme does not fit the token's binding.",
        "The client must send a DPoP-bound token as `Authorization: DPoP TOKEN`, and any other as `Bearer`. A bound token that comes as `Bearer` may be stolen.";
    /// The token needs a DPoP proof, and the request has none (RFC 9449 §7.1).
    ProofMissing => "dpop_proof_missing", 401, INVALID_PROOF, "The request carries no DPoP proof.",
        "The client must send the header `dpop`; if it did, see that the gateway forwards it to the sidecar.";
    /// More than one DPoP proof (RFC 9449 §4.3).
    ProofMultiple => "dpop_proof_multiple", 401, INVALID_PROOF, "The request carries more than one DPoP proof.",
        "The client must send one `dpop` header with one proof.";
    /// The DPoP proof is not well formed, or of another type, algorithm or key than is allowed (RFC 9449 §4.2).
    ProofMalformed => "dpop_proof_malformed", 401, INVALID_PROOF, "The DPoP proof is not well formed.",
        "The client's DPoP library is wrong: `typ` is `dpop+jwt`, `alg` is asymmetric, `jwk` is the public key alone, `jti`, `htm`, `htu`, `iat` and `ath` are there.";
    /// The proof's signature does not verify.
    ProofSignatureInvalid => "dpop_signature_invalid", 401, INVALID_PROOF, "The DPoP proof's signature is not valid.",
        "The client must sign the proof with the key in its header.";
    /// The proof is for another method or URI (RFC 9449 §4.3).
    ProofRequestMismatch => "dpop_request_mismatch", 401, INVALID_PROOF, "The DPoP proof is for another request.",
        "`htm` and `htu` must be those of the request as the client sends it. Where the gateway sees another scheme, host or port, set `binding.dpop.origins`.";
    /// The proof is for another token, or made with another key than the token is bound to.
    ProofTokenMismatch => "dpop_token_mismatch", 401, INVALID_PROOF, "The DPoP proof does not belong to the token.",
        "The client must sign with the key that its token is bound to, and hash this token into `ath`. Otherwise the token is stolen.";
    /// The proof was made too long ago, or lies in the future.
    ProofExpired => "dpop_proof_expired", 401, INVALID_PROOF, "The DPoP proof was not made just now.",
        "The client must make a proof for each request. If fresh ones fail, compare clocks, or set `binding.dpop.nonce`.";
    /// The proof was used before (RFC 9449 §11.1).
    ProofReplayed => "dpop_proof_replayed", 401, INVALID_PROOF, "The DPoP proof has been used before.",
        "The client must make a proof for each request, retries too. If it does, somebody repeats its requests.";
    /// The rule asks for a nonce of ours in the proof, which lacks it or has an old one (RFC 9449 §9).
    NonceRequired => "dpop_nonce_required", 401, USE_NONCE, "The DPoP proof needs the nonce that comes with this answer.",
        "Nothing, if it happens once: the client repeats the request with the nonce of the `dpop-nonce` header. A client that cannot needs a rule without `nonce`.";
    /// As many proofs are remembered as fit; one more could be used twice.
    ProofsExhausted => "dpop_replay_cache_full", 503, None, "Too many DPoP proofs are being remembered.",
        "More DPoP requests than `dpop.replayCacheEntries` within the life of a proof: raise it, or lower `binding.dpop.maxAgeSeconds`.";
    /// The token is bound to a client certificate, and the connection shows none (RFC 8705 §3).
    CertificateMissing => "certificate_missing", 401, INVALID_TOKEN, "The token needs a client certificate, and none was presented.",
        "The client must connect with its certificate; the gateway must pass it on (Envoy: `include_peer_certificate: true`).";
    /// The client certificate cannot be read, or there is more than one.
    CertificateMalformed => "certificate_malformed", 401, INVALID_TOKEN, "The client certificate cannot be read.",
        "Behind a proxy, `x-forwarded-client-cert` must name one certificate; the proxy must set it anew for each request.";
    /// The client certificate is not the one that the token is bound to.
    CertificateMismatch => "certificate_mismatch", 401, INVALID_TOKEN, "The token is bound to another client certificate.",
        "The client has renewed its certificate and must fetch a token with the new one. Otherwise the token is stolen.";
    /// The credential may be used from certain networks only, and this is none of them.
    NetworkRefused => "network_refused", 403, None, "The credential must not be used from this network.",
        "The credential is restricted to networks: use it from there, or issue one without. Where the address is that of a proxy, see that the gateway knows the client's.";

    /// The token lacks a scope that the rule asks for.
    ScopeInsufficient => "scope_insufficient", 403, INSUFFICIENT_SCOPE, "The token lacks a required scope.",
        "The challenge names the scopes: the client must ask for them, and be allowed them (`atmctl client show`).";
    /// The rule's `condition` was evaluated, and it is false for this request.
    ConditionFalse => "condition_false", 403, None, "The rule's condition does not hold.",
        "Meant so: the rule's condition says no. `atmctl explain` shows the rule.";
    /// The rule's condition could not be evaluated: a claim that it asks for is missing or of another type.
    ConditionFault => "condition_fault", 403, None, "The rule's condition could not be evaluated.",
        "The condition asks for something that is not there, or has another type. Ask with `has()` first; see that the gateway forwards the headers that it reads.";

    /// What is known of revocations is too old, and the rule does not allow that.
    Stale => "stale", 503, None, "Revocation data is too old to decide by.",
        "The sidecar hears nothing from the control plane: look at NATS and at `/state` of the sidecar. `onStale` says what a rule does meanwhile.";
    /// No verified state has been loaded yet.
    NotReady => "not_ready", 503, None, "The validator has not loaded a verified state yet.",
        "The sidecar has just started and has heard nothing yet: look at `/readyz`, at `nats.url` and at `feedKeys`.";
    /// A fault of ours. Neither a judgement on the token nor a permit.
    Internal => "internal", 503, None, "The validator failed to decide.",
        "Look into the sidecar's log: this is a fault of ours. Report it.";
}

impl Reason {
    /// Whether a DPoP proof was refused or is missing (RFC 9449 §7.1): the challenge is of that scheme.
    pub const fn is_of_proof(self) -> bool {
        matches!(
            self,
            Self::ProofMissing
                | Self::ProofMultiple
                | Self::ProofMalformed
                | Self::ProofSignatureInvalid
                | Self::ProofRequestMismatch
                | Self::ProofTokenMismatch
                | Self::ProofExpired
                | Self::ProofReplayed
                | Self::NonceRequired
        )
    }
}

/// The whole table as Markdown, as `docs/reasons.md` holds it.
pub fn reference() -> String {
    let mut text = String::from(REFERENCE_HEAD);
    for reason in Reason::ALL {
        let error = reason.error().map_or_else(|| "-".to_owned(), |error| format!("`{error}`"));
        let row = format!(
            "| `{reason}` | {} | {error} | {} | {} |\n",
            reason.status(),
            reason.meaning(),
            reason.advice()
        );
        text.push_str(&row);
    }
    text
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Reason;

    #[test]
    fn labels_are_unique_snake_case() {
        let labels: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for label in labels {
            assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{label}");
        }
    }

    #[test]
    fn status_and_challenge_agree() {
        for reason in Reason::ALL {
            let accepted: &[Option<&str>] = match reason.status() {
                400 => &[Some("invalid_request")],
                401 => &[
                    None,
                    Some("invalid_token"),
                    Some("invalid_request"),
                    Some("invalid_dpop_proof"),
                    Some("use_dpop_nonce"),
                ],
                403 => &[None, Some("insufficient_scope")],
                503 => &[None],
                status => panic!("{reason}: {status}"),
            };
            assert!(accepted.contains(&reason.error()), "{reason}");
        }
    }

    #[test]
    fn descriptions_fit_a_quoted_challenge() {
        // RFC 6750 §3: %x20-21 / %x23-5B / %x5D-7E.
        for reason in Reason::ALL {
            assert!(
                reason.description().bytes().all(|b| matches!(b, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e)),
                "{reason}"
            );
        }
    }
}
