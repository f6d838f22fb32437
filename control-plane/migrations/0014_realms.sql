-- Realms beside the default one, which is the configured issuer and has no row.
CREATE TABLE realms (
    name TEXT NOT NULL PRIMARY KEY,
    -- JSON: what an operator decides.
    settings TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
INSERT INTO versions (topic, version) VALUES ('realms', 0);
