use atm_core::key::{Algorithm, KeyState};
use proptest::prelude::*;

use super::*;

fn set(changes: Vec<Change>) -> ChangeSet {
    ChangeSet {
        realm_group: "default".into(),
        epoch: Epoch::from_bytes([7; 16]),
        revision: 3,
        previous_digest: Digest::of(b"before"),
        time: UnixMillis(1_763_942_400_123),
        changes,
    }
}

#[test]
fn a_change_kind_of_a_later_version_is_refused_not_skipped() {
    let mut payload = set(vec![]).encode();
    // `changes` (field 6) with a message whose only field is number 15.
    payload.extend([0x32, 0x02, 0x7a, 0x00]);
    let error = ChangeSet::decode(&payload).unwrap_err();
    assert!(error.to_string().contains("upgrade the sidecar"), "{error}");
}

#[test]
fn unsorted_or_torn_ids_are_refused() {
    for ids in [vec![2u8; 32], vec![1; 17], [[2u8; 16], [1; 16]].concat()] {
        let change = wire::Change {
            kind: Some(wire::change::Kind::RevokedTokens(wire::RevokedTokens { bucket: 1, ids })),
        };
        let mut message = wire::ChangeSet::decode(&set(vec![]).encode()[..]).unwrap();
        message.changes = vec![change];
        assert!(ChangeSet::decode(&message.encode_to_vec()).is_err());
    }
}

#[test]
fn an_unknown_watermark_kind_or_a_missing_instant_is_refused() {
    for (kind, instants) in [(0, vec![1]), (99, vec![1]), (2, vec![])] {
        let change = wire::Change {
            kind: Some(wire::change::Kind::Watermarks(wire::Watermarks {
                kind,
                ids: vec![0; 16],
                not_after_ms: instants,
            })),
        };
        let mut message = wire::ChangeSet::decode(&set(vec![]).encode()[..]).unwrap();
        message.changes = vec![change];
        assert!(ChangeSet::decode(&message.encode_to_vec()).is_err(), "kind {kind}");
    }
}

#[test]
fn a_bad_policy_set_leaves_the_one_before_in_force() {
    let mut view = View::default();
    let before = Arc::clone(&view.policies);
    let change = Change::Policies { version: 2, documents: vec!["kind: Nonsense".into()] };
    assert!(apply(&change, &mut view).is_err());
    assert!(Arc::ptr_eq(&before, &view.policies));
}

#[test]
fn a_heartbeat_survives_its_bytes() {
    let heartbeat = Heartbeat {
        realm_group: "default".into(),
        epoch: Epoch::from_bytes([1; 16]),
        revision: 9,
        oldest_revision: 2,
        time: UnixMillis(5),
        digest: Digest::of(b"x"),
        snapshot_revision: 4,
        state: Some(StateDigest { oldest_bucket: Bucket(3), root: [7; 32] }),
        report_pause_ms: 5,
        rotation: 0,
    };
    assert_eq!(Heartbeat::decode(&heartbeat.encode()).unwrap(), heartbeat);
}

#[test]
fn the_token_types_of_an_issuer_survive_their_bytes_and_reach_the_view() {
    let change = Change::IssuerKeys {
        issuer: "https://idp.example".into(),
        realm: None,
        keys: vec![key()],
        token_types: vec!["JWT".into(), "none".into()],
    };
    let mut view = View::default();
    apply(&Change::decode(&change.encode()).unwrap(), &mut view).unwrap();
    assert_eq!(view.issuers.get("https://idp.example").unwrap().token_types(), ["JWT", "none"]);
}

fn key() -> VerificationKey {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
    let pair = Ed25519KeyPair::generate().unwrap();
    let spki = pair.public_key().as_der().unwrap();
    VerificationKey::from_spki("k1", Algorithm::EdDSA, spki.as_ref(), KeyState::Active).unwrap()
}

proptest! {
    #[test]
    fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = ChangeSet::decode(&bytes);
        let _ = Heartbeat::decode(&bytes);
    }

    #[test]
    fn revocations_survive_their_bytes(
        ids in proptest::collection::btree_set(any::<[u8; 16]>(), 0..50),
        bucket in any::<u32>(),
        entries in proptest::collection::vec((any::<[u8; 16]>(), any::<i64>()), 0..20),
    ) {
        let ids: Vec<_> = ids.into_iter().map(Id::from_bytes).collect();
        let entries: Vec<_> = entries.into_iter().map(|(id, ms)| (Id::from_bytes(id), UnixMillis(ms))).collect();
        let payload = set(vec![
            Change::RevokedTokens { bucket: Bucket(bucket), ids: ids.clone() },
            Change::Watermarks { kind: IdKind::Client, entries: entries.clone() },
        ]).encode();
        let decoded = ChangeSet::decode(&payload).unwrap();
        let Change::RevokedTokens { bucket: b, ids: i } = &decoded.changes[0] else { panic!() };
        prop_assert_eq!((b.0, i), (bucket, &ids));
        let Change::Watermarks { kind: IdKind::Client, entries: e } = &decoded.changes[1] else { panic!() };
        prop_assert_eq!(e, &entries);
        prop_assert_eq!(decoded.encode(), payload);
    }
}
