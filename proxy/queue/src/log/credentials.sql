-- Version 3: credentials of a record, sealed. The key that opens them is not in the data folder.

ALTER TABLE content ADD COLUMN sealed BLOB;
