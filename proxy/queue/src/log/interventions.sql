-- Version 2: what is done by hand, who did it, and which lanes are paused.

-- A record may also be in state 5: dead by hand. Its content is gone, and its row is kept as a receipt.

ALTER TABLE lane ADD COLUMN paused_ms INTEGER;           -- since when; NULL: it is not

CREATE INDEX record_lane ON record (lane, seq);          -- for pages of one lane; written at append and deletion only

CREATE TABLE audit (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms    INTEGER NOT NULL,
    actor    TEXT    NOT NULL,                            -- on whose authority; never a token
    action   TEXT    NOT NULL,
    tenant   TEXT    NOT NULL,
    upstream TEXT    NOT NULL,
    record   BLOB,                                        -- the id, where it was done to one record
    count    INTEGER NOT NULL,                            -- records that it was done to
    detail   TEXT    NOT NULL
) STRICT;

CREATE INDEX audit_tenant ON audit (tenant, seq);
