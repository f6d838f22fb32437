-- Security event tokens that were taken (RFC 8417): each counts once. The id is a hash over the issuer and the `jti`.
CREATE TABLE security_events (
    id BYTEA NOT NULL PRIMARY KEY,
    taken_at BIGINT NOT NULL
);
CREATE INDEX security_events_taken ON security_events (taken_at);
