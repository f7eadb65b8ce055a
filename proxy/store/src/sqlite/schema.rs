//! The tables, and the one number that says which form of them a file has.

use rusqlite::Connection;

/// From nothing to form 1, from there to 2, and so on: a new file takes the same steps as an old one.
const STEPS: [&str; 4] = [TABLES, SECRETS, DELETION, KV];

/// The form that this version reads and writes, kept in the file as `user_version`.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// Marks the file as ours (`file` shows it): "BLst".
const APPLICATION_ID: i64 = 0x424c_7374;

/// Triggers keep what must not change from changing, whatever code comes later.
const TABLES: &str = "
CREATE TABLE tenants (
    name        TEXT PRIMARY KEY,
    granted     TEXT NOT NULL,                  -- Grant as JSON
    created_ms  INTEGER NOT NULL,
    active      INTEGER,
    previous    INTEGER,
    FOREIGN KEY (name, active) REFERENCES revisions (tenant, id),
    FOREIGN KEY (name, previous) REFERENCES revisions (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE hosts (
    host    TEXT PRIMARY KEY,                   -- the uniqueness over all tenants is this key
    tenant  TEXT NOT NULL REFERENCES tenants (name)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    hash        TEXT PRIMARY KEY,               -- SHA-256, hexadecimal
    tenant      TEXT REFERENCES tenants (name), -- NULL: the operator's
    created_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE revisions (
    tenant      TEXT NOT NULL REFERENCES tenants (name),
    id          INTEGER NOT NULL CHECK (id > 0),
    created_ms  INTEGER NOT NULL,
    manifest    TEXT NOT NULL,                  -- canonical JSON
    PRIMARY KEY (tenant, id)
) STRICT;

CREATE TABLE modules (
    digest  TEXT PRIMARY KEY,
    size    INTEGER NOT NULL,
    bytes   BLOB NOT NULL
) STRICT;

CREATE TABLE tenant_modules (
    tenant     TEXT NOT NULL REFERENCES tenants (name),
    digest     TEXT NOT NULL REFERENCES modules (digest),
    pushed_ms  INTEGER NOT NULL,
    info       TEXT NOT NULL,
    PRIMARY KEY (tenant, digest)
) STRICT;

CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms   INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    tenant  TEXT,
    detail  TEXT NOT NULL                       -- a JSON object
) STRICT;
CREATE INDEX audit_by_tenant ON audit (tenant, seq);

CREATE TRIGGER revisions_never_change BEFORE UPDATE ON revisions
BEGIN SELECT RAISE(ABORT, 'a revision never changes'); END;
CREATE TRIGGER modules_never_change BEFORE UPDATE ON modules
BEGIN SELECT RAISE(ABORT, 'a module never changes'); END;
CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END;
CREATE TRIGGER audit_never_shrinks BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END;
";

/// Form 2: secrets, sealed by a key that is not in the data folder.
const SECRETS: &str = "
CREATE TABLE secrets (
    tenant  TEXT NOT NULL REFERENCES tenants (name),
    name    TEXT NOT NULL,
    sealed  BLOB NOT NULL,                      -- never in the clear
    set_ms  INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
";

/// Form 3: tenants that are being deleted.
const DELETION: &str = "
ALTER TABLE tenants ADD COLUMN deletion TEXT;   -- 'drain' or 'discard'; NULL: it is not being deleted
";

/// Form 4: what filters store, where it is durable.
const KV: &str = "
CREATE TABLE kv (
    tenant      TEXT NOT NULL REFERENCES tenants (name),
    key         TEXT NOT NULL,
    value       BLOB NOT NULL,
    expires_ms  INTEGER,                        -- NULL: never
    PRIMARY KEY (tenant, key)
) STRICT;
";

/// What a file is, seen from this version.
pub(super) enum Form {
    /// So many steps have been taken: none where there is no table yet, all of them where it is this version's.
    Known { steps: usize },
    /// A later version's, or another program's.
    Foreign { version: i64 },
}

pub(super) fn form(conn: &Connection) -> rusqlite::Result<Form> {
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let version = pragma("user_version")?;
    let known = match pragma("application_id")? {
        0 => version == 0 && tables == 0,
        id => id == APPLICATION_ID && (1..=VERSION).contains(&version),
    };
    Ok(match usize::try_from(version) {
        Ok(steps) if known => Form::Known { steps },
        _ => Form::Foreign { version },
    })
}

/// Takes the steps that are left; where there are none it writes nothing, for the disk may be full. Runs inside the caller's
/// transaction, so that a half-made file cannot be.
pub(super) fn upgrade(conn: &Connection, taken: usize) -> rusqlite::Result<()> {
    if taken == STEPS.len() {
        return Ok(());
    }
    STEPS[taken..].iter().try_for_each(|step| conn.execute_batch(step))?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", VERSION)
}
