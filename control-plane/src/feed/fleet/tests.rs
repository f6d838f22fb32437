use atm_proto::change::Digest;

use super::*;

const EVERYONE: FleetQuery = FleetQuery { state: None, limit: 1_000 };
const EPOCH: Epoch = Epoch::from_bytes([1; 16]);

fn report(id: &str, applied_revision: u64) -> SidecarReport {
    SidecarReport {
        sidecar_id: id.into(),
        epoch: EPOCH.as_bytes().to_vec(),
        applied_revision,
        ready: true,
        ..Default::default()
    }
}

fn position(revision: u64) -> Position {
    Position { epoch: EPOCH, revision, digest: Digest::ZERO }
}

#[tokio::test(start_paused = true)]
async fn a_receipt_counts_who_applied_and_names_who_did_not() {
    let fleet = Fleet::default();
    fleet.sequenced(5);
    tokio::time::advance(Duration::from_millis(7)).await;
    assert!(fleet.report("a", report("a", 5)));
    assert!(fleet.report("b", report("b", 4)));
    let receipt = fleet.receipt(EPOCH, 5, 1.0, true);
    assert_eq!((receipt.live, receipt.applied, receipt.complete), (2, 1, false));
    assert_eq!(receipt.missing, ["b"]);
    assert!(fleet.receipt(EPOCH, 5, 0.5, true).complete);
    tokio::time::advance(Duration::from_millis(5)).await;
    assert!(fleet.report("b", report("b", 6)));
    let receipt = fleet.receipt(EPOCH, 5, 1.0, true);
    assert_eq!((receipt.complete, receipt.slowest_ms), (true, Some(12)));
    assert!(!fleet.receipt(EPOCH, 5, 1.0, false).complete, "out of sight is never complete");
}

#[tokio::test(start_paused = true)]
async fn an_empty_fleet_is_believed_only_after_the_warm_up() {
    let fleet = Fleet::default();
    assert!(!fleet.receipt(EPOCH, 1, 1.0, true).complete);
    fleet.listening(true);
    assert!(!fleet.receipt(EPOCH, 1, 1.0, true).complete);
    tokio::time::advance(WARM_UP).await;
    assert!(fleet.receipt(EPOCH, 1, 1.0, true).complete);
}

#[tokio::test(start_paused = true)]
async fn states_follow_leases_and_revisions() {
    let fleet = Fleet::default();
    fleet.sequenced(1);
    fleet.report("a", report("a", 0));
    fleet.report("b", report("b", 1));
    let states = |fleet: &Fleet| {
        fleet.view(position(1), EVERYONE).sidecars.into_iter().map(|s| s.state).collect::<Vec<_>>()
    };
    assert_eq!(states(&fleet), [SidecarState::Live, SidecarState::Live], "a second is granted");
    tokio::time::advance(BEHIND_AFTER).await;
    assert_eq!(states(&fleet), [SidecarState::New, SidecarState::Live]);
    tokio::time::advance(LEASE).await;
    assert_eq!(states(&fleet), [SidecarState::Gone, SidecarState::Gone]);
    let receipt = fleet.receipt(EPOCH, 1, 1.0, true);
    assert_eq!((receipt.live, receipt.gone), (0, 2));
    tokio::time::advance(REMEMBERED).await;
    fleet.forget_old();
    assert!(fleet.view(position(1), EVERYONE).sidecars.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_applied_in_another_epoch_counts_for_nothing() {
    let fleet = Fleet::default();
    fleet.report("a", report("a", 9));
    let receipt = fleet.receipt(Epoch::from_bytes([2; 16]), 1, 1.0, true);
    assert_eq!((receipt.live, receipt.applied), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_report_under_another_name_or_over_the_bound_is_refused() {
    let fleet = Fleet::default();
    assert!(!fleet.report("a", report("b", 1)));
    for number in 0..MAX_SIDECARS {
        let id = number.to_string();
        assert!(fleet.report(&id, report(&id, 1)));
    }
    assert!(!fleet.report("one-more", report("one-more", 1)));
    assert!(fleet.report("0", report("0", 2)), "known ones go on");
    tokio::time::advance(LEASE).await;
    assert!(fleet.report("one-more", report("one-more", 1)), "the gone make room");
}

#[tokio::test(start_paused = true)]
async fn what_sidecars_say_of_themselves_tells_them_apart_and_a_diverged_one_proves_nothing() {
    let fleet = Fleet::default();
    fleet.sequenced(7);
    tokio::time::advance(BEHIND_AFTER).await;
    let conditioned = |id: &str, revision, condition: SidecarCondition| SidecarReport {
        condition: condition.into(),
        ..report(id, revision)
    };
    for report in [
        conditioned("diverged", 7, SidecarCondition::Diverged),
        conditioned("refusing", 3, SidecarCondition::Refusing),
        conditioned("behind", 3, SidecarCondition::Loading),
        conditioned("level", 7, SidecarCondition::Level),
        SidecarReport { epoch: vec![], ..report("new", 0) },
    ] {
        assert!(fleet.report(&report.sidecar_id.clone(), report));
    }
    let view = fleet.view(position(7), EVERYONE);
    let states: Vec<_> = view.sidecars.iter().map(|sidecar| (sidecar.id.as_str(), sidecar.state)).collect();
    assert_eq!(
        states,
        [
            ("behind", SidecarState::Behind),
            ("diverged", SidecarState::Diverged),
            ("level", SidecarState::Live),
            ("new", SidecarState::New),
            ("refusing", SidecarState::Refusing),
        ]
    );
    assert!(view.sidecars[0].loading);
    assert_eq!((view.live, view.in_force_on, view.states[&SidecarState::Diverged]), (5, 1, 1));
    let receipt = fleet.receipt(EPOCH, 7, 1.0, true);
    assert_eq!((receipt.applied, receipt.missing.len(), receipt.complete), (1, 4, false));
    let worst = fleet.view(position(7), FleetQuery { state: None, limit: 1 });
    assert_eq!((worst.sidecars[0].id.as_str(), worst.left_out), ("refusing", 4));
    let asked = FleetQuery { state: Some(SidecarState::New), limit: 9 };
    assert_eq!(fleet.view(position(7), asked).sidecars.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn receipts_have_quantiles_and_large_fleets_report_less_often() {
    let fleet = Fleet::default();
    assert_eq!(fleet.report_pause_ms(), 5);
    fleet.sequenced(1);
    for number in 0..1_000_u64 {
        tokio::time::advance(Duration::from_millis(1)).await;
        let id = number.to_string();
        fleet.report(&id, report(&id, 1));
    }
    let receipt = fleet.receipt(EPOCH, 1, 1.0, true);
    let times = receipt.reported_ms.unwrap();
    assert_eq!((times.median, times.p99, times.max), (501, 991, 1_000));
    assert_eq!(receipt.slowest_ms, Some(1_000));
    for number in 1_000..10_000 {
        let id = number.to_string();
        fleet.report(&id, report(&id, 1));
    }
    assert_eq!(fleet.report_pause_ms(), 500, "ten thousand of them");
}
