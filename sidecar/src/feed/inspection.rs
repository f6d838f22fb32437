//! Whether the copy here is the log's: compared when a heartbeat says otherwise, or when the control plane asks for it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use atm_proto::command::Command;
use atm_proto::digests::Digests;
use atm_proto::report::DigestsRequest;
use atm_proto::signature::Domain;
use prost::Message;

use super::Follower;
use super::applier::{Cause, Compared};
use super::loading::Purpose;

/// How long the control plane may take to tell its digests.
const DIGESTS_WAIT: Duration = Duration::from_secs(2);

impl Follower {
    /// The copy differs, or the control plane has asked for a comparison that was not made yet. It begins when there is nothing
    /// else to do.
    pub(super) fn inspection_is_due(&self) -> bool {
        let asked = self.scrub > self.applier.status().scrub_done.load(Ordering::Relaxed);
        !self.loading.is_under_way()
            && (asked || self.applier.has_diverged())
            && !self.applier.knows_of_more()
    }

    /// Compares part by part with the control plane, and begins to repair what differs.
    pub(super) async fn inspect(&mut self) {
        let theirs = match self.digests().await {
            Ok(theirs) => theirs,
            Err(problem) => {
                tracing::warn!(problem, "the copy cannot be compared with the log; trying again");
                return self.wait_before_asking();
            }
        };
        match self.applier.compare_parts(&theirs) {
            Compared::OtherRevision => self.wait_before_asking(),
            Compared::Same | Compared::Surplus(_) => {
                self.applier.set_level();
                self.applier.status().scrub_done.store(self.scrub, Ordering::Relaxed);
                self.pause = Duration::ZERO;
            }
            Compared::Differ(parts) => {
                tracing::warn!(parts, "repairing the copy from the newest snapshot");
                match self.applier.head().filter(|head| head.snapshot_revision > 0) {
                    Some(head) => {
                        let wanted = self.wanted(head);
                        self.load(wanted, Purpose::Repair);
                    }
                    None => self.wait_before_asking(),
                }
            }
        }
    }

    /// The digests of all parts of the log's state, as the control plane has them.
    async fn digests(&self) -> Result<Digests, String> {
        let request = DigestsRequest::default().encode_to_vec();
        let reply = self.client.request(self.subjects.digests(), request.into());
        let reply = tokio::time::timeout(DIGESTS_WAIT, reply)
            .await
            .map_err(|_| "the control plane did not answer in time".to_owned())?
            .map_err(|error| error.to_string())?;
        let payload = self
            .applier
            .trust()
            .verify(Domain::Digests, &reply.payload)
            .map_err(|error| format!("the answer is not believed: {error}"))?;
        let digests = Digests::decode(&payload).map_err(|error| error.to_string())?;
        if digests.realm_group != self.applier.realm_group() {
            return Err(format!("the answer is of realm group {:?}", digests.realm_group));
        }
        Ok(digests)
    }

    /// Takes a signed request of the control plane.
    pub(super) fn command(&mut self, bytes: &[u8]) {
        let payload = match self.applier.trust().verify(Domain::Command, bytes) {
            Ok(payload) => payload,
            Err(error) => {
                self.applier.status().refuse(Cause::Signature);
                tracing::warn!(%error, "refused a request to the fleet");
                return;
            }
        };
        match Command::decode(&payload) {
            // An old request that is sent again asks for what was done.
            Ok(command) if command.realm_group == self.applier.realm_group() => {
                if command.scrub > self.scrub {
                    self.scrub = command.scrub;
                    // The disk is looked at beside it.
                    self.applier.status().scrub_wanted.store(true, Ordering::Relaxed);
                }
            }
            Ok(_) => self.applier.status().refuse(Cause::Conflict),
            Err(error) => {
                self.applier.status().refuse(Cause::Decode);
                tracing::warn!(%error, "a request to the fleet is not understood; upgrade this sidecar");
            }
        }
    }
}
