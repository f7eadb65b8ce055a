-- Version 3: what clients' `Idempotency-Key`s were used for.

ALTER TABLE record ADD COLUMN scope       BLOB;          -- keyed hash of what the client's key was used for
ALTER TABLE record ADD COLUMN fingerprint BLOB;          -- SHA-256 of the request under that key

-- A record has its key until it is deleted, or dead for a reason that lets it be sent again (all but 3: indeterminate).
CREATE UNIQUE INDEX record_scope ON record (scope) WHERE scope IS NOT NULL AND (state < 4 OR reason = 3);
