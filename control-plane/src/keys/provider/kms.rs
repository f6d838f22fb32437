//! AWS KMS, by its JSON protocol and Signature Version 4.

use std::path::PathBuf;
use std::time::Duration;

use atm_core::key::Algorithm;
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::sigv4::{Credentials, Request, authorization};
use super::vault::{bounded, client, unavailable};
use super::{KeyProvider, NewKey, ProviderError, der};

const NAME: &str = "awsKms";
/// Bytes of an answer at most.
const MAX_ANSWER: usize = 64 * 1024;
/// The shortest time that KMS keeps a key which is to be deleted.
const DELETION_DAYS: u32 = 7;

/// Where KMS is, and who we are there.
#[derive(Debug, Clone)]
pub struct KmsSettings {
    /// `https://kms.eu-central-1.amazonaws.com`, or an endpoint of one's own.
    pub endpoint: Url,
    /// `eu-central-1`
    pub region: String,
    /// JSON file with `AccessKeyId`, `SecretAccessKey` and, of temporary ones, `SessionToken`: the form in which AWS's
    /// own `credential_process` gives them. Read for each request, so that they may be renewed.
    pub credentials_file: PathBuf,
    /// One request.
    pub timeout: Duration,
}

/// KMS. A reference is the key's ARN.
#[derive(Debug)]
pub struct Kms {
    http: Client,
    host: String,
    settings: KmsSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CredentialsFile {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    session_token: Option<String>,
}

impl Kms {
    /// Talks to nobody yet.
    pub fn new(settings: KmsSettings) -> Result<Self, ProviderError> {
        let http = client(NAME, settings.timeout, None)?;
        let host = settings.endpoint.host_str().ok_or_else(|| refused("the endpoint has no host"))?;
        let host = settings.endpoint.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Self { http, host, settings })
    }

    async fn call(&self, action: &str, body: &Value) -> Result<Value, ProviderError> {
        let credentials = self.credentials().await?;
        let body = body.to_string();
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let target = format!("TrentService.{action}");
        let mut headers = vec![
            ("content-type", "application/x-amz-json-1.1"),
            ("host", self.host.as_str()),
            ("x-amz-date", now.as_str()),
            ("x-amz-target", target.as_str()),
        ];
        if let Some(token) = &credentials.session_token {
            headers.push(("x-amz-security-token", token.as_str()));
        }
        let signed = authorization(
            &credentials,
            &Request {
                method: "POST",
                path: "/",
                query: "",
                headers: &headers,
                body: body.as_bytes(),
                time: &now,
                region: &self.settings.region,
                service: "kms",
            },
        );
        let mut request = self.http.post(self.settings.endpoint.clone()).body(body.clone());
        for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
            let mut value = reqwest::header::HeaderValue::from_str(value)
                .map_err(|_| refused("the credentials hold characters that no header takes"))?;
            value.set_sensitive(*name == "x-amz-security-token");
            request = request.header(*name, value);
        }
        let response = request
            .header("authorization", signed)
            .send()
            .await
            .map_err(|error| unavailable(NAME, &error))?;
        let status = response.status();
        let bytes = bounded(NAME, response, MAX_ANSWER).await?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let kind = answer["__type"].as_str().and_then(|kind| kind.rsplit('#').next()).unwrap_or("no reason");
        let said = answer["message"].as_str().or_else(|| answer["Message"].as_str()).unwrap_or_default();
        let said: String = said.chars().take(300).collect();
        let problem = format!("{action}: {kind} {said}");
        let passing = status.is_server_error()
            || matches!(
                kind,
                "ThrottlingException"
                    | "DependencyTimeoutException"
                    | "KMSInternalException"
                    | "KeyUnavailableException"
                    | "LimitExceededException"
            );
        if passing {
            Err(ProviderError::Unavailable { provider: NAME, problem })
        } else {
            Err(refused(&problem))
        }
    }

    async fn credentials(&self) -> Result<Credentials, ProviderError> {
        let file = &self.settings.credentials_file;
        let said = |problem: String| ProviderError::Unavailable {
            provider: NAME,
            problem: format!("credentials file {}: {problem}", file.display()),
        };
        let text = Zeroizing::new(tokio::fs::read(file).await.map_err(|error| said(error.to_string()))?);
        // Without the parser's words: they may quote what it read.
        let read: CredentialsFile = serde_json::from_slice(&text)
            .map_err(|_| said("must be a JSON object with AccessKeyId and SecretAccessKey".to_owned()))?;
        Ok(Credentials {
            access_key_id: read.access_key_id,
            secret_access_key: Zeroizing::new(read.secret_access_key),
            session_token: read.session_token.map(Zeroizing::new),
        })
    }
}

impl KeyProvider for Kms {
    fn name(&self) -> &'static str {
        NAME
    }

    fn generate(&self, algorithm: Algorithm) -> BoxFuture<'_, Result<NewKey, ProviderError>> {
        async move {
            let (spec, ..) = names(algorithm)?;
            let body = json!({
                "KeySpec": spec, "KeyUsage": "SIGN_VERIFY", "Description": "ATM signing key",
                "Tags": [{ "TagKey": "managed-by", "TagValue": "atm" }],
            });
            let made = self.call("CreateKey", &body).await?;
            let arn = made["KeyMetadata"]["Arn"].as_str().ok_or_else(|| refused("the new key has no ARN"))?;
            let public = self.call("GetPublicKey", &json!({ "KeyId": arn })).await?;
            let spki = public["PublicKey"].as_str().and_then(|text| STANDARD.decode(text).ok());
            let spki = spki.ok_or_else(|| refused("the new key has no public key"))?;
            Ok(NewKey { spki, reference: arn.as_bytes().to_vec() })
        }
        .boxed()
    }

    fn sign<'a>(
        &'a self,
        algorithm: Algorithm,
        reference: &'a [u8],
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ProviderError>> {
        async move {
            let (_, name, hash) = names(algorithm)?;
            // The digest alone travels: a message of more than 4 KB could not.
            let body = json!({
                "KeyId": arn_of(reference)?, "SigningAlgorithm": name, "MessageType": "DIGEST",
                "Message": STANDARD.encode(digest::digest(hash, message)),
            });
            let answer = self.call("Sign", &body).await?;
            let signature = answer["Signature"].as_str().and_then(|text| STANDARD.decode(text).ok());
            let signature = signature.ok_or_else(|| refused("the answer holds no signature"))?;
            if der::ec_parameters(algorithm).is_none() {
                return Ok(signature);
            }
            der::fixed_signature(algorithm, &signature)
                .ok_or_else(|| refused("the signature is no ECDSA signature"))
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, reference: &'a [u8]) -> BoxFuture<'a, Result<(), ProviderError>> {
        async move {
            let body = json!({ "KeyId": arn_of(reference)?, "PendingWindowInDays": DELETION_DAYS });
            match self.call("ScheduleKeyDeletion", &body).await {
                Ok(_) => Ok(()),
                // It is gone, or on its way.
                Err(ProviderError::Refused { problem, .. })
                    if problem.contains("NotFoundException")
                        || problem.contains("KMSInvalidStateException") =>
                {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
        .boxed()
    }
}

/// `KeySpec`, `SigningAlgorithm` and the hash.
fn names(
    algorithm: Algorithm,
) -> Result<(&'static str, &'static str, &'static digest::Algorithm), ProviderError> {
    Ok(match algorithm {
        Algorithm::ES256 => ("ECC_NIST_P256", "ECDSA_SHA_256", &digest::SHA256),
        Algorithm::ES384 => ("ECC_NIST_P384", "ECDSA_SHA_384", &digest::SHA384),
        Algorithm::ES512 => ("ECC_NIST_P521", "ECDSA_SHA_512", &digest::SHA512),
        Algorithm::RS256 => ("RSA_3072", "RSASSA_PKCS1_V1_5_SHA_256", &digest::SHA256),
        Algorithm::RS384 => ("RSA_3072", "RSASSA_PKCS1_V1_5_SHA_384", &digest::SHA384),
        Algorithm::RS512 => ("RSA_3072", "RSASSA_PKCS1_V1_5_SHA_512", &digest::SHA512),
        Algorithm::PS256 => ("RSA_3072", "RSASSA_PSS_SHA_256", &digest::SHA256),
        Algorithm::PS384 => ("RSA_3072", "RSASSA_PSS_SHA_384", &digest::SHA384),
        Algorithm::PS512 => ("RSA_3072", "RSASSA_PSS_SHA_512", &digest::SHA512),
        Algorithm::EdDSA => return Err(ProviderError::Algorithm { provider: NAME, algorithm }),
    })
}

fn arn_of(reference: &[u8]) -> Result<&str, ProviderError> {
    std::str::from_utf8(reference).map_err(|_| refused("the stored reference is no ARN"))
}

fn refused(problem: &str) -> ProviderError {
    ProviderError::Refused { provider: NAME, problem: problem.to_owned() }
}
