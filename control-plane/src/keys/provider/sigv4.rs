//! AWS Signature Version 4: signs one request. The SDK's own crate would bring a second implementation of SHA-256 and HMAC, and
//! the SDK's runtime types; what is needed of it fits on a page and is tested with AWS's published vectors.

use std::fmt;

use aws_lc_rs::{digest, hmac};
use zeroize::Zeroizing;

/// What AWS knows a caller by.
#[derive(Clone)]
pub struct Credentials {
    /// Public.
    pub access_key_id: String,
    /// Secret.
    pub secret_access_key: Zeroizing<String>,
    /// Of temporary credentials; secret.
    pub session_token: Option<Zeroizing<String>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// A request to be signed. Header names in lower case, in any order, `host` and `x-amz-date` among them.
#[derive(Debug)]
pub struct Request<'a> {
    /// `POST`.
    pub method: &'a str,
    /// Absolute, already escaped.
    pub path: &'a str,
    /// Without the question mark; names and values escaped and sorted.
    pub query: &'a str,
    /// All that are signed.
    pub headers: &'a [(&'a str, &'a str)],
    /// The whole body.
    pub body: &'a [u8],
    /// `20150830T123600Z`, as in `x-amz-date`.
    pub time: &'a str,
    /// `eu-central-1`
    pub region: &'a str,
    /// `kms`
    pub service: &'a str,
}

/// The `Authorization` header's value.
pub fn authorization(credentials: &Credentials, request: &Request<'_>) -> String {
    let mut headers: Vec<_> = request.headers.to_vec();
    headers.sort_unstable();
    let signed: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let signed = signed.join(";");
    let mut canonical_headers = String::new();
    for (name, value) in &headers {
        canonical_headers.push_str(&format!("{name}:{}\n", value.trim()));
    }
    let canonical = format!(
        "{}\n{}\n{}\n{canonical_headers}\n{signed}\n{}",
        request.method,
        request.path,
        request.query,
        sha256(request.body)
    );
    let date = request.time.split('T').next().unwrap_or_default();
    let scope = format!("{date}/{}/{}/aws4_request", request.region, request.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", request.time, sha256(canonical.as_bytes()));
    let secret = Zeroizing::new(format!("AWS4{}", *credentials.secret_access_key));
    let key = [date, request.region, request.service, "aws4_request"]
        .iter()
        .fold(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), |key, part| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
        });
    let signature = hex::encode(hmac::sign(&key, to_sign.as_bytes()));
    let id = &credentials.access_key_id;
    format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={signed}, Signature={signature}")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: Zeroizing::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
            session_token: None,
        }
    }

    fn request<'a>(
        method: &'a str,
        query: &'a str,
        headers: &'a [(&'a str, &'a str)],
        service: &'a str,
    ) -> Request<'a> {
        Request {
            method,
            path: "/",
            query,
            headers,
            body: b"",
            time: "20150830T123600Z",
            region: "us-east-1",
            service,
        }
    }

    /// AWS's Signature Version 4 test suite: get-vanilla and post-vanilla.
    #[test]
    fn the_published_test_suite() {
        let headers = [("x-amz-date", "20150830T123600Z"), ("host", "example.amazonaws.com")];
        for (method, signature) in [
            ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        ] {
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature={signature}"
            );
            assert_eq!(authorization(&credentials(), &request(method, "", &headers, "service")), expected);
        }
    }

    /// The example of AWS's General Reference: IAM's ListUsers.
    #[test]
    fn the_published_example() {
        let headers = [
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("host", "iam.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        let signed = authorization(
            &credentials(),
            &request("GET", "Action=ListUsers&Version=2010-05-08", &headers, "iam"),
        );
        assert!(
            signed.ends_with("Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"),
            "{signed}"
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", credentials()).contains("wJalr"));
    }
}
