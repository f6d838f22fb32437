-- The audit chains: one a process of the control plane.
CREATE TABLE audit_chains (
    chain TEXT NOT NULL PRIMARY KEY,
    -- Who writes it, for people; the same over restarts.
    instance TEXT NOT NULL,
    opened_at BIGINT NOT NULL,
    closed_at BIGINT,
    -- The last sign of life of the process that writes it.
    alive_at BIGINT NOT NULL,
    -- Up to here the stream has it.
    streamed BIGINT NOT NULL
);

-- The events of one group commit. `events`: JSON, a line each; `refs`: sorted 4-byte hashes of what they refer to.
CREATE TABLE audit_segments (
    chain TEXT NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    first_ms BIGINT NOT NULL,
    last_ms BIGINT NOT NULL,
    -- The links before the first and of the last event.
    previous BYTEA NOT NULL,
    link BYTEA NOT NULL,
    refs BYTEA NOT NULL,
    events BYTEA NOT NULL,
    PRIMARY KEY (chain, first_seq)
);
CREATE INDEX audit_segments_time ON audit_segments (last_ms, chain, first_seq);

-- Signed checkpoints. Retention keeps the newest one of what it removed.
CREATE TABLE audit_checkpoints (
    chain TEXT NOT NULL,
    seq BIGINT NOT NULL,
    link BYTEA NOT NULL,
    -- 1: bridges what retention removed; written anew when more is.
    bridge BIGINT NOT NULL,
    signed BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (chain, seq, bridge)
);
