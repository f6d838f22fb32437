-- Who keeps the private key; `wrapped` holds the provider's reference where it is not `local`.
ALTER TABLE signing_keys ADD COLUMN provider TEXT NOT NULL DEFAULT 'local';

-- Keys of our own, sealed by the wrapping key that the operator keeps.
CREATE TABLE sealed_keys (
    name TEXT NOT NULL PRIMARY KEY,
    -- AES-256-GCM, associated data: the name.
    sealed BYTEA NOT NULL,
    -- Names the wrapping key, without telling anything of it.
    sealed_by TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
