//! The power-cut shim itself: what was fsynced stays, what was not goes. The writers are this very executable, started
//! again with the shim preloaded; they work with the standard library and with SQLite, as the proxy does.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use beamline_tests::{
    powercut::{Entries, Lost, PowerCut},
    process::Guarded,
    seed::Seed,
};
use rusqlite::Connection;

const PATIENCE: Duration = Duration::from_secs(30);

// ---- the parent's side ----

/// A writer at work; what it prints comes line by line.
struct Writer {
    child: Guarded,
    lines: Receiver<String>,
}

impl Writer {
    fn start(script: &str, power: &PowerCut, root: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_writer", "--ignored", "--nocapture", "--test-threads=1"])
            .env("WRITER_SCRIPT", script)
            .env("WRITER_ROOT", root)
            .envs(power.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The test harness begins the first line with the test's name.
                if let Some((_, said)) = line.split_once("writer: ") {
                    let _ = send.send(said.to_owned());
                }
            }
        });
        Self { child: Guarded(child), lines }
    }

    fn wait_for(&self, line: &str) {
        while self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("the writer never said {line:?}"))
            != line
        {}
    }

    /// Kills it, and gives everything that it had said until then.
    fn kill(mut self) -> Vec<String> {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
        let mut all = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => all.push(line),
                Err(RecvTimeoutError::Disconnected) => return all,
                Err(RecvTimeoutError::Timeout) => panic!("the writer's output never ended"),
            }
        }
    }
}

struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn power(&self, entries: Entries) -> PowerCut {
        PowerCut::over(self.folder.path(), entries).unwrap()
    }

    /// Runs a script until it waits, kills it and cuts the power.
    fn strike(&self, script: &str, power: &PowerCut) -> Lost {
        let writer = Writer::start(script, power, self.folder.path());
        writer.wait_for("done");
        writer.kill();
        power.strike().unwrap()
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.path(name)).ok()
    }
}

// ---- the writer's side ----

fn say(line: impl std::fmt::Display) {
    // In one write, past the test harness: a line said before the kill must not be lost in a buffer.
    let _ = io::stdout().lock().write_all(format!("writer: {line}\n").as_bytes());
    let _ = io::stdout().flush();
}

fn sync_folder(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

#[test]
#[ignore = "the child of the other tests, which start it again: cargo test --workspace --profile ci --test powercut_shim"]
fn a_writer() {
    let script =
        std::env::var("WRITER_SCRIPT").expect("it is started by the other tests of this file, not by hand");
    let root = PathBuf::from(std::env::var_os("WRITER_ROOT").unwrap());
    match script.as_str() {
        "contents" => contents(&root),
        "names" => names(&root),
        "sizes" => sizes(&root),
        "new-file" => {
            fs::create_dir(root.join("sub")).unwrap();
            let mut file = File::create(root.join("sub/new")).unwrap();
            file.write_all(b"new").unwrap();
            file.sync_all().unwrap();
        }
        "new-folder" => {
            fs::create_dir(root.join("sub")).unwrap();
            fs::write(root.join("sub/new"), "new").unwrap();
            File::open(root.join("sub/new")).unwrap().sync_all().unwrap();
            sync_folder(&root.join("sub"));
        }
        "new-folder-synced" => {
            fs::create_dir(root.join("sub")).unwrap();
            fs::write(root.join("sub/new"), "new").unwrap();
            File::open(root.join("sub/new")).unwrap().sync_all().unwrap();
            sync_folder(&root.join("sub"));
            sync_folder(&root);
        }
        "copies" => copies(&root),
        "inode-reuse" => inode_reuse(&root),
        "leave-unsynced" => {
            let mut file = File::create(root.join("f")).unwrap();
            file.write_all(b"by the first").unwrap();
            sync_folder(&root);
        }
        "sync-only" => {
            File::open(root.join("f")).unwrap().sync_all().unwrap();
        }
        "threads" => threads(&root),
        "sqlite" => sqlite(&root, "FULL"),
        "sqlite-off" => sqlite(&root, "OFF"),
        other => panic!("no script {other}"),
    }
    say("done");
    std::thread::sleep(PATIENCE * 4);
}

fn contents(root: &Path) {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(root.join("a")).unwrap();
    file.write_all(&[b'1'; 20_000]).unwrap();
    file.sync_data().unwrap();
    sync_folder(root);
    file.write_all_at(b"22", 5_000).unwrap();
    file.sync_data().unwrap();
    // From here on nothing is synced: in place, beyond the end, and through a second descriptor.
    file.write_all_at(b"33", 5_000).unwrap();
    file.write_all_at(b"33", 19_999).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    assert_eq!(file.write_vectored(&[io::IoSlice::new(b"44"), io::IoSlice::new(b"55")]).unwrap(), 4);
    file.try_clone().unwrap().write_all(b"66").unwrap();
    fs::write(root.join("never-synced"), "7").unwrap();
}

fn names(root: &Path) {
    fs::rename(root.join("kept-name"), root.join("new-name")).unwrap();
    fs::remove_file(root.join("removed")).unwrap();
    fs::rename(root.join("replacement"), root.join("replaced")).unwrap();
}

fn sizes(root: &Path) {
    // Cut short and never synced.
    OpenOptions::new().write(true).open(root.join("cut")).unwrap().set_len(10).unwrap();
    // Emptied by open, grown by a write far behind, synced: between them are zeros, not what was there before.
    let file = OpenOptions::new().write(true).truncate(true).open(root.join("holes")).unwrap();
    file.write_all_at(b"end", 9_000).unwrap();
    file.sync_all().unwrap();
    // The same with a set length, in two steps.
    let file = OpenOptions::new().write(true).open(root.join("shrunk")).unwrap();
    file.set_len(100).unwrap();
    file.set_len(8_000).unwrap();
    file.sync_all().unwrap();
    file.set_len(0).unwrap();
}

fn copies(root: &Path) {
    // Copies that the standard library would leave to the kernel.
    fs::copy(root.join("source"), root.join("copy")).unwrap();
    File::open(root.join("copy")).unwrap().sync_all().unwrap();
    let mut from = File::open(root.join("source")).unwrap();
    let mut to = File::create(root.join("piped")).unwrap();
    io::copy(&mut from, &mut to).unwrap();
    to.sync_all().unwrap();
    sync_folder(root);
}

/// Files come and go so fast that their inode numbers return.
fn inode_reuse(root: &Path) {
    for i in 0..200 {
        let (old, new) = (root.join(format!("old-{i}")), root.join(format!("new-{i}")));
        fs::write(&old, vec![b'o'; 5_000]).unwrap();
        File::open(&old).unwrap().sync_all().unwrap();
        fs::remove_file(&old).unwrap();
        let mut file = File::create(&new).unwrap();
        file.write_all(b"n").unwrap();
        if i % 2 == 0 {
            file.sync_all().unwrap();
        }
    }
    sync_folder(root);
}

const THREADS: u64 = 4;

/// Each thread appends numbered records to one shared file and to a file of its own, and says when each was synced.
fn threads(root: &Path) {
    let shared = File::create(root.join("shared")).unwrap();
    let own: Vec<_> = (0..THREADS).map(|t| File::create(root.join(format!("own-{t}"))).unwrap()).collect();
    sync_folder(root);
    std::thread::scope(|scope| {
        for (t, own) in (0..THREADS).zip(&own) {
            let shared = &shared;
            scope.spawn(move || {
                for n in 0.. {
                    let record = format!("{t:>3}{n:>12}\n");
                    // The thread's places in the shared file lie between those of the others.
                    shared.write_all_at(record.as_bytes(), 16 * (n * THREADS + t)).unwrap();
                    let mut append = own;
                    append.write_all(record.as_bytes()).unwrap();
                    say(format!("syncing {t} {n}"));
                    shared.sync_data().unwrap();
                    own.sync_data().unwrap();
                    say(format!("synced {t} {n}"));
                }
            });
        }
    });
}

fn sqlite(root: &Path, synchronous: &str) {
    let open = || {
        let db = Connection::open(root.join("test.db")).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.pragma_update(None, "synchronous", synchronous).unwrap();
        db.busy_timeout(PATIENCE).unwrap();
        db
    };
    let db = open();
    db.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    let first: i64 = db.query_row("SELECT coalesce(max(id), 0) + 1 FROM t", [], |row| row.get(0)).unwrap();
    std::thread::scope(|scope| {
        for t in 0..3 {
            scope.spawn(move || {
                let db = open();
                for n in 0.. {
                    let id = first + t + 3 * n;
                    db.execute("INSERT INTO t VALUES (?1, zeroblob(3000))", [id]).unwrap();
                    say(format!("committed {id}"));
                    if id % 50 == 0 {
                        let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
                    }
                }
            });
        }
    });
}

// ---- the claims ----

#[test]
fn what_was_fsynced_stays_and_what_was_not_goes() {
    let scene = Scene::new();
    let power = scene.power(Entries::ByDirectory);
    let lost = scene.strike("contents", &power);
    let mut expected = vec![b'1'; 20_000];
    expected[5_000..5_002].copy_from_slice(b"22");
    assert!(scene.read("a").unwrap() == expected);
    assert_eq!(scene.read("never-synced"), None);
    assert_eq!(lost, Lost { gone: vec!["never-synced".into()], reverted: vec!["a".into()], back: vec![] });
}

#[test]
fn names_change_only_with_an_fsync_of_their_directory() {
    let scene = Scene::new();
    for name in ["kept-name", "removed", "replaced", "replacement"] {
        fs::write(scene.path(name), name).unwrap();
    }
    let power = scene.power(Entries::ByDirectory);
    let lost = scene.strike("names", &power);
    for name in ["kept-name", "removed", "replaced", "replacement"] {
        assert_eq!(scene.read(name).as_deref(), Some(name.as_bytes()));
    }
    assert_eq!(scene.read("new-name"), None);
    assert_eq!((lost.gone.len(), lost.reverted.len(), lost.back.len()), (1, 1, 3), "{lost:?}");
}

#[test]
fn sizes_return_and_holes_are_zeros() {
    let scene = Scene::new();
    for name in ["cut", "holes", "shrunk"] {
        fs::write(scene.path(name), vec![b'x'; 10_000]).unwrap();
    }
    let power = scene.power(Entries::ByDirectory);
    scene.strike("sizes", &power);
    assert_eq!(scene.read("cut").unwrap(), vec![b'x'; 10_000]);
    assert_eq!(scene.read("holes").unwrap(), [vec![0; 9_000], b"end".to_vec()].concat());
    assert_eq!(scene.read("shrunk").unwrap(), [vec![b'x'; 100], vec![0; 7_900]].concat());
}

#[test]
fn a_new_file_needs_its_directory_synced_but_on_ext4() {
    for (script, entries, there) in [
        ("new-file", Entries::ByDirectory, false),
        ("new-file", Entries::ByFileToo, true),
        ("new-folder", Entries::ByDirectory, false),
        ("new-folder", Entries::ByFileToo, true),
        ("new-folder-synced", Entries::ByDirectory, true),
    ] {
        let scene = Scene::new();
        let power = scene.power(entries);
        scene.strike(script, &power);
        let expected = there.then(|| b"new".to_vec());
        assert_eq!(scene.read("sub/new"), expected, "{script}, {entries:?}");
    }
}

#[test]
fn copies_inside_the_kernel_are_seen() {
    let scene = Scene::new();
    fs::write(scene.path("source"), vec![b's'; 100_000]).unwrap();
    let power = scene.power(Entries::ByDirectory);
    assert!(scene.strike("copies", &power).nothing());
    assert!(scene.read("copy").unwrap() == vec![b's'; 100_000]);
    assert!(scene.read("piped").unwrap() == vec![b's'; 100_000]);
}

#[test]
fn a_file_that_takes_over_an_inode_number_has_nothing_of_the_old_one() {
    let scene = Scene::new();
    let power = scene.power(Entries::ByDirectory);
    scene.strike("inode-reuse", &power);
    for i in 0..200 {
        assert_eq!(scene.read(&format!("old-{i}")), None);
        let expected: &[u8] = if i % 2 == 0 { b"n" } else { b"" };
        assert_eq!(scene.read(&format!("new-{i}")).unwrap(), expected, "new-{i}");
    }
}

#[test]
fn what_a_killed_process_left_unsynced_is_durable_once_the_next_one_syncs_it() {
    let scene = Scene::new();
    let power = scene.power(Entries::ByDirectory);
    let first = Writer::start("leave-unsynced", &power, scene.folder.path());
    first.wait_for("done");
    first.kill();
    scene.strike("sync-only", &power);
    assert_eq!(scene.read("f").unwrap(), b"by the first");
    fs::write(scene.path("f"), "").unwrap();
    let power = scene.power(Entries::ByDirectory);
    scene.strike("leave-unsynced", &power);
    assert_eq!(scene.read("f").unwrap(), b"");
}

/// The highest number of each thread that a writer said this verb for.
fn highest(lines: &[String], verb: &str) -> BTreeMap<u64, u64> {
    let mut all = BTreeMap::new();
    for line in lines {
        if let Some((thread, n)) = line.strip_prefix(verb).and_then(|rest| rest.trim().split_once(' ')) {
            all.insert(thread.parse().unwrap(), n.parse().unwrap());
        }
    }
    all
}

#[test]
fn with_many_threads_no_record_is_missing_that_was_said_to_be_synced() {
    let mut seed = Seed::from_env("threads");
    for _ in 0..6 {
        let scene = Scene::new();
        let power = scene.power(Entries::ByDirectory);
        let writer = Writer::start("threads", &power, scene.folder.path());
        writer.wait_for("synced 0 0");
        std::thread::sleep(Duration::from_millis(seed.within(5..200)));
        let lines = writer.kill();
        power.strike().unwrap();
        let synced = highest(&lines, "synced");
        let begun = highest(&lines, "syncing");
        let mut shared = Vec::new();
        File::open(scene.path("shared")).unwrap().read_to_end(&mut shared).unwrap();
        for t in 0..THREADS {
            let own = scene.read(&format!("own-{t}")).unwrap();
            let found = own.len() as u64 / 16;
            let (low, high) = (synced.get(&t).map_or(0, |n| n + 1), begun.get(&t).map_or(1, |n| n + 2));
            assert!(
                (low..=high).contains(&found),
                "thread {t}: {found} records, {low} were synced, {high} begun"
            );
            for n in 0..low {
                let record = format!("{t:>3}{n:>12}\n");
                let at = |from: u64| from as usize..from as usize + 16;
                assert_eq!(&own[at(16 * n)], record.as_bytes());
                assert_eq!(&shared[at(16 * (n * THREADS + t))], record.as_bytes());
            }
        }
    }
}

/// Lets SQLite commit for a while, cuts the power, and gives how many commits are missing.
fn missing_commits(
    script: &str,
    rounds: u64,
    power_of: impl Fn(&Scene) -> PowerCut,
    seed: &mut Seed,
) -> usize {
    let scene = Scene::new();
    let power = power_of(&scene);
    let mut committed = Vec::new();
    let mut missing = 0;
    for _ in 0..rounds {
        let writer = Writer::start(script, &power, scene.folder.path());
        let first = writer.lines.recv_timeout(PATIENCE).unwrap();
        std::thread::sleep(Duration::from_millis(seed.within(20..300)));
        let lines = writer.kill();
        power.strike().unwrap();
        let ids =
            lines.iter().chain([&first]).filter_map(|l| l.strip_prefix("committed ")?.parse::<i64>().ok());
        committed.extend(ids);
        // Looked at in a copy: recovery writes, and only shimmed processes may write to the directory itself.
        let copy = tempfile::tempdir().unwrap();
        for name in ["test.db", "test.db-wal"] {
            let _ = fs::copy(scene.path(name), copy.path().join(name));
        }
        let db = Connection::open(copy.path().join("test.db")).unwrap();
        let whole: Result<String, _> = db.query_row("PRAGMA integrity_check", [], |row| row.get(0));
        let present = |id: &i64| db.query_row("SELECT 1 FROM t WHERE id = ?1", [id], |_| Ok(())).is_ok();
        missing = committed.iter().filter(|id| !present(id)).count();
        if missing == 0 {
            assert_eq!(whole.as_deref(), Ok("ok"));
        }
        if missing > 0 {
            break;
        }
    }
    assert!(!committed.is_empty());
    missing
}

#[test]
fn sqlite_loses_no_commit_in_wal_mode_with_full_synchronisation() {
    let mut seed = Seed::from_env("sqlite");
    let missing = missing_commits("sqlite", 8, |scene| scene.power(Entries::ByDirectory), &mut seed);
    assert_eq!(missing, 0);
}

#[test]
fn sqlite_without_synchronisation_and_a_build_that_skips_the_fsync_are_caught() {
    let mut seed = Seed::from_env("sqlite without fsync");
    let off = missing_commits("sqlite-off", 3, |scene| scene.power(Entries::ByDirectory), &mut seed);
    assert!(off > 0);
    for part in ["test.db-wal", "/"] {
        let skipping = |scene: &Scene| scene.power(Entries::ByDirectory).skip_fsync(part);
        assert!(missing_commits("sqlite", 3, skipping, &mut seed) > 0, "skipped on {part}");
    }
}
