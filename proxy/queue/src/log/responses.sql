-- Version 4: origins' answers that are kept for the holders of receipts.

CREATE TABLE response (
    seq      INTEGER PRIMARY KEY,                         -- the record's
    lane     INTEGER NOT NULL,
    status   INTEGER NOT NULL,
    size     INTEGER NOT NULL,                            -- what it counts for in quotas
    until_ms INTEGER NOT NULL,
    headers  BLOB,                                        -- NULL, with the body: it did not come whole, or was too long
    body     BLOB
) STRICT;

CREATE INDEX response_until ON response (until_ms);
