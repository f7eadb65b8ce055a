-- The queue's log. Rows of `record` are small and change; rows of `content` are large and never do.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO meta VALUES ('epoch', 0);

CREATE TABLE lane (
    id       INTEGER PRIMARY KEY,
    tenant   TEXT NOT NULL,
    upstream TEXT NOT NULL,
    UNIQUE (tenant, upstream)
) STRICT;

CREATE TABLE record (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT, -- commit order; never used twice
    id               BLOB    NOT NULL UNIQUE,
    secret           BLOB    NOT NULL,                  -- SHA-256 of the receipt's secret
    lane             INTEGER NOT NULL,
    okey             TEXT,                              -- ordering key
    front            INTEGER NOT NULL,                  -- 1: no open record of its key is before it
    state            INTEGER NOT NULL,                  -- 0 queued, 1 delivering, 2 held, 3 delivered, 4 dead
    reason           INTEGER,                           -- of a dead record
    complete         INTEGER,                           -- of a delivered record: the response arrived whole
    repeat_safe      INTEGER NOT NULL,
    attempts         INTEGER NOT NULL DEFAULT 0,        -- begun so far
    epoch            INTEGER,                           -- the owner that is delivering it
    size             INTEGER NOT NULL,                  -- what it counts for in quotas
    accepted_ms      INTEGER NOT NULL,
    due_ms           INTEGER NOT NULL,
    expires_ms       INTEGER NOT NULL,
    failures         INTEGER NOT NULL DEFAULT 0,        -- attempts that it is itself to blame for, and since when
    failing_since_ms INTEGER,
    finished_ms      INTEGER,
    last_status      INTEGER,
    last_error       TEXT
) STRICT;

CREATE INDEX record_due      ON record (lane, due_ms, seq)     WHERE state = 0 AND front = 1;
CREATE INDEX record_key      ON record (lane, okey, seq)       WHERE okey IS NOT NULL AND state < 3;
CREATE INDEX record_expiry   ON record (expires_ms)            WHERE state < 3;
CREATE INDEX record_held     ON record (lane)                  WHERE state = 2;
CREATE INDEX record_finished ON record (state, finished_ms)    WHERE state >= 3;

CREATE TABLE content (
    seq        INTEGER PRIMARY KEY,
    revision   INTEGER NOT NULL,
    method     TEXT    NOT NULL,
    target     TEXT    NOT NULL,
    host       TEXT    NOT NULL,
    headers    BLOB    NOT NULL,
    body       BLOB,                                    -- up to 32 KiB; else in the file below
    body_file  TEXT,
    body_len   INTEGER NOT NULL,
    trace_id   BLOB    NOT NULL,
    span_id    BLOB    NOT NULL,
    sampled    INTEGER NOT NULL,
    request_id TEXT    NOT NULL
) STRICT;

CREATE INDEX content_file ON content (body_file) WHERE body_file IS NOT NULL;
