-- The key before a rotation is taken until its overlap ends. The last use is coarse: written at most once an hour.
ALTER TABLE api_keys ADD COLUMN previous_digest_hash BYTEA;
ALTER TABLE api_keys ADD COLUMN previous_expires_at BIGINT;
ALTER TABLE api_keys ADD COLUMN last_used_at BIGINT;
CREATE UNIQUE INDEX api_keys_previous_digest ON api_keys (previous_digest_hash);
