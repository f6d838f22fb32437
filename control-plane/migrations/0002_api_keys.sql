-- API keys. The hash is keyed, over the digest (SHA-256) of the key: who asks about a key names it by its digest.
CREATE TABLE api_keys (
    id TEXT NOT NULL PRIMARY KEY,
    digest_hash BYTEA NOT NULL,
    name TEXT,
    subject TEXT NOT NULL,
    -- JSON arrays of strings.
    scopes TEXT NOT NULL,
    audiences TEXT NOT NULL,
    networks TEXT NOT NULL,
    status TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX api_keys_digest ON api_keys (digest_hash);
