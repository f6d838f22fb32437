-- The issue clock, apart from the feed's head, whose row the sequencer locks. No token has an instant above the ceiling; every
-- token that is issued after a revocation is above the floor.
CREATE TABLE issue_clock (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    floor_ms BIGINT NOT NULL,
    ceiling_ms BIGINT NOT NULL
);
INSERT INTO issue_clock (only_row, floor_ms, ceiling_ms)
SELECT 1, COALESCE(MAX(issue_floor_ms), 0), COALESCE(MAX(issue_floor_ms), 0) + 1 FROM feed_head;

-- What replicas keep copies of in memory, and how often it has changed.
CREATE TABLE versions (
    topic TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL
);
INSERT INTO versions (topic, version) VALUES ('signing_keys', 0);

-- Numbers the changes of which the last one counts (key sets, policies); its row is locked until their transaction ends, so
-- that the numbers are in the order of the commits. Changes that commute (revocations) have the position 0.
CREATE TABLE outbox_positions (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    position BIGINT NOT NULL
);
INSERT INTO outbox_positions (only_row, position)
SELECT 1, COALESCE(MAX(position), 0) FROM outbox;
DROP INDEX outbox_unsequenced;
CREATE INDEX outbox_unsequenced ON outbox (position, created_at) WHERE revision IS NULL;

-- A row here says that the store was restored from a backup: its revisions are spent, and the log begins a new epoch.
CREATE TABLE IF NOT EXISTS feed_restored (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    restored_at BIGINT NOT NULL
);

-- The migration that a program must know at least. A migration that takes something away raises it.
CREATE TABLE schema_floor (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    version BIGINT NOT NULL
);
INSERT INTO schema_floor (only_row, version) VALUES (1, 4);
