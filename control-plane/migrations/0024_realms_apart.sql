-- What a realm decides about itself, apart from `settings`: a program that does not know these reads and writes the row as before.
-- Days; none: as configured, 0: for ever.
ALTER TABLE realms ADD COLUMN session_retention_days BIGINT;
ALTER TABLE realms ADD COLUMN revocation_retention_days BIGINT;
ALTER TABLE realms ADD COLUMN audit_retention_days BIGINT;

-- Rows from before were made in any realm; which one was not noted, and they are shown at the default one, as they were.
ALTER TABLE revocations ADD COLUMN realm TEXT NOT NULL DEFAULT 'default';
ALTER TABLE scheduled_revocations ADD COLUMN realm TEXT NOT NULL DEFAULT 'default';
DROP INDEX revocations_created;
DROP INDEX revocations_kind;
CREATE INDEX revocations_realm ON revocations (realm, created_at, id);
CREATE INDEX revocations_realm_kind ON revocations (realm, kind, value, created_at);
CREATE INDEX scheduled_revocations_realm ON scheduled_revocations (realm, status, at_ms, id);
CREATE INDEX scheduled_revocations_settled ON scheduled_revocations (realm, settled_at) WHERE settled_at IS NOT NULL;

-- Sessions go by their realm's retention, after their expiry or after they were ended. A refresh writes none of these.
DROP INDEX sessions_expiry;
CREATE INDEX sessions_realm_expiry ON sessions (realm, expires_at);
CREATE INDEX sessions_realm_ended ON sessions (realm, ended_at) WHERE ended_at IS NOT NULL;
