-- The state that the log has come to at its head, written by the sequencer in the transaction that moves the head. Single
-- tokens and watermarks are in revoked_tokens and watermarks.

-- Key sets and policies: the last change of each name, as the wire has it.
CREATE TABLE feed_values (
    name TEXT NOT NULL PRIMARY KEY,
    change BYTEA NOT NULL
);

-- Digests of the parts of the state: of the single tokens of one bucket (kind 0), or of all watermarks of a kind.
CREATE TABLE feed_digests (
    kind BIGINT NOT NULL,
    bucket BIGINT NOT NULL,
    -- Number of entries and sum over their hashes, 24 bytes.
    digest BYTEA NOT NULL,
    PRIMARY KEY (kind, bucket)
);

-- Signed manifests; the segments are files and messages, named by their content.
CREATE TABLE snapshots (
    epoch BYTEA NOT NULL,
    revision BIGINT NOT NULL,
    manifest BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (epoch, revision)
);

-- Work that one process at a time does, so that replicas do not do it twice.
CREATE TABLE feed_leases (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    until BIGINT NOT NULL
);

-- How the trust in feed keys was handed over: signed lists of those that are trusted from then on.
CREATE TABLE feed_rotations (
    number BIGINT NOT NULL PRIMARY KEY,
    signed BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

-- Scopes that were revoked and whose watermarks have not come through the log yet: refused here from the commit on.
CREATE TABLE ended_scopes (
    kind BIGINT NOT NULL,
    id BYTEA NOT NULL,
    not_after BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);

-- What this store refuses.
CREATE VIEW enforced_watermarks AS
SELECT kind, id, not_after FROM watermarks
UNION ALL
SELECT kind, id, not_after FROM ended_scopes;
