//! Revocations that lie on a disk that cannot be read any more.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use atm_core::id::IdKind;
use atm_tests::envoy;
use atm_tests::feed::revoked_tokens;
use atm_tests::token::now;
use atm_tests::wait;
use serde_json::json;

use super::fixture::{Asked, Fixture};

/// More than the index keeps in full, so that they get settled behind a filter.
const REVOKED: u32 = 20_000;

/// What a filter says may be revoked, and no disk confirms, is refused with its own reason, over an Envoy that would let an error
/// through; what the filter rules out is decided as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_cannot_be_read_refuses_and_the_rest_goes_on() {
    let mut fixture = Fixture::start().await;
    let expires = now() + 3_600;
    let jti = |number: u32| format!("revoked-{number}");
    let ids = (0..REVOKED).map(|number| fixture.mint.id(IdKind::Token, &jti(number)));
    let revision = fixture.author.publish(vec![revoked_tokens(expires, ids)]).await;
    fixture.sidecar.until_applied(revision).await;
    let settled = || async {
        let settled = fixture.sidecar.metric("atm_sidecar_revocations_held{place=\"filter\"}").await;
        if settled >= f64::from(REVOKED) { Ok(()) } else { Err(format!("{settled} of {REVOKED}")) }
    };
    wait::until("all of them to be settled", wait::USUAL, settled).await;

    // A start after a crash writes to table files what was in the log only.
    fixture.sidecar.kill();
    fixture.sidecar.start().await;
    fixture.sidecar.until_ready().await;
    let envoy = fixture
        .envoy(Asked::Grpc, |config| envoy::ext_authz(config)["failure_mode_allow"] = json!(true))
        .await;
    let signed = |name: &str| fixture.mint.token().claim("jti", name).claim("exp", expires).sign();
    let readable = fixture.get(&envoy, "/orders", Some(&signed(&jti(0)))).await;
    assert_eq!(readable.header("x-atm-reason"), Some("revoked_token"), "{}", readable.text());

    spoil(&fixture.sidecar.store());
    let mut unconfirmed = 0_u32;
    for number in (1..REVOKED).step_by(500) {
        let answer = fixture.get(&envoy, "/orders", Some(&signed(&jti(number)))).await;
        assert!(!answer.reached_upstream(), "{number}: {}", answer.text());
        match answer.header("x-atm-reason") {
            Some("revocation_unconfirmed") => unconfirmed += u32::from(answer.status == 503),
            // A block that was read before lies in the cache.
            reason => assert_eq!(reason, Some("revoked_token"), "{number}: {}", answer.text()),
        }
    }
    assert!(unconfirmed > 0, "no table was damaged");
    let others = (0..20).map(|number| signed(&format!("other-{number}")));
    let mut passed = 0;
    for token in others {
        passed += usize::from(fixture.get(&envoy, "/orders", Some(&token)).await.reached_upstream());
    }
    // A filter is wrong about one in some 250.
    assert!(passed >= 18, "{passed} of 20 that are not revoked");
    let errors = fixture.sidecar.metric("atm_sidecar_revocation_confirmation_errors_total").await;
    assert!(errors >= f64::from(unconfirmed), "{errors}");
}

/// Turns bytes all over the larger table files, under the running program.
fn spoil(store: &Path) {
    for file in std::fs::read_dir(store).expect("a store").flatten() {
        let path = file.path();
        if path.extension().is_none_or(|extension| extension != "sst") {
            continue;
        }
        let mut file = std::fs::File::options().read(true).write(true).open(&path).expect("a table file");
        let length = file.metadata().expect("its length").len();
        for at in (64..length * 9 / 10).step_by(512) {
            let mut byte = [0];
            file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut byte)).expect("read");
            byte[0] ^= 0x40;
            file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&byte)).expect("written");
        }
    }
}
