-- Version 3: what a dead record does to its ordering key, delays, rates, and what the node deletes
-- by itself.

ALTER TABLE record ADD COLUMN on_dead  INTEGER NOT NULL DEFAULT 0; -- when it dies by itself: 0 its key goes on, 1 it is paused
ALTER TABLE record ADD COLUMN pauses   INTEGER NOT NULL DEFAULT 0; -- 1: dead, and what comes after it in its key waits
ALTER TABLE record ADD COLUMN delay_ms INTEGER NOT NULL DEFAULT 0; -- how long it was to wait when due_ms was set, as a part of it

ALTER TABLE lane ADD COLUMN per_second INTEGER;                     -- deliveries that may begin; NULL: as many as can

CREATE INDEX record_pauses ON record (lane, okey, seq) WHERE pauses = 1;

ALTER TABLE audit ADD COLUMN from_ms  INTEGER; -- of what the node did by itself: when the first of these records was accepted,
ALTER TABLE audit ADD COLUMN until_ms INTEGER; -- and when the last was

CREATE INDEX audit_node ON audit (tenant, upstream, action, detail, at_ms) WHERE actor = 'node';
