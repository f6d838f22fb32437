//! Puts a snapshot in force: rows as they come, key sets, policies and the position at the end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use atm_proto::change::Change;
use atm_proto::snapshot::{Content, Manifest, Rows};

use super::{Applier, Position, put_in_force};
use crate::feed::snapshot::Staged;
use crate::store::{Saved, Snapshot};

impl Applier {
    /// Whether neither revocations nor a position are here, so that a snapshot replaces nothing.
    pub(in crate::feed) fn holds_nothing(&self) -> bool {
        let revocations = &self.state.view.revocations;
        self.state.position == Position::START
            && !self.state.verified
            && revocations.is_empty()
            && revocations.watermark_count() == 0
    }

    /// Where the ids of large snapshots are staged; none while the disk takes nothing.
    pub(in crate::feed) fn staging_path(&self) -> Option<PathBuf> {
        let takes = self.writer.settles() && !self.status().store_failing.load(Ordering::Relaxed);
        takes.then(|| self.writer.staging_path().to_owned())
    }

    /// Has the store take a staged snapshot in as a whole; what comes of it is [`Applier::arrival`]. Whether it was taken.
    pub(in crate::feed) fn install_staged(
        &self,
        manifest: &Manifest,
        changes: Vec<Change>,
        staged: Staged,
    ) -> bool {
        let position =
            Position { epoch: Some(manifest.epoch), revision: manifest.revision, digest: manifest.digest };
        let Staged { staging, segments, .. } = staged;
        self.writer.install(Snapshot { staging, segments, position, changes })
    }

    /// Has the store join staged ids to those in force; what comes of it is [`Applier::arrival`]. Whether they were taken.
    pub(in crate::feed) fn join_staged(&self, staged: Staged) -> bool {
        self.writer.repair(staged.staging, staged.segments)
    }

    /// Adds the rows of a verified segment. The position stays: what is added is in force at a later one, and adding it
    /// early refuses nothing that may live.
    pub(in crate::feed) fn add_rows(&mut self, content: Content, rows: Rows) {
        let change = match (content, rows) {
            (Content::Tokens(bucket), Rows::Tokens(ids)) => Change::RevokedTokens { bucket, ids },
            (Content::Watermarks(kind), Rows::Watermarks(entries)) => Change::Watermarks { kind, entries },
            _ => return, // a segment opens as what it is
        };
        let changes = vec![change];
        put_in_force(&mut self.state, &changes);
        self.publisher.publish(self.state.clone());
        self.writer.save(Saved { changes, position: self.state.position, policies: true });
        self.settle_due();
    }

    /// All of the snapshot's rows are in: puts its key sets, policies and position in force where they are newer than what is
    /// here. Issuers that the log no longer names go. False: the snapshot is of another epoch by now.
    pub(in crate::feed) fn complete(&mut self, manifest: &Manifest, values: Vec<Change>) -> bool {
        if self.head.as_ref().is_some_and(|(head, _)| head.epoch != manifest.epoch) {
            return false;
        }
        let here = self.state.position;
        let ours = here.epoch == Some(manifest.epoch);
        let newer = !ours || here.revision < manifest.revision;
        let mut changes = Vec::new();
        if newer {
            changes = self.without_unnamed_issuers(&values);
            changes.extend(values);
            self.state.position = Position {
                epoch: Some(manifest.epoch),
                revision: manifest.revision,
                digest: manifest.digest,
            };
            self.state.verified = true;
            self.recent.clear();
            self.recent.push_back((manifest.revision, manifest.digest));
            self.blocked = None;
        }
        let policies = put_in_force(&mut self.state, &changes);
        self.publisher.publish(self.state.clone());
        self.writer.save(Saved { changes, position: self.state.position, policies });
        tracing::info!(
            revision = manifest.revision,
            position = self.state.position.revision,
            "the snapshot is in force"
        );
        self.meet_head();
        true
    }

    /// What takes the trust from issuers that the snapshot's key sets do not name: those of an ended epoch, too.
    fn without_unnamed_issuers(&self, values: &[Change]) -> Vec<Change> {
        let named: BTreeSet<&str> = values.iter().filter_map(issuer).collect();
        let known = self.state.view.issuers.iter().map(|known| known.name().to_owned());
        let gone = known.filter(|known| !named.contains(known.as_str()));
        gone.map(|issuer| {
            tracing::warn!(issuer, "the log does not know this issuer: it is trusted no more");
            Change::IssuerKeys { issuer, realm: None, keys: vec![], token_types: vec![] }
        })
        .collect()
    }

    /// Goes back to the snapshot, whose rows are all in, and takes the revisions behind it once more: whatever of them is
    /// missing here comes back. Nothing that is in force goes meanwhile.
    pub(in crate::feed) fn go_back_to(&mut self, manifest: &Manifest) {
        let here = self.state.position;
        if here.epoch != Some(manifest.epoch) || here.revision <= manifest.revision {
            return;
        }
        self.again_to = self.again_to.max(here.revision);
        self.state.position =
            Position { epoch: here.epoch, revision: manifest.revision, digest: manifest.digest };
        self.recent.clear();
        self.recent.push_back((manifest.revision, manifest.digest));
        self.publisher.publish(self.state.clone());
        self.writer.save(Saved { changes: vec![], position: self.state.position, policies: true });
    }
}

fn issuer(change: &Change) -> Option<&str> {
    match change {
        Change::IssuerKeys { issuer, .. } => Some(issuer),
        _ => None,
    }
}
