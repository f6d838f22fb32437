-- One SQL text for SQLite and PostgreSQL: BIGINT, TEXT and BYTEA only. Instants are milliseconds since the Unix epoch
-- unless a name ends in `_s`.

-- The head of the feed. One row; the sequencer's lock.
CREATE TABLE feed_head (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    epoch BYTEA NOT NULL,
    revision BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    -- The newest instant that the issue clock handed out, so that a restart never falls behind it.
    issue_floor_ms BIGINT NOT NULL
);

-- Changes that were committed, in commit order. `change` is emptied and `revision` set once sequenced.
CREATE TABLE outbox (
    id TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL,
    change BYTEA NOT NULL,
    epoch BYTEA,
    revision BIGINT,
    created_at BIGINT NOT NULL
);
CREATE INDEX outbox_unsequenced ON outbox (position) WHERE revision IS NULL;
CREATE INDEX outbox_sequenced ON outbox (created_at) WHERE revision IS NOT NULL;

-- The log: exactly the bytes that are published, so that what a carrier loses can be sent again unchanged.
CREATE TABLE change_sets (
    epoch BYTEA NOT NULL,
    revision BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    signed BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (epoch, revision)
);

CREATE TABLE clients (
    client_id TEXT NOT NULL PRIMARY KEY,
    name TEXT,
    secret_hash BYTEA NOT NULL,
    -- JSON arrays of strings.
    scopes TEXT NOT NULL,
    audiences TEXT NOT NULL,
    access_token_lifetime_s BIGINT,
    status TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE signing_keys (
    kid TEXT NOT NULL PRIMARY KEY,
    issuer TEXT NOT NULL,
    realm TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    state TEXT NOT NULL,
    spki BYTEA NOT NULL,
    -- Private key (PKCS #8), AES-256-GCM, associated data: kid and algorithm. Emptied when the key has retired.
    wrapped BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    activated_at BIGINT,
    retiring_at BIGINT,
    retired_at BIGINT
);
CREATE INDEX signing_keys_issuer ON signing_keys (issuer, state);

-- One row a revocation call and selector kind; what operators list.
CREATE TABLE revocations (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    -- The selector's value; the first one of several.
    value TEXT NOT NULL,
    issuer TEXT,
    -- How many were named.
    number BIGINT NOT NULL,
    not_after BIGINT NOT NULL,
    reason TEXT,
    actor TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX revocations_created ON revocations (created_at);

-- What is enforced: single tokens by the hour of their expiry (0: unknown, kept) ...
CREATE TABLE revoked_tokens (
    bucket BIGINT NOT NULL,
    id BYTEA NOT NULL,
    PRIMARY KEY (bucket, id)
);

-- ... and registers, merged by maximum. `kind` is the number on the wire.
CREATE TABLE watermarks (
    kind BIGINT NOT NULL,
    id BYTEA NOT NULL,
    not_after BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);

CREATE TABLE policy_sets (
    version BIGINT NOT NULL PRIMARY KEY,
    -- JSON array of YAML documents.
    documents TEXT NOT NULL,
    actor TEXT NOT NULL,
    -- The version whose documents a rollback brought back.
    restored_from BIGINT,
    applied_at BIGINT NOT NULL
);
