-- Issuers that are not ours. What they published last and can be used stays through an outage and a restart.
CREATE TABLE trusted_issuers (
    id TEXT NOT NULL PRIMARY KEY,
    issuer TEXT NOT NULL UNIQUE,
    -- JSON: where keys come from and which tokens are taken.
    settings TEXT NOT NULL,
    -- The change that the feed carries; none before the first usable key set.
    published BYTEA,
    key_count BIGINT NOT NULL,
    -- JSON array of keys that were passed over, with reasons.
    skipped TEXT NOT NULL,
    -- With these the next fetch asks whether anything has changed.
    jwks_uri TEXT,
    etag TEXT,
    succeeded_at BIGINT,
    last_error TEXT,
    failures BIGINT NOT NULL,
    next_fetch BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX trusted_issuers_due ON trusted_issuers (next_fetch);
