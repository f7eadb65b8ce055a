-- Version 7: indexes of open records that are not written when a delivery begins.

ALTER TABLE record ADD COLUMN open INTEGER NOT NULL DEFAULT 1; -- 1: state < 3. A column of its own, for what an index's WHERE
                                                              -- names is written with each change of it, as the same again
UPDATE record SET open = 0 WHERE state >= 3;

DROP INDEX record_key;
CREATE INDEX record_key    ON record (lane, okey, seq) WHERE okey IS NOT NULL AND open = 1;
DROP INDEX record_expiry;
CREATE INDEX record_expiry ON record (expires_ms)      WHERE open = 1;
