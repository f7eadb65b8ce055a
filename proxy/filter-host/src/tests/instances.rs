//! Instances that outlive a call: what stays in them, what does not, and when they end.

use std::{
    num::NonZeroU32,
    sync::{Arc, OnceLock},
};

use beamline_model::{ByteSize, FilterLimits, InstanceLifetime, OnError};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::{View, guest, head, taken};
use crate::{
    BodyStage, Chain, ChainOutcome, Decision, Engine, EngineSettings, Failure, FilterConfig, FilterRun,
    FilterSetup, FinishOutcome, HostView, KeptInVain, Module, Passage, Pinned, ResponseDecision,
    ResponseHead, ResponseStep,
    instances::{self, waiting_on_this_thread},
    reset::IDLE_SWEEPS,
    reset::tests::{REALLOC, handle, module, typed},
};

/// An engine of their own: what is kept is counted on it.
fn engine() -> &'static Arc<Engine> {
    static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(EngineSettings { pool_instances: 512, ..Default::default() }).unwrap())
}

fn loaded(bytes: &[u8]) -> Arc<Module> {
    let (info, artifact) = taken(bytes);
    engine().load(&artifact, info).unwrap()
}

fn counter() -> Arc<Module> {
    static COUNTER: OnceLock<Arc<Module>> = OnceLock::new();
    Arc::clone(COUNTER.get_or_init(|| loaded(&guest("counter.wasm"))))
}

/// Instances that wait are swept, and looked for, on all threads: one test at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn several(requests: u32) -> InstanceLifetime {
    InstanceLifetime::Requests(NonZeroU32::new(requests).unwrap())
}

fn setup(name: &str, module: Arc<Module>, lifetime: InstanceLifetime) -> FilterSetup {
    FilterSetup {
        name: name.parse().unwrap(),
        module: Some(module),
        config: FilterConfig::new(&name.parse().unwrap(), "null"),
        on_error: OnError::FailClosed,
        lifetime,
    }
}

fn chain(tenant: &str, limits: FilterLimits, lifetime: InstanceLifetime) -> Chain {
    Chain::new(tenant.parse().unwrap(), limits, vec![setup("counter", counter(), lifetime)])
}

fn pinned(limits: FilterLimits) -> Chain {
    chain("acme", limits, InstanceLifetime::Request)
}

async fn asked(chain: &Chain, act: &'static str) -> ChainOutcome {
    let view = View::shared(FilterLimits::default());
    chain.on_request(engine(), &view, head(&[("x-act", act)])).await
}

/// What the call of a request phase counted; none where it failed.
async fn counted(chain: &Chain, act: &'static str) -> Option<u32> {
    let outcome = asked(chain, act).await;
    match outcome.decision {
        Decision::Next => Some(outcome.head.headers["x-count"].to_str().unwrap().parse().unwrap()),
        Decision::Respond(answer) => Some(std::str::from_utf8(&answer.body).unwrap().parse().unwrap()),
        _ => None,
    }
}

async fn counts<const N: usize>(chain: &Chain, acts: [&'static str; N]) -> [Option<u32>; N] {
    let mut counts = [None; N];
    for (count, act) in counts.iter_mut().zip(acts) {
        *count = counted(chain, act).await;
    }
    counts
}

#[tokio::test]
async fn an_instance_serves_as_many_requests_as_its_filter_allows() {
    let _alone = ALONE.lock().await;
    for (lifetime, expected) in [
        (InstanceLifetime::Call, [1, 1, 1, 1, 1, 1, 1]),
        (several(3), [1, 2, 3, 1, 2, 3, 1]),
        (several(10_000), [1, 2, 3, 4, 5, 6, 7]),
    ] {
        let chain = chain("acme", FilterLimits::default(), lifetime);
        assert_eq!(counts(&chain, ["request:answer"; 7]).await, expected.map(Some), "{lifetime:?}");
        assert_eq!(chain.pinned(), None);
    }
}

#[tokio::test]
async fn an_instance_whose_call_failed_serves_no_other() {
    let _alone = ALONE.lock().await;
    let acts = ["", "", "request:trap", "", "", "request:no-verdict", ""];
    let chain = chain("acme", FilterLimits::default(), several(100));
    assert_eq!(counts(&chain, acts).await, [Some(1), Some(2), None, Some(1), Some(2), None, Some(1)]);
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(2), ..Default::default() };
    let chain = Chain::new("acme".parse().unwrap(), limits, vec![setup("f", counter(), several(100))]);
    assert_eq!(counts(&chain, ["", "request:spin", ""]).await, [Some(1), None, Some(1)]);
}

#[tokio::test]
async fn no_tenant_filter_or_revision_has_anothers_instance() {
    let _alone = ALONE.lock().await;
    let (one, other) = ("one", "other");
    let of = |tenant| chain(tenant, FilterLimits::default(), several(100));
    let (first, second) = (of(one), of(other));
    assert_eq!(counts(&first, [""; 3]).await, [1, 2, 3].map(Some));
    assert_eq!(counts(&second, [""; 2]).await, [1, 2].map(Some), "of another tenant");
    assert_eq!(counts(&first, [""; 1]).await, [Some(4)]);
    let mut next = of(one);
    next.succeed(&first);
    assert_eq!(counts(&next, [""; 2]).await, [1, 2].map(Some), "of the same tenant's next revision");
    // Two filters of one chain.
    let filters = ["a", "b"].map(|name| setup(name, counter(), several(100)));
    let both = Chain::new(one.parse().unwrap(), FilterLimits::default(), filters.into());
    for count in ["1", "2", "3"] {
        let outcome = asked(&both, "").await;
        assert_eq!((outcome.runs.len(), &outcome.head.headers["x-count"]), (2, &count.parse().unwrap()));
    }
}

#[tokio::test]
async fn no_tenants_instances_take_more_than_half_of_the_room_to_wait() {
    let _alone = ALONE.lock().await;
    // Of this pool one in 16 may wait.
    let room = 512 / 16;
    let many = |tenant: &str| {
        let filter = |i: usize| setup(&format!("f{i}"), counter(), several(100));
        Chain::new(tenant.parse().unwrap(), FilterLimits::default(), (0..room).map(filter).collect())
    };
    let (greedy, other) = (many("greedy"), many("other"));
    for _ in 0..3 {
        assert!(!matches!(asked(&greedy, "").await.decision, Decision::Failed { .. }));
        assert_eq!(waiting_on_this_thread(), room / 2);
    }
    asked(&other, "").await;
    assert_eq!(waiting_on_this_thread(), room, "the other one has its half");
    // Those that wait are found again.
    assert_eq!(asked(&greedy, "").await.head.headers["x-count"], "1", "the last one does not");
    let mut next = many("greedy");
    next.succeed(&greedy);
    drop(greedy);
    assert_eq!(waiting_on_this_thread(), room / 2);
    asked(&next, "").await;
    assert_eq!(waiting_on_this_thread(), room, "what ended is given back");
}

#[tokio::test]
async fn what_waits_goes_with_its_filter_and_when_nobody_comes() {
    let _alone = ALONE.lock().await;
    let one = chain("acme", FilterLimits::default(), several(100));
    assert_eq!(counts(&one, [""; 2]).await, [1, 2].map(Some));
    assert_eq!(waiting_on_this_thread(), 1);
    // As who sweeps does, on a thread of its own.
    let sweep = |times: usize| {
        std::thread::spawn(move || (0..times).for_each(|_| instances::sweep())).join().unwrap();
    };
    sweep(IDLE_SWEEPS);
    assert_eq!((waiting_on_this_thread(), counted(&one, "").await), (1, Some(3)));
    sweep(IDLE_SWEEPS + 1);
    assert_eq!((waiting_on_this_thread(), counted(&one, "").await), (0, Some(1)));
    std::thread::spawn(move || drop(one)).join().unwrap();
    assert_eq!(waiting_on_this_thread(), 0);
}

#[tokio::test]
async fn what_was_set_aside_comes_back() {
    let _alone = ALONE.lock().await;
    let limits = FilterLimits { cpu: beamline_model::Duration::secs(1), ..Default::default() };
    let reused = chain("acme", limits.clone(), several(100));
    assert_eq!(counts(&reused, ["request:long", "request:long", ""]).await, [1, 2, 3].map(Some));
    let pinned = pinned(limits);
    let passage = passage(&pinned, "request:long response:long").await;
    assert_eq!(responded(&pinned, &passage).await, Some(2));
    assert_eq!(finished(&pinned, &passage).await, "count 3");
}

/// The way of a request through the chain, to the end.
async fn passage(chain: &Chain, act: &'static str) -> Passage {
    let view: Arc<dyn HostView> = View::shared(FilterLimits::default());
    let outcome = chain.on_request(engine(), &view, head(&[("x-act", act)])).await;
    assert!(matches!(outcome.decision, Decision::Next), "{:?}", outcome.decision);
    assert_eq!(outcome.head.headers["x-count"], "1");
    outcome.passage(view)
}

async fn response(chain: &Chain, passage: &Passage) -> ResponseStep {
    let head = ResponseHead::new(StatusCode::OK, HeaderMap::new());
    chain.on_response(engine(), passage, 0, head).await
}

/// What the call of the response phase counted; none where it failed.
async fn responded(chain: &Chain, passage: &Passage) -> Option<u32> {
    let step = response(chain, passage).await;
    Some(step.head.headers.get("x-count")?.to_str().unwrap().parse().unwrap())
}

/// Shows a chunk of the request's body, or of the response's.
async fn chunk(chain: &Chain, passage: &Passage, of_response: bool) -> Result<Bytes, Failure> {
    let head = of_response.then(|| Arc::new(ResponseHead::new(StatusCode::OK, HeaderMap::new())));
    let mut stage = BodyStage::new(0, head);
    chain.on_chunk(engine(), passage, &mut stage, Bytes::from_static(b"chunk"), false).await
}

async fn end(chain: &Chain, passage: &Passage) -> FilterRun {
    let outcome = FinishOutcome {
        status: None,
        upstream: None,
        request_bytes: 0,
        response_bytes: 0,
        duration_us: 0,
        upstream_us: 0,
        error: None,
    };
    chain.on_finish(engine(), passage, 0, outcome).await
}

async fn finished(chain: &Chain, passage: &Passage) -> String {
    end(chain, passage).await.log.lines[0].1.clone()
}

fn held(chain: &Chain) -> u32 {
    chain.pinned().unwrap().held
}

#[tokio::test]
async fn a_pinned_instance_lives_from_a_requests_first_phase_to_its_last() {
    let _alone = ALONE.lock().await;
    let chain = pinned(FilterLimits::default());
    assert_eq!(chain.pinned(), Some(Pinned::default()));
    for _ in 0..2 {
        let passage = passage(&chain, "").await;
        chunk(&chain, &passage, false).await.unwrap();
        assert_eq!(responded(&chain, &passage).await, Some(3));
        chunk(&chain, &passage, true).await.unwrap();
        chunk(&chain, &passage, true).await.unwrap();
        assert_eq!(held(&chain), 1);
        assert_eq!(finished(&chain, &passage).await, "count 6");
        assert_eq!(held(&chain), 0, "after the last phase, whatever else is known of the request");
    }
    // Two requests at once have one each.
    let (one, other) = (passage(&chain, "").await, passage(&chain, "").await);
    assert_eq!((responded(&chain, &one).await, responded(&chain, &one).await), (Some(2), Some(3)));
    assert_eq!((responded(&chain, &other).await, held(&chain)), (Some(2), 2));
    drop((one, other));
    assert_eq!(chain.pinned(), Some(Pinned::default()));
    // Unpinned, each phase has a fresh one; those after the request's head in any case.
    for lifetime in [InstanceLifetime::Call, several(100)] {
        let fresh = super::instances::chain("acme", FilterLimits::default(), lifetime);
        let passage = passage(&fresh, "").await;
        let told = (responded(&fresh, &passage).await, finished(&fresh, &passage).await);
        assert_eq!((told, fresh.pinned()), ((Some(1), "count 1".into()), None));
        let waiting = usize::from(lifetime != InstanceLifetime::Call);
        assert_eq!(waiting_on_this_thread(), waiting, "of the request phase alone");
    }
}

#[tokio::test]
async fn a_bodys_second_chunk_finds_nothing_of_its_first_unless_the_instance_is_pinned() {
    let _alone = ALONE.lock().await;
    // Each chunk leaves a mebibyte in the memory of its instance.
    let limits = FilterLimits { memory: ByteSize::mib(4), ..Default::default() };
    for (lifetime, fresh) in
        [(InstanceLifetime::Call, true), (several(100), true), (InstanceLifetime::Request, false)]
    {
        let chain = chain("acme", limits.clone(), lifetime);
        let passage = passage(&chain, "request-body:grow").await;
        let mut stage = BodyStage::new(0, None);
        let mut seen = 0;
        for _ in 0..8 {
            let data = Bytes::from_static(b"chunk");
            match chain.on_chunk(engine(), &passage, &mut stage, data, false).await {
                Ok(_) => seen += 1,
                Err(failure) => {
                    assert_eq!(failure, Failure::Memory(4 << 20), "{lifetime:?}");
                    break;
                }
            }
        }
        assert_eq!(seen == 8, fresh, "{lifetime:?}: {seen} chunks");
    }
}

#[tokio::test]
async fn nothing_is_held_for_what_passes_after_the_end() {
    let chain = pinned(FilterLimits::default());
    let passage = passage(&chain, "").await;
    chunk(&chain, &passage, false).await.unwrap();
    assert_eq!(held(&chain), 1);
    // An upstream that answered early may still read of the request's body.
    passage.over();
    assert_eq!(held(&chain), 0);
    chunk(&chain, &passage, false).await.unwrap();
    chunk(&chain, &passage, true).await.unwrap();
    assert_eq!(held(&chain), 0);
}

#[tokio::test]
async fn a_phase_that_fails_ends_its_instance_and_the_next_begins_anew() {
    let chain = pinned(FilterLimits::default());
    let passage = passage(&chain, "response:trap").await;
    let step = response(&chain, &passage).await;
    assert!(matches!(step.decision, ResponseDecision::Failed { failure: Failure::Trap(_), .. }));
    assert_eq!(held(&chain), 0);
    assert_eq!(finished(&chain, &passage).await, "count 1");
    let outcome = asked(&chain, "request:trap").await;
    assert!(matches!(outcome.decision, Decision::Failed { failure: Failure::Trap(_), .. }));
    assert_eq!(held(&chain), 0);
}

#[tokio::test]
async fn memory_is_an_instances_and_cpu_time_a_phases() {
    let limits = FilterLimits { memory: ByteSize::mib(3), ..Default::default() };
    let grows = "request:grow response:grow request-body:grow";
    for (lifetime, fails) in [(InstanceLifetime::Call, false), (InstanceLifetime::Request, true)] {
        let chain = chain("acme", limits.clone(), lifetime);
        let passage = passage(&chain, grows).await;
        assert!(responded(&chain, &passage).await.is_some());
        let third = chunk(&chain, &passage, false).await;
        assert_eq!(third.err(), fails.then_some(Failure::Memory(3 << 20)), "{lifetime:?}");
    }
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(25), ..Default::default() };
    let chain = pinned(limits);
    let passage = passage(&chain, "request:long response:long finish:long").await;
    assert_eq!(responded(&chain, &passage).await, Some(2));
    assert_eq!(finished(&chain, &passage).await, "count 3");
}

#[tokio::test]
async fn a_tenants_requests_hold_no_more_instances_than_its_limit() {
    let chain = pinned(FilterLimits { pinned_instances: 2, ..Default::default() });
    let (one, other) = (passage(&chain, "").await, passage(&chain, "").await);
    let refused = asked(&chain, "").await;
    let Decision::Failed { failure, .. } = &refused.decision else { panic!("{:?}", refused.decision) };
    assert_eq!(*failure, Failure::Pinned(2));
    assert!(failure.to_string().contains("limits.pinned_instances"), "{failure}");
    assert_eq!(chain.pinned(), Some(Pinned { held: 2, refused: 1 }));
    // The same count over a change of its revision, whatever that asks for.
    let mut next = pinned(FilterLimits { pinned_instances: 1, ..Default::default() });
    next.succeed(&chain);
    assert!(matches!(asked(&next, "").await.decision, Decision::Failed { failure: Failure::Pinned(1), .. }));
    drop((one, other));
    assert_eq!(counted(&next, "").await, Some(1));
    assert_eq!(next.pinned(), Some(Pinned { held: 0, refused: 2 }));
}

#[tokio::test]
async fn a_filter_that_answers_holds_its_instance_for_the_end_alone() {
    let chain = pinned(FilterLimits::default());
    let view: Arc<dyn HostView> = View::shared(FilterLimits::default());
    let outcome = chain.on_request(engine(), &view, head(&[("x-act", "request:answer")])).await;
    assert!(matches!(outcome.decision, Decision::Respond(_)));
    let passage = outcome.passage(view);
    assert_eq!(held(&chain), 1, "it has a finish phase");
    assert_eq!(finished(&chain, &passage).await, "count 2");
}

#[tokio::test]
async fn calls_of_one_request_that_overlap_wait_for_each_other() {
    let chain = pinned(FilterLimits::default());
    let passage = passage(&chain, "response:ask").await;
    let (response, chunk) = tokio::join!(responded(&chain, &passage), chunk(&chain, &passage, false));
    assert_eq!((response, chunk.is_ok()), (Some(2), true));
    assert_eq!(finished(&chain, &passage).await, "count 4");
}

#[tokio::test]
async fn a_call_that_is_broken_off_ends_its_instance() {
    let chain = pinned(FilterLimits::default());
    let passage = passage(&chain, "response:ask").await;
    {
        let call = response(&chain, &passage);
        tokio::pin!(call);
        assert!(futures_util::poll!(&mut call).is_pending());
        assert_eq!(held(&chain), 1);
    }
    assert_eq!(held(&chain), 0);
    assert_eq!(finished(&chain, &passage).await, "count 1");
}

#[tokio::test]
async fn a_handle_is_worth_nothing_in_the_next_call() {
    let _alone = ALONE.lock().await;
    let run = async |work: &str| {
        let global = "(global $old (mut i32) (i32.const 0))";
        let text = module(&format!("{global} {REALLOC} {}", handle(work)));
        let filter = setup("wat", loaded(&typed(&text)), several(100));
        let chain = Chain::new("acme".parse().unwrap(), FilterLimits::default(), vec![filter]);
        let view = View::shared(FilterLimits::default());
        let mut told = Vec::new();
        for seed in ["first", "second"] {
            let outcome = chain.on_request(engine(), &view, head(&[("x-seed", seed)])).await;
            let log = outcome.runs[0].log.lines.iter().map(|(_, line)| line.clone()).collect::<Vec<_>>();
            told.push(format!("{:?} {log:?}", outcome.decision));
        }
        told
    };
    let get = "(call $get (global.get $old) (i32.const 0) (i32.const 6) (i32.const 64))
               (call $log (i32.const 1) (i32.load (i32.const 68)) (i32.load (i32.const 72)))";
    // By its number it is the head of the call that runs.
    let told =
        run(&format!("(if (i32.eqz (global.get $old)) (then (global.set $old (local.get $h)))) {get}")).await;
    assert_eq!(told, [r#"Next ["first"]"#, r#"Next ["second"]"#]);
    // And nothing, where that has let go of its own.
    let told = run(&format!(
        "(if (global.get $old) (then (call $drop (local.get $h)) {get}))
         (global.set $old (local.get $h))"
    ))
    .await;
    assert!(told[0].starts_with("Next") && told[1].contains("unknown handle index"), "{told:?}");
    // None can be kept: the call fails, and its instance with it.
    let keeps = typed(&module(&format!(
        r#"{REALLOC} (func (export "beamline:edge/request-handler@0.1.0#handle") (param i32) (result i32) (i32.const 256))"#
    )));
    let filter = setup("wat", loaded(&keeps), several(100));
    let chain = Chain::new("acme".parse().unwrap(), FilterLimits::default(), vec![filter]);
    let outcome = asked(&chain, "").await;
    assert!(
        format!("{:?}", outcome.decision).contains("borrow handles still remain"),
        "{:?}",
        outcome.decision
    );
    assert_eq!(waiting_on_this_thread(), 0);
}

#[tokio::test]
async fn instances_that_would_be_kept_in_vain_are_named_and_fresh() {
    let _alone = ALONE.lock().await;
    let of = |module: &str, lifetime, limits: &FilterLimits| {
        let filter = setup("f", loaded(&guest(module)), lifetime);
        let chain = Chain::new("acme".parse().unwrap(), limits.clone(), vec![filter]);
        let key = chain.kept_in_vain().next().map(|KeptInVain { key, .. }| key);
        (key, chain.link(0).keeping.is_some())
    };
    let (limits, none) =
        (FilterLimits::default(), FilterLimits { pinned_instances: 0, ..Default::default() });
    assert_eq!(of("tiny.wasm", InstanceLifetime::Request, &limits), (Some("pin_instance"), false));
    assert_eq!(of("late.wasm", several(2), &limits), (Some("reuse"), false));
    assert_eq!(of("late.wasm", InstanceLifetime::Request, &none), (Some("pin_instance"), false));
    assert_eq!(of("late.wasm", InstanceLifetime::Request, &limits), (None, true));
    assert_eq!(of("tiny.wasm", several(2), &none), (None, true));
    assert_eq!(of("tiny.wasm", InstanceLifetime::Call, &limits), (None, false));
}
