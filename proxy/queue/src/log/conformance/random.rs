//! Random changes on all of the logs must read alike.

use proptest::prelude::*;

use super::*;

/// A step of the comparison. Records are named by their order of appending.
#[derive(Clone, Debug)]
enum Step {
    Append { key: Option<u8>, used: Option<u8>, pausing: bool, delay_ms: u64 },
    Begin { record: u8, attempts: u32 },
    Retry { record: u8, attempts: u32, due: u64 },
    Hold { record: u8, attempts: u32 },
    Release,
    Finish { record: u8, attempts: u32, dead: bool, keep: Option<u8> },
    Forget { now: u64, limit: usize },
    Expire { now: u64, limit: usize },
    Disown { record: u8 },
    Prune { before: u64, limit: usize },
    Trim,
    ByHand { record: u8, what: u8 },
    Purge { after: u8, limit: usize },
    Pause { paused: bool },
    ResumeKey { key: u8 },
    Restart,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let record = 1..12_u8;
    let attempts = 0..3_u32;
    prop_oneof![
        6 => (proptest::option::of(0..3_u8), proptest::option::of(0..3_u8), any::<bool>(), 0..3_u64)
            .prop_map(|(key, used, pausing, delay_ms)| Step::Append { key, used, pausing, delay_ms }),
        8 => (record.clone(), attempts.clone()).prop_map(|(record, attempts)| Step::Begin { record, attempts }),
        4 => (record.clone(), 1..4_u32, 0..100_000_u64)
            .prop_map(|(record, attempts, due)| Step::Retry { record, attempts, due }),
        1 => (record.clone(), 1..4_u32).prop_map(|(record, attempts)| Step::Hold { record, attempts }),
        1 => Just(Step::Release),
        6 => (record.clone(), 1..4_u32, any::<bool>(), proptest::option::of(0..20_u8))
            .prop_map(|(record, attempts, dead, keep)| Step::Finish { record, attempts, dead, keep }),
        1 => (0..60_u64, 1..4_usize).prop_map(|(now, limit)| Step::Forget { now, limit }),
        1 => (50_000..50_014_u64, 1..4_usize).prop_map(|(now, limit)| Step::Expire { now, limit }),
        1 => record.clone().prop_map(|record| Step::Disown { record }),
        4 => (record, 0..4_u8).prop_map(|(record, what)| Step::ByHand { record, what }),
        1 => (0..6_u8, 1..4_usize).prop_map(|(after, limit)| Step::Purge { after, limit }),
        1 => any::<bool>().prop_map(|paused| Step::Pause { paused }),
        1 => (0..3_u8).prop_map(|key| Step::ResumeKey { key }),
        1 => (0..60_u64, 1..4_usize).prop_map(|(before, limit)| Step::Prune { before, limit }),
        1 => Just(Step::Trim),
        1 => Just(Step::Restart),
        1 => Just(Step::Reopen),
    ]
}

const KEYS: [&str; 3] = ["a", "b", "c"];

fn manual(at_ms: u64, act: Act) -> Change {
    let tenant = "acme".parse().unwrap();
    Change::Intervene(Box::new(Intervention { tenant, actor: "tenant/acme".into(), at_ms, act }))
}

/// The same changes for either log: finishes are at distinct times, so that "the oldest" means one record.
fn change(step: &Step, appended: &mut u64, finishes: &mut u64, epoch: u64) -> Option<Change> {
    let attempt =
        |record: &u8, attempts: &u32| AttemptRef { seq: Seq(i64::from(*record)), attempts: *attempts, epoch };
    Some(match step {
        Step::Append { key, used: n, pausing, delay_ms } => {
            *appended += 1;
            let mut append = append(*appended, key.map(|k| KEYS[usize::from(k)]));
            append.key_use = n.map(used);
            append.on_dead = if *pausing { OnDead::PauseKey } else { OnDead::Continue };
            append.delay_ms = *delay_ms;
            Change::Append(append)
        }
        Step::Begin { record, attempts } => {
            Change::Begin { seq: Seq(i64::from(*record)), attempts: *attempts, epoch }
        }
        Step::Retry { record, attempts, due } => Change::Retry {
            attempt: attempt(record, attempts),
            again: Candidate {
                due_ms: *due,
                blame: due.is_multiple_of(2).then_some(Blame { failures: 2, since_ms: *due }),
                ..append(u64::from(*record), None).candidate(Seq(i64::from(*record)))
            },
            note: Note { status: None, error: Some("again".into()) },
        },
        Step::Hold { record, attempts } => Change::Hold { attempt: attempt(record, attempts) },
        Step::Release => Change::Release { lane: lane("acme") },
        Step::Finish { record, attempts, dead, keep } => {
            *finishes += 1;
            let end = if *dead { End::Dead(DeadReason::Rejected) } else { WHOLE };
            Change::Finish {
                attempt: attempt(record, attempts),
                end,
                at_ms: *finishes,
                note: Note::default(),
                response: keep.map(|n| response(*finishes + u64::from(n), n > 0)),
            }
        }
        Step::Forget { now, limit } => Change::Forget { now_ms: *now, limit: *limit },
        Step::Expire { now, limit } => {
            *finishes += 1;
            Change::Expire { now_ms: *now, limit: *limit }
        }
        Step::Disown { record } => {
            *finishes += 1;
            Change::Disown { id: id(u64::from(*record)), at_ms: *finishes }
        }
        Step::Prune { before, limit } => {
            // Some of them are in another hour.
            Change::Prune {
                now_ms: before * 100_000,
                delivered_before_ms: *before,
                dead_before_ms: before / 2,
                limit: *limit,
            }
        }
        Step::Trim => Change::Trim { now_ms: 9700, limit: 1 },
        Step::ByHand { record, what } => {
            *finishes += 1;
            let id = id(u64::from(*record));
            manual(
                *finishes,
                match what {
                    0 => Act::Cancel { id },
                    1 => Act::Discard { id },
                    what => Act::Requeue { id, may_repeat: *what == 2 },
                },
            )
        }
        Step::Purge { after, limit } => {
            *finishes += 1;
            let states = vec![StateName::Queued, StateName::Dead];
            let (upstream, after) = ("api".parse().unwrap(), Seq(i64::from(*after)));
            manual(*finishes, Act::Purge { upstream, states, after, until: None, limit: *limit })
        }
        Step::Pause { paused } => manual(5, Act::Pause { upstream: "api".parse().unwrap(), paused: *paused }),
        Step::ResumeKey { key } => {
            let key = KEYS[usize::from(*key)].to_owned();
            manual(5, Act::ResumeKey { upstream: "api".parse().unwrap(), key, limit: 2 })
        }
        Step::Restart | Step::Reopen => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..80)) {
        let places: [Box<dyn Place>; 2] = [Box::new(MemoryDisk::default()), Box::new(SqlitePlace::new())];
        let mut logs = places.each_ref().map(|place| place.open());
        let (mut appended, mut finishes) = (0, 0);
        for step in &steps {
            match step {
                Step::Restart => {
                    drop(logs);
                    logs = places.each_ref().map(|place| place.open());
                    let effects = logs.each_mut().map(|log| {
                        let epoch = log.epoch();
                        one(&mut **log, Change::Recover { epoch, now_ms: 70, limit: 2 })
                    });
                    prop_assert_eq!(&effects[0], &effects[1], "{:?}", step);
                }
                Step::Reopen => logs.iter_mut().for_each(|log| log.reopen().unwrap()),
                _ => {
                    let change = change(step, &mut appended, &mut finishes, logs[0].epoch()).unwrap();
                    let effects = logs.each_mut().map(|log| one(&mut **log, change.clone()));
                    prop_assert_eq!(&effects[0], &effects[1], "{:?}", step);
                }
            }
        }
        let views = logs.each_ref().map(|log| {
            let mut reader = log.reader().unwrap();
            let mut census = vec![];
            reader.census(&mut |row| census.push(row)).unwrap();
            let receipts: Vec<_> =
                (1..=appended).map(|n| reader.receipt(id(n)).unwrap().map(|r| (r.lane, r.view))).collect();
            let contents: Vec<_> =
                (1..=appended).map(|n| reader.content(Seq(i64::try_from(n).unwrap())).unwrap()).collect();
            let by_hand = (
                reader.records(&all()).unwrap(),
                reader.audit(None, 0, 100).unwrap(),
                reader.paused().unwrap(),
                reader.paused_keys().unwrap(),
                reader.oldest(&lane("acme")).unwrap(),
            );
            let holders: Vec<_> = (0..3).map(|n| holder(&**log, n)).collect();
            let responses: Vec<_> = (1..=appended).map(|n| reader.response(id(n)).unwrap()).collect();
            let by_hand = (by_hand, holders, responses);
            (reader.window(&lane("acme"), 100).unwrap(), census, receipts, contents, by_hand)
        });
        prop_assert_eq!(&views[0], &views[1]);
    }
}
