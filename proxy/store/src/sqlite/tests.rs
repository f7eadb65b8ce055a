//! The suite, and what only this implementation has: files, modes, forms, triggers.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use beamline_model::{Grant, RevisionId, TenantName, Token};
use tempfile::TempDir;

use super::*;
use crate::conformance::{self, Place};

struct Dir(TempDir);

impl Place for Dir {
    fn open(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(self.0.path()).unwrap())
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

const STAMP: Stamp<'static> = Stamp { at_ms: 1, actor: "operator" };

fn with_acme(dir: &TempDir) -> (SqliteStore, TenantName) {
    let store = SqliteStore::open(dir.path()).unwrap();
    let acme: TenantName = "acme".parse().unwrap();
    store.create_tenant(&acme, &Grant::default(), &Token::presented("t").hash(), STAMP).unwrap();
    (store, acme)
}

#[test]
fn sqlite_passes_the_suite() {
    conformance::run(|| Dir(dir()));
}

#[test]
fn a_commit_is_synchronous_and_the_log_is_ahead() {
    let dir = dir();
    let (store, _) = with_acme(&dir);
    let conn = &held(&store.writer).conn;
    let pragma = |name| conn.pragma_query_value(None, name, |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!(pragma("synchronous"), 2, "FULL");
    assert_eq!(pragma("foreign_keys"), 1);
    let mode: String = conn.pragma_query_value(None, "journal_mode", |r| r.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn only_this_user_reads_the_files() {
    let parent = dir();
    let dir = parent.path().join("data/deeper");
    let _store = SqliteStore::open(&dir).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_file_of_another_version_or_program_is_refused_untouched() {
    let newer = dir();
    drop(SqliteStore::open(newer.path()).unwrap());
    let file = newer.path().join(SqliteStore::FILE);
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = SqliteStore::open(newer.path()).err().unwrap().to_string();
    assert!(error.contains("expected form 4") && error.contains("found form 99"), "{error}");

    let foreign = dir();
    let file = foreign.path().join(SqliteStore::FILE);
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(matches!(SqliteStore::open(foreign.path()), Err(StoreError::Damaged { .. })));

    let garbage = dir();
    fs::write(
        garbage.path().join(SqliteStore::FILE),
        "no database at all, and long enough to be read".repeat(50),
    )
    .unwrap();
    let error = SqliteStore::open(garbage.path()).err().unwrap();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}

#[test]
fn a_store_of_the_form_before_is_opened_and_keeps_what_it_had() {
    let dir = dir();
    let (store, acme) = with_acme(&dir);
    store.commit_revision(&acme, None, "one", STAMP).unwrap();
    drop(store);
    let file = dir.path().join(SqliteStore::FILE);
    let conn = Connection::open(&file).unwrap();
    conn.execute_batch(
        "DROP TABLE secrets; DROP TABLE kv; ALTER TABLE tenants DROP COLUMN deletion; PRAGMA user_version = 1",
    )
    .unwrap();
    drop(conn);
    let store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(store.revision(&acme, RevisionId(1)).unwrap().unwrap().manifest, "one");
    store.set_secret(&acme, &"token".parse().unwrap(), b"sealed", STAMP).unwrap();
    drop(store);
    assert_eq!(SqliteStore::open(dir.path()).unwrap().secrets(&acme).unwrap().len(), 1);
}

#[test]
fn a_revision_never_changes_and_the_audit_only_grows() {
    let dir = dir();
    let (store, acme) = with_acme(&dir);
    store.commit_revision(&acme, None, "one", STAMP).unwrap();
    let conn = &held(&store.writer).conn;
    for (sql, expected) in [
        ("UPDATE revisions SET manifest = 'other'", "a revision never changes"),
        ("UPDATE audit SET actor = 'nobody'", "the audit only grows"),
        ("DELETE FROM audit", "the audit only grows"),
        ("DELETE FROM revisions", "FOREIGN KEY"),
    ] {
        let error = conn.execute(sql, []).unwrap_err().to_string();
        assert!(error.contains(expected), "{sql}: {error}");
    }
}

#[test]
fn two_processes_share_a_store() {
    let dir = dir();
    let (old, acme) = with_acme(&dir);
    let new = SqliteStore::open(dir.path()).unwrap();
    old.commit_revision(&acme, None, "one", STAMP).unwrap();
    assert_eq!(new.tenant(&acme).unwrap().unwrap().active, Some(RevisionId(1)));
    assert!(matches!(new.commit_revision(&acme, None, "two", STAMP), Err(StoreError::Moved { .. })));
    new.commit_revision(&acme, Some(RevisionId(1)), "two", STAMP).unwrap();
    assert_eq!(old.tenant(&acme).unwrap().unwrap().active, Some(RevisionId(2)));
}

#[test]
fn a_damaged_row_is_named() {
    let dir = dir();
    let (store, acme) = with_acme(&dir);
    held(&store.writer).conn.execute("UPDATE tenants SET granted = '{\"hosts\":3}'", []).unwrap();
    let error = store.tenant(&acme).unwrap_err().to_string();
    assert!(error.contains("holds a grant") && error.contains("tenant acme"), "{error}");
}

#[test]
fn messages_say_what_was_expected_and_found() {
    let error =
        StoreError::Moved { tenant: "acme".parse().unwrap(), expected: None, found: Some(RevisionId(3)) };
    assert_eq!(
        error.to_string(),
        "tenant acme was changed by somebody else: expected no revision to be active, found revision 3; \
         look at what is there and try again"
    );
}
