//! A node with a tenant that means no harm, whose requests go on all the time, and tenants that do.

use std::{
    collections::BTreeMap,
    env::{self, VarError},
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use beamline_tests::{
    admin::AdminError,
    beamline::Options,
    client::Request,
    load::{self, Load, Outcome, Plan, QuickOrigin},
    process,
    scene::{HOST, PATIENCE, Scene},
    wait::wait,
};
use serde_json::{Value, json};

use crate::kinds::{End, Kind};

const NOISY: &str = "noisy.test";
/// What the slowest hundredth of the quiet tenant's requests may take: a worker that is lost for a moment takes seconds.
const SLOWEST: Duration = Duration::from_secs(1);
/// What the node may hold more than at its start, while bombs go off.
const MORE_MEMORY: u64 = 1 << 30;

/// Whether the long form was asked for.
pub(crate) fn is_long() -> bool {
    match env::var("BEAMLINE_HOSTILE") {
        Ok(form) if form == "long" => true,
        Err(VarError::NotPresent) => false,
        other => panic!("BEAMLINE_HOSTILE: expected \"long\" or no such variable; found {other:?}"),
    }
}

/// The node, the quiet tenant `acme` and the tenant `noisy`.
pub(crate) struct Stage {
    scene: Scene,
    quick: QuickOrigin,
    threads: Vec<String>,
    resident: u64,
    /// Modules that were taken, and those of them that are in the reset tier.
    taken: AtomicU32,
    reset: AtomicU32,
}

/// The threads that a node has all its life.
fn steady_threads(pid: u32) -> Vec<String> {
    let mut names = process::threads(pid).unwrap();
    names.retain(|n| n.starts_with("worker-") || n.starts_with("slow-lane") || n == "epoch");
    names
}

impl Stage {
    pub(crate) fn start() -> Self {
        Self::in_tier("reset")
    }

    /// A node whose modules run in this tier, where they can.
    pub(crate) fn in_tier(tier: &str) -> Self {
        let arguments = vec!["--reset-tier".into(), (tier == "reset").to_string()];
        let scene = Scene::with(Options { arguments, ..Options::default() }).unwrap();
        let quick = QuickOrigin::start(64).unwrap();
        let probe = scene.filter("probe").unwrap();
        let endpoints = json!([quick.address().to_string()]);
        scene
            .apply(|m| {
                (m["filters"], m["upstreams"]["origin"]["endpoints"]) = (json!([probe]), endpoints);
            })
            .unwrap();
        scene.admin.create_tenant("noisy", &[NOISY], &["127.0.0.0/8"]).unwrap();
        let pid = scene.node.pid().unwrap();
        let (threads, resident) = (steady_threads(pid), process::memory(pid).unwrap().resident);
        assert!(threads.len() >= 4, "{threads:?}");
        Self { scene, quick, threads, resident, taken: AtomicU32::new(0), reset: AtomicU32::new(0) }
    }

    /// Where the requests of tenants go.
    pub(crate) fn origin(&self) -> SocketAddr {
        self.scene.origin.address()
    }

    /// What the node holds of the machine's memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        process::memory(self.scene.node.pid().unwrap()).unwrap().resident
    }

    /// Modules that were taken so far.
    pub(crate) fn taken(&self) -> u32 {
        self.taken.load(Relaxed)
    }

    /// The quiet tenant's requests, until they are stopped.
    fn quiet(&self) -> Load {
        let request = load::request("GET", "/", HOST, &[("x-probe", "headers")], b"");
        let plan = Plan::new(self.scene.node.address(), request).connections(2).rate(200.0);
        load::start(plan.lasting(Duration::from_secs(3600)).timeout(PATIENCE)).unwrap()
    }

    /// Of the modules that were taken, how many are in the reset tier: the other number is of all.
    pub(crate) fn in_the_reset_tier(&self) -> (u32, u32) {
        (self.reset.load(Relaxed), self.taken.load(Relaxed))
    }

    /// Stops the quiet tenant's requests; says what went wrong with them, or with the node.
    pub(crate) fn judge(&self, quiet: Load) -> Result<(), String> {
        quiet.wait_for_more(3, PATIENCE).map_err(|e| format!("the quiet tenant waits: {e}"))?;
        let report = quiet.stop().map_err(|e| e.to_string())?;
        if report.failed() > 0 {
            return Err(format!("the quiet tenant noticed: {report}"));
        }
        let slowest = report.latency.percentile(99.0);
        if slowest > SLOWEST {
            return Err(format!("the quiet tenant waited: p99 {slowest:?}, {report}"));
        }
        let pid = self.scene.node.pid().map_err(|e| e.to_string())?;
        let threads = steady_threads(pid);
        if threads != self.threads {
            return Err(format!("a thread is gone: {:?}, now {threads:?}", self.threads));
        }
        let resident = process::memory(pid).map_err(|e| e.to_string())?.resident;
        if resident > self.resident + MORE_MEMORY {
            return Err(format!("the node holds {} MiB, at first {}", resident >> 20, self.resident >> 20));
        }
        Ok(())
    }

    fn manifest(&self, host: &str, module: &str, end: End) -> Value {
        json!({
            "version": 1,
            "hosts": [host],
            "default_upstream": "origin",
            "upstreams": {
                "origin": { "endpoints": [self.scene.origin.address().to_string()] },
                "queues": {
                    "endpoints": [self.scene.origin.address().to_string()],
                    "queue": { "mode": "on-failure" },
                },
            },
            "filters": [{ "name": "hostile", "module": module }],
            "limits": { "cpu": end.cpu(), "memory": "4MiB" },
            "egress": { "allow": [format!("http://{}", self.origin())] },
        })
    }

    /// The quiet tenant's requests, of which one was answered.
    pub(crate) fn begin(&self) -> Load {
        let quiet = self.quiet();
        quiet.wait_for_more(1, PATIENCE).unwrap();
        quiet
    }

    /// Uploads a module of this kind and has it run beside the quiet tenant's requests; says what was not as it
    /// should be.
    pub(crate) fn face(&self, kind: &Kind) -> Result<(), String> {
        let wrong = |what: String| format!("{}: {what}", kind.name);
        let (quiet, began) = (self.begin(), Instant::now());
        let answers = self.provoke(kind).map_err(wrong)?;
        let first = answers.first().map_or("refused", String::as_str);
        println!("{:6} ms  {}: {first} ({} requests)", began.elapsed().as_millis(), kind.name, answers.len());
        self.judge(quiet).map_err(wrong)
    }

    /// Uploads a module of this kind and has it run; gives what it answered, nothing where it was refused, or says
    /// what was not as it should be.
    pub(crate) fn provoke(&self, kind: &Kind) -> Result<Vec<String>, String> {
        let module = match self.scene.admin.push("noisy", &kind.module) {
            Err(AdminError::Refused { status, .. })
                if (400..500).contains(&status) && matches!(kind.end, End::Refused | End::Contained) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error.to_string()),
            Ok(_) if matches!(kind.end, End::Refused) => return Err("it was taken".into()),
            Ok(module) => module,
        };
        self.taken.fetch_add(1, Relaxed);
        self.reset.fetch_add(u32::from(module.tier == "reset"), Relaxed);
        let manifest = self.manifest(NOISY, &module.digest, kind.end);
        self.scene.admin.apply("noisy", &manifest).map_err(|e| e.to_string())?;
        let (rounds, at_once) = if is_long() { (8, 16) } else { (1, 3) };
        let before = self.told_of(kind);
        let answers = self.ask(NOISY, rounds, at_once)?;
        if let Some(bad) = answers.iter().find(|answer| !kind.end.allows(answer)) {
            return Err(format!("answered {bad}; expected {:?}", kind.end));
        }
        // A response that was broken off says nothing; the log does.
        let cut = answers.iter().filter(|answer| *answer == "cut").count();
        wait(PATIENCE, || self.told_of(kind), |told| *told >= before + cut);
        Ok(answers)
    }

    /// Requests of which the log says that they ended as this kind may, where that may be after the head.
    fn told_of(&self, kind: &Kind) -> usize {
        let End::FailsLate(problems) = kind.end else { return 0 };
        let is_one = |record: &&Value| {
            record["kind"] == "access"
                && record["tenant.id"] == "noisy"
                && record["error.type"].as_str().is_some_and(|found| problems.contains(&found))
        };
        self.scene.node.log().unwrap().iter().filter(is_one).count()
    }

    /// Sends requests that a queue would take; gives the good status or the problem of each answer.
    fn ask(&self, host: &str, rounds: usize, at_once: usize) -> Result<Vec<String>, String> {
        let to = self.scene.node.address();
        let one = || -> Result<String, String> {
            let answer = match Request::post("/inspect", "a body").host(host).send(to) {
                Err(error) if format!("{error:#}").contains("response was cut: the connection ended") => {
                    return Ok("cut".into());
                }
                answer => answer.map_err(|e| format!("{e:#}"))?,
            };
            match answer.status {
                200 => {}
                202 => return Ok("202".into()),
                _ => return Ok(answer.problem()),
            }
            let seen = answer.text();
            if seen.contains("evil") { Err(format!("the origin saw {seen}")) } else { Ok("200".into()) }
        };
        let mut answers = Vec::new();
        for _ in 0..rounds {
            let round: Vec<_> = thread::scope(|scope| {
                let asked: Vec<_> = (0..at_once).map(|_| scope.spawn(one)).collect();
                asked.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for answer in round {
                answers.push(answer?);
            }
        }
        Ok(answers)
    }

    /// Has modules of all these kinds run at once, each of a tenant of its own. A module that only ever fails is left out,
    /// and one whose configuration changes has a fresh chance: so they change all the time.
    pub(crate) fn face_all(&self, kinds: &[Kind], lasting: Duration) {
        let mut hostile = BTreeMap::new();
        let mut refused = 0;
        for (i, kind) in kinds.iter().enumerate() {
            let (name, host) = (format!("hostile-{i}"), format!("hostile-{i}.test"));
            self.scene.admin.create_tenant(&name, &[&host], &["127.0.0.0/8"]).unwrap();
            match self.scene.admin.push(&name, &kind.module) {
                Ok(module) => {
                    let mut manifest = self.manifest(&host, &module.digest, kind.end);
                    manifest["upstreams"]["origin"]["endpoints"] = json!([self.quick.address().to_string()]);
                    self.scene.admin.apply(&name, &manifest).unwrap();
                    hostile.insert(name, (kind, manifest));
                }
                Err(AdminError::Refused { status, .. })
                    if (400..500).contains(&status) && matches!(kind.end, End::Contained) =>
                {
                    refused += 1;
                }
                Err(error) => panic!("{}: {error}", kind.name),
            }
        }
        let quiet = self.quiet();
        let request = |host: &Value| load::request("POST", "/", host.as_str().unwrap(), &[], b"a body");
        let requests: Vec<_> = hostile.values().map(|(_, manifest)| request(&manifest["hosts"][0])).collect();
        let mut plan = Plan::new(self.scene.node.address(), requests[0].clone()).connections(64).rate(500.0);
        plan.requests = requests;
        let plan = plan.lasting(lasting).timeout(PATIENCE).also_good(503).also_good(502);
        let noise = load::start(plan).unwrap();
        let (began, mut rounds) = (Instant::now(), 0);
        while began.elapsed() < lasting {
            rounds += 1;
            for (name, (_, manifest)) in &mut hostile {
                manifest["filters"][0]["config"] = json!({ "round": rounds });
                self.scene.admin.apply(name, manifest).unwrap();
            }
        }
        let noise = noise.finish().unwrap();
        println!("all at once, {refused} of {} refused, {rounds} rounds: {noise}", kinds.len());
        assert_eq!(noise.failed(), noise.count(Outcome::Cut), "every request was answered: {noise}");
        self.judge(quiet).unwrap();
        self.look_at_outcomes(&hostile, noise.total());
    }

    /// Each request of the hostile tenants ended as its kind may, and every kind that is to fail did.
    fn look_at_outcomes(&self, hostile: &BTreeMap<String, (&Kind, Value)>, total: u64) {
        let kind_of = |record: &Value| {
            let tenant = record["tenant.id"].as_str().filter(|_| record["kind"] == "access")?;
            hostile.get(tenant).map(|(kind, _)| *kind)
        };
        let all_told = |log: &[Value]| log.iter().filter(|r| kind_of(r).is_some()).count() as u64 >= total;
        let log = self.scene.node.wait_log(PATIENCE, all_told).unwrap();
        let (mut outcomes, mut ran) = (BTreeMap::new(), BTreeMap::new());
        for record in &log {
            let Some(kind) = kind_of(record) else { continue };
            let status = record["http.response.status_code"].to_string();
            let outcome = record["error.type"].as_str().unwrap_or(&status).to_owned();
            // What so many at once may come to, whatever they do.
            let is_load =
                ["filter-suspended", "filter-capacity", "filter-timeout"].contains(&outcome.as_str());
            assert!(is_load || kind.end.allows(&outcome), "{}: {record}", kind.name);
            let its_own = kind.end.allows(&outcome) && outcome != "filter-suspended";
            *ran.entry(kind.name.as_str()).or_insert(0) += u64::from(its_own);
            *outcomes.entry(outcome).or_insert(0_u64) += 1;
        }
        println!("{outcomes:?}");
        let failed: u64 = outcomes
            .iter()
            .filter(|(outcome, _)| outcome.starts_with("filter-") && *outcome != "filter-suspended")
            .map(|(_, times)| times)
            .sum();
        assert!(failed * 10 >= total, "of {total} requests {failed} met a hostile module: {outcomes:?}");
        let names = hostile.values().map(|(kind, _)| kind.name.as_str());
        let idle: Vec<_> = names.filter(|name| ran.get(name).is_none_or(|times| *times == 0)).collect();
        assert!(idle.is_empty(), "none of these ran: {idle:?}");
    }

    /// Nothing panicked, and the node still serves and takes modules.
    pub(crate) fn is_well(&self) {
        let printed: PathBuf = self.scene.node.folder().join("printed.txt");
        let printed = std::fs::read_to_string(printed).unwrap();
        assert!(!printed.contains("panicked"), "{printed}");
        let live = Request::get("/livez").send(self.scene.node.admin_address()).unwrap();
        assert_eq!(live.status, 200, "{}", live.text());
        let tiny = beamline_tests::guests::module("tiny").unwrap();
        self.scene.admin.push("noisy", &tiny).unwrap();
        let memory = process::memory(self.scene.node.pid().unwrap()).unwrap();
        println!(
            "the node holds {} MiB, {} at most, {} at first",
            memory.resident >> 20,
            memory.peak >> 20,
            self.resident >> 20
        );
    }
}

impl End {
    /// What a call may take. One that the clock is to end, or may, is ended soon; on a machine that is slow for a moment no other is
    /// to come to that.
    fn cpu(self) -> &'static str {
        match self {
            Self::Fails(problems) | Self::FailsLate(problems) if !problems.contains(&"filter-timeout") => {
                "1s"
            }
            Self::Harmless | Self::Queued => "1s",
            _ => "20ms",
        }
    }

    fn allows(self, answer: &str) -> bool {
        match self {
            Self::Refused => false,
            Self::Harmless => answer == "200",
            Self::Queued => answer == "202",
            // What fails time and again is left out for a while.
            Self::Fails(problems) => problems.contains(&answer) || is_long() && answer == "filter-suspended",
            Self::FailsLate(problems) => answer == "cut" || Self::Fails(problems).allows(answer),
            Self::Contained => answer == "200" || answer.starts_with("filter-"),
        }
    }
}
