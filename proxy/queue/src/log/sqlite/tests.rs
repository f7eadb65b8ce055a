//! What SQLite alone has to show; the rest is in `conformance`.

use super::{super::*, rows::limit_to_db, *};
use crate::{
    log::conformance::{append, lane},
    response::{KeptResponse, WholeResponse},
};

fn open(dir: &tempfile::TempDir) -> SqliteLog {
    let mut log = SqliteLog::open(&dir.path().join("queue.db")).unwrap();
    log.take_over().unwrap();
    log
}

fn appends(numbers: std::ops::Range<u64>) -> Vec<Change> {
    numbers.map(|n| Change::Append(append(n, None))).collect()
}

fn count(log: &SqliteLog) -> usize {
    log.reader().unwrap().window(&lane("acme"), usize::MAX).unwrap().len()
}

#[test]
fn every_connection_is_as_durable_as_it_must_be() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir);
    let connection = &log.open.as_ref().unwrap().connection;
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(pragma("synchronous"), 2, "FULL");
    assert_eq!(pragma("wal_autocheckpoint"), 0);
    assert_eq!(pragma("secure_delete"), 1, "ON");
    assert_eq!(pragma("application_id"), APPLICATION_ID);
    assert!(connection.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG).unwrap());
}

#[test]
fn a_full_disk_takes_nothing_of_the_group_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    log.commit(&appends(0..5)).unwrap();
    let connection = &log.open.as_ref().unwrap().connection;
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    connection.pragma_update(None, "max_page_count", pages + 2).unwrap();
    let error = log.commit(&appends(5..200)).unwrap_err();
    assert!(matches!(error, LogError::Full(_)), "{error}");
    let error = log.commit(&appends(200..201)).unwrap_err();
    assert!(error.to_string().contains("not reopened"), "{error}");
    assert!(log.maintain().is_err());
    log.reopen().unwrap();
    assert_eq!(count(&log), 5);
    log.commit(&appends(5..200)).unwrap();
    assert_eq!(count(&log), 200);
}

#[test]
fn a_log_of_another_version_or_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    drop(open(&dir));
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let error = SqliteLog::open(&path).err().unwrap();
    let expected = format!("schema version 9, expected {SCHEMA_VERSION}");
    assert!(error.to_string().contains(&expected), "{error}");
    std::fs::write(&path, "this is no database, and long enough to be seen as none at all. ".repeat(20))
        .unwrap();
    let _ = std::fs::remove_file(dir.path().join("queue.db-wal"));
    assert!(matches!(SqliteLog::open(&path), Err(LogError::Corrupt(_))));
}

#[test]
fn a_log_of_the_version_before_is_opened_and_keeps_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(SCHEMAS[0]).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    connection
        .execute_batch(
            "INSERT INTO lane VALUES (1, 'acme', 'api');
             INSERT INTO record (seq, id, secret, lane, front, state, repeat_safe, size, accepted_ms, due_ms, expires_ms)
             VALUES (7, x'00000000000000000000000000000001', zeroblob(32), 1, 1, 0, 1, 600, 1000, 1000, 50000);
             INSERT INTO content VALUES (7, 3, 'POST', '/a?b', 'acme.test', x'01', x'2a', NULL, 1, zeroblob(16),
                                         zeroblob(8), 0, 'r');",
        )
        .unwrap();
    drop(connection);
    let mut log = open(&dir);
    assert_eq!(count(&log), 1);
    assert!(log.reader().unwrap().paused().unwrap().is_empty());
    let epoch = log.epoch();
    let effects = log.commit(&[Change::Begin { seq: Seq(7), attempts: 0, epoch }]).unwrap();
    assert!(matches!(&effects[..], [Effect::Begun(Some(content))] if content.target == "/a?b"));
    drop(log);
    drop(open(&dir));
    let version = |c: Connection| c.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    assert_eq!(version(Connection::open(&path).unwrap()).unwrap(), SCHEMA_VERSION);
}

fn by_hand(log: &mut SqliteLog, act: Act) -> Effect {
    let (tenant, actor) = ("acme".parse().unwrap(), "operator".into());
    let intervention = Intervention { tenant, actor, at_ms: 1, act };
    log.commit(&[Change::Intervene(Box::new(intervention))]).unwrap().remove(0)
}

#[test]
fn a_page_and_a_purge_look_at_so_many_rows_and_say_where_they_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    log.commit(&appends(0..LOOK as u64 + 5)).unwrap();
    let mut reader = log.reader().unwrap();
    let mut page = |after| {
        let query = RecordQuery {
            tenant: "acme".parse().unwrap(),
            upstream: None,
            state: Some(StateName::Dead),
            ordering_key: None,
            after,
            limit: 10,
        };
        reader.records(&query).unwrap()
    };
    assert_eq!(page(0), RecordPage { records: vec![], next: Some(LOOK as u64) });
    assert_eq!(page(LOOK as u64), RecordPage::default());
    let purge = Act::Purge {
        upstream: "api".parse().unwrap(),
        states: vec![StateName::Dead],
        after: Seq(0),
        until: None,
        limit: 10,
    };
    let look = limit_to_db(LOOK);
    let stopped = Intervened { next: Some((Seq(look), Seq(look + 5))), ..Intervened::default() };
    assert_eq!(by_hand(&mut log, purge), Effect::Intervened(Box::new(stopped)));
}

#[test]
fn the_audit_keeps_so_many_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    for seq in [1, 2, AUDIT_ROWS] {
        let connection = &log.open.as_ref().unwrap().connection;
        let row = "INSERT INTO audit VALUES (?1, 1, 'operator', 'queue.pause', 'acme', 'api', NULL, 0, '', NULL, NULL)";
        connection.execute(row, [to_db(seq)]).unwrap();
    }
    by_hand(&mut log, Act::Pause { upstream: "api".parse().unwrap(), paused: true });
    let rows = log.reader().unwrap().audit(None, 0, 100).unwrap();
    let seqs: Vec<_> = rows.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [2, AUDIT_ROWS, AUDIT_ROWS + 1]);
}

#[test]
fn a_log_that_another_owner_took_over_is_not_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    let _other = open(&dir);
    let error = log.reopen().unwrap_err();
    assert!(error.to_string().contains("another owner"), "{error}");
}

/// Whether these bytes are in any file of the folder.
fn anywhere(dir: &tempfile::TempDir, bytes: &[u8]) -> bool {
    let files =
        std::fs::read_dir(dir.path()).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    files.into_iter().any(|file| memchr::memmem::find(&file, bytes).is_some())
}

#[test]
fn what_was_erased_is_in_no_file_a_few_seconds_later() {
    const CANARY: &[u8] = b"c4n4ry";
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    // Of all sizes, so that they share pages and take many; every third record stays.
    let secret = |n: u64| !n.is_multiple_of(3);
    let text = |n: u64| if secret(n) { "c4n4ry" } else { "stays" };
    let records = |numbers: std::ops::Range<u64>| {
        numbers.map(|n| {
            let mut append = append(3 * n + 1, None);
            append.content.target = format!("/orders?token={}", text(n));
            append.content.headers.push(("x-key".into(), text(n).into()));
            let length =
                usize::try_from(n * 7919 % 30_000).unwrap() / [1, 50, 500][usize::try_from(n % 3).unwrap()];
            append.content.body = StoredBody::Inline(text(n).repeat(1 + length / 5).into());
            Change::Append(append)
        })
    };
    for group in 0..6 {
        log.commit(&records(group * 50..(group + 1) * 50).collect::<Vec<_>>()).unwrap();
    }
    assert!(anywhere(&dir, CANARY));
    let epoch = log.epoch();
    let deliver = |n: u64| {
        let seq = Seq(i64::try_from(n).unwrap() + 1);
        let attempt = AttemptRef { seq, attempts: 1, epoch };
        let end = End::Delivered { response_complete: true };
        let begin = Change::Begin { seq, attempts: 0, epoch };
        let whole = WholeResponse { headers: Vec::new(), body: "c4n4ry".repeat(100).into() };
        let kept = KeptResponse { status: 200, until_ms: 2, whole: Some(whole) };
        let response = Some(Box::new(NewResponse { lane: lane("acme"), kept }));
        [begin, Change::Finish { attempt, end, at_ms: 1, note: Note::default(), response }]
    };
    // In an order that leaves holes everywhere.
    let order: Vec<_> = (0..300).map(|n| n * 83 % 300).filter(|n| secret(*n)).collect();
    for page in order.chunks(7) {
        log.commit(&page.iter().flat_map(|n| deliver(*n)).collect::<Vec<_>>()).unwrap();
        log.maintain().unwrap();
    }
    log.commit(&[Change::Forget { now_ms: 2, limit: 1000 }]).unwrap();
    let until = std::time::Instant::now() + 6 * ERASE_AFTER;
    while anywhere(&dir, CANARY) {
        assert!(std::time::Instant::now() < until, "it is still there");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(anywhere(&dir, b"stays"));
    assert_eq!(count(&log), 100);
    // A former owner's leavings go as well.
    log.commit(&records(300..302).collect::<Vec<_>>()).unwrap();
    assert!(anywhere(&dir, CANARY));
    log.commit(&deliver(301)).unwrap();
    log.commit(&deliver(300)).unwrap();
    log.commit(&[Change::Forget { now_ms: 2, limit: 1000 }]).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    assert!(anywhere(&copy, CANARY), "as a crash would leave it");
    let _log = open(&copy);
    let until = std::time::Instant::now() + 6 * ERASE_AFTER;
    while anywhere(&copy, CANARY) {
        assert!(std::time::Instant::now() < until, "it is still there after a restart");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_wal_stays_bounded_however_much_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    // 12 MiB of bodies in groups, each body erased by the next group.
    let big = |n| {
        let mut append = append(n * 3 + 1, None);
        append.content.body = StoredBody::Inline(vec![7; 30_000].into());
        Change::Append(append)
    };
    let (mut largest, epoch) = (0, log.epoch());
    for group in 0..20_i64 {
        let mut changes: Vec<_> = (0..20).map(|n| big(u64::try_from(group * 20 + n).unwrap())).collect();
        for seq in (group * 20 - 19..=group * 20).filter(|seq| *seq > 0).map(Seq) {
            let attempt = AttemptRef { seq, attempts: 1, epoch };
            let end = End::Delivered { response_complete: true };
            changes.push(Change::Begin { seq, attempts: 0, epoch });
            let note = Note::default();
            changes.push(Change::Finish { attempt, end, at_ms: 1, note, response: None });
        }
        log.commit(&changes).unwrap();
        log.maintain().unwrap();
        // The checkpointer works beside us; let it come to its end, as it does between real groups.
        log.open.as_ref().unwrap().checkpointer.wait();
        largest = largest.max(log.open.as_ref().unwrap().wal_pages.load(Ordering::Relaxed));
    }
    assert!(largest < 2 * WAL_PAGES + 500, "{largest} pages");
    let database = std::fs::metadata(dir.path().join("queue.db")).unwrap().len();
    assert!(database < 6 << 20, "erased bodies make room for new ones: {database} bytes");
}
