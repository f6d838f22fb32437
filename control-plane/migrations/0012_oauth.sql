-- Clients by realm. The key of one outside the default realm is `realm/client_id`; no id has a slash.
ALTER TABLE clients ADD COLUMN realm TEXT NOT NULL DEFAULT 'default';
-- JSON: all that an operator decides. None: a row from before this column, which the other columns describe in full.
ALTER TABLE clients ADD COLUMN configuration TEXT;
ALTER TABLE clients ADD COLUMN previous_secret_hash BYTEA;
ALTER TABLE clients ADD COLUMN previous_secret_expires_at BIGINT;
CREATE INDEX clients_realm ON clients (realm, client_id);
INSERT INTO versions (topic, version) VALUES ('clients', 0);

-- One row a session (token family); a refresh updates it and writes no index.
CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    realm TEXT NOT NULL,
    client_id TEXT NOT NULL,
    subject TEXT NOT NULL,
    -- What revocations name the subject by.
    subject_id BYTEA NOT NULL,
    -- JSON: scopes, audiences, claims.
    details TEXT NOT NULL,
    -- Empty, or the thumbprint that a refresh must be proved with: `jkt:..` or `x5t#S256:..`.
    bound_to TEXT NOT NULL,
    generation BIGINT NOT NULL,
    status TEXT NOT NULL,
    -- The issue clock's instant: a watermark at or after it ends the session.
    opened_at BIGINT NOT NULL,
    refreshed_at BIGINT NOT NULL,
    idle_expires_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    ended_at BIGINT
);
CREATE INDEX sessions_subject ON sessions (subject_id, id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

-- Subjects that get no tokens.
CREATE TABLE disabled_subjects (
    realm TEXT NOT NULL,
    subject TEXT NOT NULL,
    reason TEXT,
    actor TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (realm, subject)
);

-- Assertions and proofs that were used, until they are too old by themselves.
CREATE TABLE used_once (
    id BYTEA NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL
);
CREATE INDEX used_once_expiry ON used_once (expires_at);

-- Opaque access tokens. The hash is keyed, over the digest (SHA-256) of the token: who asks names it by its digest.
CREATE TABLE opaque_tokens (
    digest_hash BYTEA NOT NULL PRIMARY KEY,
    realm TEXT NOT NULL,
    -- JSON object: what a JWT would say.
    claims TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX opaque_tokens_expiry ON opaque_tokens (expires_at);

-- Which assertions of trusted issuers stand for which client (RFC 7523 section 2.1).
CREATE TABLE assertion_rules (
    id TEXT NOT NULL PRIMARY KEY,
    realm TEXT NOT NULL,
    issuer TEXT NOT NULL,
    -- JSON.
    rule TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX assertion_rules_issuer ON assertion_rules (realm, issuer, id);
