//! The embedded store: one SQLite database in the data directory.
//!
//! Write-ahead log with `synchronous=FULL`: a commit returns after its log is fsynced. Writes go through one
//! connection, one at a time; reads through another, so that a reader does not wait for a writer's fsync.

mod audit;
mod kv;
mod module;
mod revision;
mod row;
mod schema;
mod secret;
mod tenant;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use beamline_model::{Digest, Grant, RevisionId, SecretName, TenantName, TokenHash, TokenScope};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use self::writer::Writer;
use crate::{
    Activated, AuditRow, Deletion, KvBatch, KvRecord, ModuleRecord, RevisionRecord, RevisionSummary,
    SecretRecord, Stamp, Store, StoreError, TenantRecord,
};

/// How long a call waits for another process that writes (an upgrade's other half) before it gives up.
const BUSY: Duration = Duration::from_secs(5);

/// What the write-ahead log's file is cut back to after a checkpoint, in bytes.
const WAL_KEPT: i64 = 16 << 20;

/// The store in `store.db` of a directory.
pub struct SqliteStore {
    /// What writes. A mutex, for SQLite has one writer at a time anyway, and a call holds it for one transaction.
    writer: Mutex<Writer>,
    /// Reads. Behind a mutex because a connection is not `Sync`; what it does is short.
    reader: Mutex<Connection>,
}

impl SqliteStore {
    /// The database's file name in its directory.
    pub const FILE: &'static str = "store.db";

    /// Opens the store in `dir`, or makes it there: the directory (mode 0700) where it is missing, and the
    /// database (0600).
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where the directory or file cannot be used; [`StoreError::Damaged`] where the
    /// file is another version's or no store.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = make_file(dir).map_err(|source| StoreError::Unavailable {
            doing: "make or open its file store.db in the data directory",
            source: source.into(),
        })?;
        let doing = "open its database store.db in the data directory";
        // What a process that was killed had not fsynced is seen from now on: it must not go with the power later. Before
        // SQLite has locks on the file, which would go with ours.
        sync(&path).map_err(|source| StoreError::Unavailable { doing, source: source.into() })?;
        let mut writer = connect(&path).map_err(row::failed(doing))?;
        let tx =
            writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(row::failed(doing))?;
        match schema::form(&tx).map_err(row::failed(doing))? {
            schema::Form::Known { steps } => {
                schema::upgrade(&tx, steps).map_err(row::failed("create its tables"))?;
            }
            schema::Form::Foreign { version } => {
                return Err(StoreError::Damaged {
                    what: "database",
                    problem: format!(
                        "expected form {} of a BeamLine store or an earlier one in {}, found form {version} or another \
                         program's file",
                        schema::VERSION,
                        path.display()
                    ),
                });
            }
        }
        tx.commit().map_err(row::failed("create its tables"))?;
        let reader = connect(&path).map_err(row::failed(doing))?;
        reader.pragma_update(None, "query_only", true).map_err(row::failed(doing))?;
        Ok(Self { writer: Mutex::new(Writer::new(writer, path)), reader: Mutex::new(reader) })
    }

    /// Runs `work` in one write transaction and returns after its commit is on the disk.
    fn write<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        held(&self.writer).write(doing, work)
    }

    /// Runs `work` in one read transaction: it sees one state of the database throughout.
    fn read<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut conn = held(&self.reader);
        let tx = conn.transaction().map_err(row::failed(doing))?;
        work(&tx)
    }
}

/// The connection, also after a panic elsewhere: the transaction of that call was rolled back as it unwound.
fn held<T>(conn: &Mutex<T>) -> MutexGuard<'_, T> {
    conn.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes directory and file where they are missing, both durable, readable by this user alone.
fn make_file(dir: &Path) -> io::Result<PathBuf> {
    if !dir.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::File::open(parent)?.sync_all()?;
        }
    }
    let path = dir.join(SqliteStore::FILE);
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(_) => fs::File::open(dir)?.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(path)
}

/// Makes what the database and its log hold durable.
fn sync(path: &Path) -> io::Result<()> {
    let log = path.with_extension("db-wal");
    for file in [path, &log] {
        match fs::File::open(file) {
            Ok(file) => file.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update_and_check(None, "journal_size_limit", WAL_KEPT, |row| row.get::<_, i64>(0))?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

impl Store for SqliteStore {
    fn tokens(&self) -> Result<Vec<(TokenHash, TokenScope)>, StoreError> {
        self.read("read the tokens", tenant::tokens)
    }

    fn add_first_operator_token(&self, hash: &TokenHash, stamp: Stamp<'_>) -> Result<bool, StoreError> {
        self.write("add the operator's token", |tx| tenant::add_first_operator_token(tx, hash, stamp))
    }

    fn create_tenant(
        &self,
        name: &TenantName,
        grant: &Grant,
        token: &TokenHash,
        stamp: Stamp<'_>,
    ) -> Result<(), StoreError> {
        self.write("create the tenant", |tx| tenant::create(tx, name, grant, token, stamp))
    }

    fn tenant(&self, name: &TenantName) -> Result<Option<TenantRecord>, StoreError> {
        self.read("read the tenant", |tx| tenant::get(tx, name))
    }

    fn tenants(&self) -> Result<Vec<TenantRecord>, StoreError> {
        self.read("read the tenants", tenant::all)
    }

    fn begin_deletion(
        &self,
        name: &TenantName,
        deletion: Deletion,
        stamp: Stamp<'_>,
    ) -> Result<Deletion, StoreError> {
        self.write("begin the tenant's deletion", |tx| tenant::begin_deletion(tx, name, deletion, stamp))
    }

    fn delete_tenant(&self, name: &TenantName, stamp: Stamp<'_>) -> Result<(), StoreError> {
        self.write("delete the tenant", |tx| tenant::delete(tx, name, stamp))
    }

    fn put_module(
        &self,
        tenant: &TenantName,
        digest: &Digest,
        bytes: &[u8],
        info: &str,
        stamp: Stamp<'_>,
    ) -> Result<bool, StoreError> {
        self.write("store the module", |tx| module::put(tx, tenant, digest, bytes, info, stamp))
    }

    fn module(&self, tenant: &TenantName, digest: &Digest) -> Result<Option<ModuleRecord>, StoreError> {
        self.read("read the module's record", |tx| module::get(tx, tenant, digest))
    }

    fn modules(&self, tenant: &TenantName) -> Result<Vec<ModuleRecord>, StoreError> {
        self.read("read the tenant's modules", |tx| module::all(tx, tenant))
    }

    fn module_bytes(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.read("read the module", |tx| module::bytes(tx, digest))
    }

    fn commit_revision(
        &self,
        tenant: &TenantName,
        replaces: Option<RevisionId>,
        manifest: &str,
        stamp: Stamp<'_>,
    ) -> Result<Activated, StoreError> {
        self.write("commit the revision", |tx| revision::commit(tx, tenant, replaces, manifest, stamp))
    }

    fn activate_revision(
        &self,
        tenant: &TenantName,
        replaces: Option<RevisionId>,
        revision: RevisionId,
        stamp: Stamp<'_>,
    ) -> Result<Activated, StoreError> {
        self.write("activate the revision", |tx| revision::activate(tx, tenant, replaces, revision, stamp))
    }

    fn revision(
        &self,
        tenant: &TenantName,
        revision: RevisionId,
    ) -> Result<Option<RevisionRecord>, StoreError> {
        self.read("read the revision", |tx| revision::get(tx, tenant, revision))
    }

    fn revisions(
        &self,
        tenant: &TenantName,
        before: Option<RevisionId>,
        limit: u32,
    ) -> Result<Vec<RevisionSummary>, StoreError> {
        self.read("read the revisions", |tx| revision::page(tx, tenant, before, limit))
    }

    fn set_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        sealed: &[u8],
        stamp: Stamp<'_>,
    ) -> Result<bool, StoreError> {
        self.write("store the secret", |tx| secret::set(tx, tenant, name, sealed, stamp))
    }

    fn remove_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        stamp: Stamp<'_>,
    ) -> Result<(), StoreError> {
        self.write("remove the secret", |tx| secret::remove(tx, tenant, name, stamp))
    }

    fn reseal_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        before: &[u8],
        after: &[u8],
        stamp: Stamp<'_>,
    ) -> Result<bool, StoreError> {
        self.write("seal the secret anew", |tx| secret::reseal(tx, tenant, name, before, after, stamp))
    }

    fn secrets(&self, tenant: &TenantName) -> Result<Vec<SecretRecord>, StoreError> {
        self.read("read the tenant's secrets", |tx| secret::all(tx, tenant))
    }

    fn write_kv(&self, batches: &[KvBatch<'_>]) -> Result<(), StoreError> {
        held(&self.writer).write_again("keep what filters stored", |tx| kv::write(tx, batches))
    }

    fn kv(&self, tenant: &TenantName) -> Result<Vec<KvRecord>, StoreError> {
        self.read("read what filters stored", |tx| kv::all(tx, tenant))
    }

    fn audit(
        &self,
        tenant: Option<&TenantName>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        self.read("read the audit", |tx| audit::page(tx, tenant, after, limit))
    }
}
