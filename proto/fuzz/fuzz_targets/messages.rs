//! Any bytes as a message between control plane and sidecar: refused, or read, written and read again alike. A signature precedes
//! most of them; what a signed message may hold is bounded all the same.
#![no_main]

use atm_core::view::View;
use atm_proto::change::{Change, ChangeSet, Heartbeat, apply};
use atm_proto::introspection::{IntrospectionReply, IntrospectionRequest};
use atm_proto::signature::{Domain, TrustedFeedKeys};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    assert!(TrustedFeedKeys::new(Vec::new()).verify(Domain::ChangeSet, bytes).is_err());
    if let Ok(heartbeat) = Heartbeat::decode(bytes) {
        assert_eq!(Heartbeat::decode(&heartbeat.encode()).expect("own encoding"), heartbeat);
    }
    if let Ok(request) = IntrospectionRequest::decode(bytes) {
        assert_eq!(IntrospectionRequest::decode(&request.encode()).expect("own encoding"), request);
    }
    if let Ok(reply) = IntrospectionReply::decode(bytes) {
        assert_eq!(IntrospectionReply::decode(&reply.encode()).expect("own encoding"), reply);
    }
    if let Ok(change) = Change::decode(bytes) {
        Change::decode(&change.encode()).expect("own encoding");
    }
    if let Ok(set) = ChangeSet::decode(bytes) {
        let mut view = View::default();
        for change in &set.changes {
            let _ = apply(change, &mut view);
        }
    }
});
