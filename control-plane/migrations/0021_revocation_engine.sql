-- Revocations to come. Whoever carries one out does it in the transaction that marks it as done.
CREATE TABLE scheduled_revocations (
    id TEXT NOT NULL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    -- JSON array of selectors.
    selectors TEXT NOT NULL,
    -- What was issued until then; none: until it is carried out.
    before_ms BIGINT,
    reason TEXT,
    actor TEXT NOT NULL,
    -- pending, done, cancelled
    status TEXT NOT NULL,
    -- The outbox row of its last change.
    ticket TEXT,
    created_at BIGINT NOT NULL,
    settled_at BIGINT
);
CREATE INDEX scheduled_revocations_due ON scheduled_revocations (status, at_ms, id);

-- The parts of a file that are in force. A part that comes again is answered from here.
CREATE TABLE revocation_batches (
    batch TEXT NOT NULL,
    part BIGINT NOT NULL,
    number BIGINT NOT NULL,
    ticket TEXT NOT NULL,
    -- The feed's revision, once it is known.
    revision BIGINT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (batch, part)
);

-- Lists with filters, the newest first.
CREATE INDEX revocations_kind ON revocations (kind, value, created_at);
