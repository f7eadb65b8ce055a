-- Version 3: what a dead record does to its ordering key.

ALTER TABLE record ADD COLUMN on_dead INTEGER NOT NULL DEFAULT 0; -- when it dies by itself: 0 its key goes on, 1 it is paused
ALTER TABLE record ADD COLUMN pauses  INTEGER NOT NULL DEFAULT 0; -- 1: dead, and what comes after it in its key waits

CREATE INDEX record_pauses ON record (lane, okey, seq) WHERE pauses = 1;
