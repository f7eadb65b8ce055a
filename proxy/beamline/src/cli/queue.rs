//! `beamline queue`: what waits and what is dead, and what to do about it.

use std::{fmt::Write as _, io, str::FromStr};

use beamline_model::{TenantName, UpstreamName};
use beamline_queue::{EXPORT_VERSION, InvalidRate, Rate};
use clap::{Args, Subcommand, ValueEnum, value_parser};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    client::{Answer, Node, handed_on},
    failure::Failure,
    node_args::NodeArgs,
    report::{Report, Table, size, time},
};

/// See what the durable queue holds, and intervene
///
/// Every intervention is written to the audit. A tenant's token reaches what is that tenant's.
#[derive(Args, Debug)]
pub(crate) struct QueueArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,

    #[command(subcommand)]
    command: QueueCommand,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// Show what waits and what is dead for each upstream
    Status,
    /// List a tenant's records, oldest first
    ///
    /// Queries, header values and bodies are never shown.
    List(ListArgs),
    /// Write a tenant's records as JSON Lines, oldest first
    ///
    /// Each line is a record as `queue show --json` prints it, with `"version": 1`. Queries and credentials are not in it, and
    /// bodies only with --bodies: `null` where one is erased, with `"error": "lost"` where the node has lost it. Records that
    /// are accepted or queued again meanwhile come at the end. With --bodies it takes 30 minutes at most; --after goes on.
    Export(ExportArgs),
    /// Show one record
    ///
    /// Header values are shown for fields that carry no credential; of the others, and of the body, the length.
    Show(RecordArgs),
    /// Pause deliveries to an upstream
    ///
    /// Deliveries in flight end as they may. Requests are accepted, and expire, as ever.
    Pause(UpstreamArgs),
    /// Resume deliveries to an upstream, or to one ordering key
    ///
    /// An ordering key is paused by a record that died, where the manifest says `on_dead = "pause-key"`. Resumed, it goes on
    /// with what comes after that record, which stays dead.
    Resume(ResumeArgs),
    /// Bound the deliveries to an upstream that begin in a second
    ///
    /// The bound survives restarts, until another is set. What a tenth of a second brings may begin at once.
    Rate(RateArgs),
    /// Queue a dead letter again
    ///
    /// Where its ordering key is paused for it, it goes before those that wait; else behind everything that was accepted
    /// since. It gets as much time as it had at first.
    Retry(RetryArgs),
    /// Give up a record that waits or is dead
    ///
    /// Its content is erased. Whoever holds its receipt sees that it was discarded.
    Discard(RecordArgs),
    /// Give up all records of an upstream
    ///
    /// What is being delivered is left alone, and so is what is accepted meanwhile.
    Purge(PurgeArgs),
}

#[derive(Args, Debug)]
struct ListArgs {
    /// The tenant
    #[arg(long, short, value_name = "NAME")]
    tenant: TenantName,

    /// Only records for this upstream
    #[arg(long, value_name = "NAME")]
    upstream: Option<UpstreamName>,

    /// Only records in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<StateArg>,

    /// Only records of this ordering key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,

    /// Only records after this place, as an earlier page named it
    #[arg(long, value_name = "PLACE", default_value_t = 0)]
    after: u64,

    /// The most records
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u64).range(1..=1000))]
    limit: u64,
}

#[derive(Args, Debug)]
struct ExportArgs {
    /// The tenant
    #[arg(long, short, value_name = "NAME")]
    tenant: TenantName,

    /// Only records for this upstream
    upstream: Option<UpstreamName>,

    /// Only records in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<StateArg>,

    /// With each record's body, in base64; the audit tells that they were read
    #[arg(long)]
    bodies: bool,

    /// Only records after this place, the `seq` of an earlier line
    #[arg(long, value_name = "PLACE", default_value_t = 0)]
    after: u64,
}

#[derive(Args, Debug)]
struct RecordArgs {
    /// The tenant
    #[arg(long, short, value_name = "NAME")]
    tenant: TenantName,

    /// The record's id, as `beamline queue list` shows it
    record: String,
}

#[derive(Args, Debug)]
struct UpstreamArgs {
    /// The tenant
    #[arg(long, short, value_name = "NAME")]
    tenant: TenantName,

    /// The upstream
    upstream: UpstreamName,
}

#[derive(Args, Debug)]
struct ResumeArgs {
    #[command(flatten)]
    of: UpstreamArgs,

    /// Only this ordering key, which a dead record paused
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

#[derive(Args, Debug)]
struct RateArgs {
    #[command(flatten)]
    of: UpstreamArgs,

    /// Deliveries a second, such as 5/s, from 1/s to 10000/s; or none, for as many as can
    rate: RateArg,
}

#[derive(Clone, Copy, Debug)]
struct RateArg(Option<Rate>);

impl FromStr for RateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            rate => {
                rate.parse().map(|rate| Self(Some(rate))).map_err(|e: InvalidRate| format!("{e}, or none"))
            }
        }
    }
}

#[derive(Args, Debug)]
struct RetryArgs {
    #[command(flatten)]
    record: RecordArgs,

    /// Send it again though the origin may have taken it already
    #[arg(long)]
    may_repeat: bool,
}

#[derive(Args, Debug)]
struct PurgeArgs {
    #[command(flatten)]
    of: UpstreamArgs,

    /// Only records in this state; may be given again
    #[arg(long = "state", value_enum, value_name = "STATE", value_delimiter = ',')]
    states: Vec<PurgeState>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateArg {
    Queued,
    Delivering,
    Held,
    Delivered,
    Dead,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PurgeState {
    Queued,
    Held,
    Dead,
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[derive(Deserialize)]
struct Lanes {
    upstreams: Vec<Lane>,
}

#[derive(Deserialize)]
struct Lane {
    tenant: String,
    upstream: String,
    depth: u64,
    dead: u64,
    bytes: u64,
    oldest_ms: Option<u64>,
    paused: bool,
    per_second: Option<u64>,
    paused_keys: u64,
}

impl Lane {
    fn deliveries(&self) -> String {
        let mut told = if self.paused { "paused" } else { "on" }.to_owned();
        if let Some(rate) = self.per_second {
            let _ = write!(told, ", at most {rate}/s");
        }
        match self.paused_keys {
            0 => {}
            1 => told.push_str(", 1 key paused"),
            keys => drop(write!(told, ", {keys} keys paused")),
        }
        told
    }
}

#[derive(Deserialize)]
struct Page {
    records: Vec<Record>,
    next: Option<u64>,
}

#[derive(Deserialize)]
struct Record {
    id: String,
    upstream: String,
    state: String,
    reason: Option<String>,
    ordering_key: Option<String>,
    key_paused: bool,
    bytes: u64,
    accepted_ms: u64,
    due_ms: Option<u64>,
    expires_ms: u64,
    finished_ms: Option<u64>,
    attempts: u64,
    last_status: Option<u16>,
    last_error: Option<String>,
    method: Option<String>,
    path: Option<String>,
    repeat_safe: Option<bool>,
    request: Option<Request>,
}

#[derive(Deserialize)]
struct Request {
    host: String,
    headers: Vec<Header>,
    body_bytes: u64,
    revision: u64,
    request_id: String,
}

#[derive(Deserialize)]
struct Header {
    name: String,
    value: Option<String>,
    bytes: u64,
}

impl Record {
    fn state(&self) -> String {
        self.reason.as_ref().map_or_else(|| self.state.clone(), |reason| format!("{}({reason})", self.state))
    }

    fn request(&self) -> String {
        match (&self.method, &self.path) {
            (Some(method), Some(path)) => format!("{method} {}", printable(path)),
            _ => "(erased)".into(),
        }
    }

    fn key(&self) -> String {
        let key = self.ordering_key.as_deref().map_or_else(|| "-".into(), printable);
        if self.key_paused { format!("{key} (paused)") } else { key }
    }

    fn last(&self) -> String {
        let status = self.last_status.map(|status| status.to_string());
        status.or_else(|| self.last_error.clone()).unwrap_or_else(|| "-".into())
    }
}

/// A text that a client chose, without what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A text as a part of a URL.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

pub(crate) fn run(args: &QueueArgs) -> Result<Report, Failure> {
    let node = Node::of(&args.node)?;
    match &args.command {
        QueueCommand::Status => status(&node),
        QueueCommand::List(args) => list(&node, args),
        QueueCommand::Export(args) => {
            export(&node, args, &mut io::stdout().lock())?;
            Ok(Report { json: Value::Null, text: String::new() })
        }
        QueueCommand::Show(args) => {
            let answer = node.get(&record_path(args, ""))?;
            Ok(Report { text: shown(&answer.as_a()?), json: answer.0 })
        }
        QueueCommand::Pause(args) => pause(&node, args, true),
        QueueCommand::Resume(ResumeArgs { of, key: None }) => pause(&node, of, false),
        QueueCommand::Resume(ResumeArgs { of, key: Some(key) }) => resume_key(&node, of, key),
        QueueCommand::Rate(args) => rate(&node, args),
        QueueCommand::Retry(args) => {
            let wish = json!({ "may_repeat": args.may_repeat });
            done(node.post(&record_path(&args.record, "/retry"), &wish)?, "queued again")
        }
        QueueCommand::Discard(args) => done(node.post_empty(&record_path(args, "/discard"))?, "discarded"),
        QueueCommand::Purge(args) => purge(&node, args),
    }
}

fn record_path(args: &RecordArgs, then: &str) -> String {
    format!("/v1/tenants/{}/queue/records/{}{then}", args.tenant, encoded(&args.record))
}

fn upstream_path(args: &UpstreamArgs, then: &str) -> String {
    format!("/v1/tenants/{}/queue/upstreams/{}/{then}", args.tenant, args.upstream)
}

fn status(node: &Node) -> Result<Report, Failure> {
    let answer = node.get("/v1/queue")?;
    let lanes: Lanes = answer.as_a()?;
    if lanes.upstreams.is_empty() {
        return Ok(Report { json: answer.0, text: "nothing is queued, and nothing is paused".into() });
    }
    let mut table = Table::headed(["TENANT", "UPSTREAM", "WAITING", "DEAD", "SIZE", "OLDEST", "DELIVERIES"]);
    for lane in lanes.upstreams {
        let deliveries = lane.deliveries();
        table.row([
            lane.tenant,
            lane.upstream,
            lane.depth.to_string(),
            lane.dead.to_string(),
            size(lane.bytes),
            lane.oldest_ms.map_or_else(|| "-".into(), time),
            deliveries,
        ]);
    }
    Ok(Report { json: answer.0, text: table.rendered() })
}

fn list(node: &Node, args: &ListArgs) -> Result<Report, Failure> {
    let mut chosen = String::new();
    let filters = [
        ("upstream", args.upstream.as_ref().map(ToString::to_string)),
        ("state", args.state.as_ref().map(name)),
        ("ordering_key", args.key.clone()),
    ];
    for (filter, value) in filters {
        if let Some(value) = value {
            let _ = write!(chosen, "&{filter}={}", encoded(&value));
        }
    }
    // The node looks at so many records at a time, however few of them are chosen.
    let (mut records, mut documents, mut after) = (Vec::new(), Vec::new(), args.after);
    let next = loop {
        let left = args.limit - records.len() as u64;
        let path = format!("/v1/tenants/{}/queue/records?after={after}&limit={left}{chosen}", args.tenant);
        let mut answer = node.get(&path)?;
        let page: Page = answer.as_a()?;
        records.extend(page.records);
        if let Some(page) = answer.0["records"].as_array_mut() {
            documents.append(page);
        }
        match page.next {
            Some(next) if next > after && (records.len() as u64) < args.limit => after = next,
            next => break next,
        }
    };
    let mut text = if records.is_empty() { "no such records".to_owned() } else { table(&records) };
    if let Some(next) = next {
        let _ = write!(text, "\nthere may be more: --after {next}");
    }
    Ok(Report { json: json!({ "records": documents, "next": next }), text })
}

#[derive(Deserialize)]
struct ExportPage {
    records: Vec<Map<String, Value>>,
    next: Option<u64>,
}

/// Writes page by page, so that no more than one is in memory.
fn export(node: &Node, args: &ExportArgs, to: &mut impl io::Write) -> Result<(), Failure> {
    let mut chosen = String::new();
    if let Some(upstream) = &args.upstream {
        let _ = write!(chosen, "&upstream={upstream}");
    }
    if let Some(state) = &args.state {
        let _ = write!(chosen, "&state={}", name(state));
    }
    if args.bodies {
        let path = format!("/v1/tenants/{}/queue/bodies?after={}{chosen}", args.tenant, args.after);
        return node.copy(&path, to);
    }
    let mut after = args.after;
    loop {
        let page = node.get(&format!("/v1/tenants/{}/queue/export?after={after}{chosen}", args.tenant))?;
        let ExportPage { records, next } = page.as_a()?;
        let mut lines = String::new();
        for mut record in records {
            record.insert("version".into(), EXPORT_VERSION.into());
            let _ = writeln!(lines, "{}", Value::Object(record));
        }
        if !handed_on(lines.as_bytes(), to)? {
            return Ok(());
        }
        match next {
            Some(next) if next > after => after = next,
            _ => return Ok(()),
        }
    }
}

fn table(records: &[Record]) -> String {
    let mut table = Table::headed([
        "RECORD", "UPSTREAM", "STATE", "ACCEPTED", "ATTEMPTS", "LAST", "SIZE", "KEY", "REQUEST",
    ]);
    for record in records {
        table.row([
            record.id.clone(),
            record.upstream.clone(),
            record.state(),
            time(record.accepted_ms),
            record.attempts.to_string(),
            record.last(),
            size(record.bytes),
            record.key(),
            record.request(),
        ]);
    }
    table.rendered().trim_end().to_owned()
}

fn shown(record: &Record) -> String {
    let mut table = Table::plain();
    let mut row = |name: &str, value: String| table.row([name.into(), value]);
    row("record", record.id.clone());
    row("upstream", record.upstream.clone());
    row("state", record.state());
    row("request", record.request());
    if record.ordering_key.is_some() {
        row("key", record.key());
    }
    row("accepted", time(record.accepted_ms));
    if let Some(due) = record.due_ms {
        row("due", time(due));
    }
    row("expires", time(record.expires_ms));
    if let Some(finished) = record.finished_ms {
        row("finished", time(finished));
    }
    row("attempts", record.attempts.to_string());
    row("last", record.last());
    if let Some(safe) = record.repeat_safe {
        row("repeat", if safe { "safe" } else { "not safe" }.into());
    }
    if let Some(request) = &record.request {
        row("revision", request.revision.to_string());
        row("request id", printable(&request.request_id));
        row("body", size(request.body_bytes));
        row("host", printable(&request.host));
        for Header { name, value, bytes } in &request.headers {
            let value = value.as_deref().map_or_else(|| format!("({bytes} bytes)"), printable);
            row("header", format!("{}: {value}", printable(name)));
        }
    }
    table.rendered()
}

fn pause(node: &Node, args: &UpstreamArgs, pause: bool) -> Result<Report, Failure> {
    let (path, now) = if pause { ("pause", "paused") } else { ("resume", "resumed") };
    let answer = node.post_empty(&upstream_path(args, path))?;
    let text = format!("deliveries to upstream {} of tenant {} are {now}", args.upstream, args.tenant);
    Ok(Report { json: answer.0, text })
}

#[derive(Deserialize)]
struct ResumedKey {
    records: u64,
}

fn resume_key(node: &Node, of: &UpstreamArgs, key: &str) -> Result<Report, Failure> {
    let answer = node.post(&upstream_path(of, "resume-key"), &json!({ "ordering_key": key }))?;
    let ResumedKey { records } = answer.as_a()?;
    let whose =
        format!("ordering key {} of upstream {} of tenant {}", printable(key), of.upstream, of.tenant);
    let text = match records {
        0 => format!("{whose} was not paused"),
        1 => format!("{whose} is resumed: 1 dead letter paused it"),
        many => format!("{whose} is resumed: {many} dead letters paused it"),
    };
    Ok(Report { json: answer.0, text })
}

fn rate(node: &Node, args: &RateArgs) -> Result<Report, Failure> {
    let RateArgs { of, rate: RateArg(rate) } = args;
    let answer = node.post(&upstream_path(of, "rate"), &json!({ "per_second": rate }))?;
    let whose = format!("deliveries to upstream {} of tenant {}", of.upstream, of.tenant);
    let text = match rate {
        Some(rate) => format!("{whose} begin at most at {rate}"),
        None => format!("{whose} have no rate: as many begin as can"),
    };
    Ok(Report { json: answer.0, text })
}

fn done(answer: Answer, what: &str) -> Result<Report, Failure> {
    let record: Record = answer.as_a()?;
    Ok(Report { text: format!("1 record {what}: {} is {}", record.id, record.state()), json: answer.0 })
}

#[derive(Deserialize)]
struct Purged {
    records: u64,
    bytes: u64,
    more: bool,
}

/// A purge is a few seconds at a time, for as long as there is more and it goes on.
fn purge(node: &Node, args: &PurgeArgs) -> Result<Report, Failure> {
    let wish = if args.states.is_empty() {
        json!({})
    } else {
        json!({ "states": args.states.iter().map(name).collect::<Vec<_>>() })
    };
    let path = upstream_path(&args.of, "purge");
    let (mut records, mut bytes) = (0, 0);
    loop {
        let page: Purged = node.post(&path, &wish)?.as_a()?;
        records += page.records;
        bytes += page.bytes;
        if !page.more || page.records == 0 {
            break;
        }
    }
    let plural = if records == 1 { "record" } else { "records" };
    Ok(Report {
        json: Value::from_iter([("records", records), ("bytes", bytes)]),
        text: format!(
            "{records} {plural} ({}) of upstream {} of tenant {} discarded",
            size(bytes),
            args.of.upstream,
            args.of.tenant
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{FakeNode, ask, problem};

    fn record(state: &str, reason: Option<&str>) -> Value {
        json!({
            "seq": 7, "id": "AZ5", "upstream": "api", "state": state, "reason": reason, "ordering_key": "k\u{1b}",
            "key_paused": reason.is_some(),
            "bytes": 2048, "accepted_ms": 0, "due_ms": null, "expires_ms": 86_400_000, "finished_ms": 1000,
            "attempts": 2, "last_status": 400, "last_error": null, "method": "POST", "path": "/in",
            "repeat_safe": false,
            "request": {
                "host": "acme.test", "body_bytes": 3, "revision": 2, "request_id": "r",
                "headers": [
                    { "name": "content-type", "value": "text/plain", "bytes": 10 },
                    { "name": "authorization", "value": null, "bytes": 13 },
                ],
            },
        })
    }

    #[test]
    fn status_is_a_line_for_each_upstream() {
        let lanes = json!({ "upstreams": [
            { "tenant": "acme", "upstream": "api", "depth": 3, "dead": 1, "bytes": 4096, "oldest_ms": 0, "paused": true,
              "per_second": null, "paused_keys": 0 },
            { "tenant": "acme", "upstream": "web", "depth": 0, "dead": 1, "bytes": 4096, "oldest_ms": null, "paused": false,
              "per_second": 5, "paused_keys": 2 },
        ] });
        let node = FakeNode::answering([(200, lanes), (200, json!({ "upstreams": [] }))]);
        assert_eq!(
            ask(&node, "queue status").unwrap().text,
            "TENANT  UPSTREAM  WAITING  DEAD  SIZE     OLDEST                DELIVERIES\n\
             acme    api       3        1     4.0 KiB  1970-01-01T00:00:00Z  paused\n\
             acme    web       0        1     4.0 KiB  -                     on, at most 5/s, 2 keys paused\n"
        );
        assert_eq!(ask(&node, "queue status").unwrap().text, "nothing is queued, and nothing is paused");
    }

    #[test]
    fn a_list_sends_its_filters_and_says_where_it_goes_on() {
        let page = json!({ "records": [record("dead", Some("rejected"))], "next": 7 });
        let node = FakeNode::answering([(200, page)]);
        let line = "queue list --tenant acme --upstream api --state dead --key a&b --limit 1";
        let text = ask(&node, line).unwrap().text;
        assert!(
            text.contains("AZ5     api       dead(rejected)  1970-01-01T00:00:00Z  2         400"),
            "{text}"
        );
        assert!(text.ends_with("there may be more: --after 7") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(
            node.requests()[0].line,
            "GET /v1/tenants/acme/queue/records?after=0&limit=1&upstream=api&state=dead&ordering_key=a%26b"
        );
    }

    #[test]
    fn a_list_goes_on_over_pages_in_which_nothing_was_chosen() {
        let (none, page) = (json!({ "records": [], "next": 40 }), json!({ "records": [], "next": null }));
        let some = json!({ "records": [record("dead", Some("rejected"))], "next": 90 });
        let node = FakeNode::answering([(200, none), (200, some), (200, page)]);
        let report = ask(&node, "queue list --tenant acme --limit 5").unwrap();
        assert_eq!(
            (report.json["records"].as_array().unwrap().len(), &report.json["next"]),
            (1, &Value::Null)
        );
        let asked: Vec<_> = node.requests().iter().map(|r| r.line.clone()).collect();
        let line = |of: &str| format!("GET /v1/tenants/acme/queue/records?{of}");
        let expected = ["after=0&limit=5", "after=40&limit=5", "after=90&limit=4"].map(line);
        assert_eq!(asked, expected);
    }

    #[test]
    fn an_export_is_a_line_for_each_record_page_after_page() {
        let pages = [
            json!({ "records": [record("queued", None)], "next": 7 }),
            json!({ "records": [], "next": 9 }),
            json!({ "records": [record("dead", Some("rejected"))], "next": null }),
        ];
        let node = FakeNode::answering(pages.map(|page| (200, page)));
        let args = ExportArgs {
            tenant: "acme".parse().unwrap(),
            upstream: Some("api".parse().unwrap()),
            state: Some(StateArg::Dead),
            bodies: false,
            after: 3,
        };
        let mut written = Vec::new();
        let client = Node::of(&crate::cli::testing::node_args(node.url())).unwrap();
        export(&client, &args, &mut written).unwrap();
        let lines: Vec<Value> = String::from_utf8(written)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (&lines[0]["version"], &lines[0]["id"], &lines[1]["reason"]),
            (&json!(1), &json!("AZ5"), &json!("rejected"))
        );
        let asked: Vec<_> = node.requests().iter().map(|r| r.line.clone()).collect();
        let line = |after| format!("GET /v1/tenants/acme/queue/export?after={after}&upstream=api&state=dead");
        assert_eq!(asked, [3, 7, 9].map(line));
    }

    #[test]
    fn an_export_with_bodies_is_what_the_node_writes() {
        let lines = json!({ "id": "AZ5", "version": 1, "body": "eA==" });
        let node = FakeNode::answering([(200, lines.clone()), (503, problem("queue-unavailable"))]);
        let args = ExportArgs {
            tenant: "acme".parse().unwrap(),
            upstream: Some("api".parse().unwrap()),
            state: None,
            bodies: true,
            after: 41,
        };
        let client = Node::of(&crate::cli::testing::node_args(node.url())).unwrap();
        let mut written = Vec::new();
        export(&client, &args, &mut written).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), lines.to_string());
        let refused = export(&client, &args, &mut Vec::new());
        assert!(matches!(refused, Err(Failure::Refused(_))), "{refused:?}");
        let asked: Vec<_> = node.requests().iter().map(|r| r.line.clone()).collect();
        assert_eq!(asked, ["GET /v1/tenants/acme/queue/bodies?after=41&upstream=api"; 2]);
    }

    #[test]
    fn a_record_is_shown_without_what_the_node_keeps_to_itself() {
        let node = FakeNode::answering([(200, record("dead", Some("rejected")))]);
        let text = ask(&node, "queue show --tenant acme AZ5").unwrap().text;
        for line in [
            "state       dead(rejected)",
            "key         k\u{fffd} (paused)",
            "header      authorization: (13 bytes)",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(node.requests()[0].line, "GET /v1/tenants/acme/queue/records/AZ5");
    }

    #[test]
    fn interventions_say_what_they_did_and_to_how_many() {
        let node = FakeNode::answering([
            (200, record("queued", None)),
            (200, record("dead", Some("discarded"))),
            (200, json!({ "upstream": "api", "paused": true })),
            (200, json!({ "upstream": "api", "paused": false })),
            (200, json!({ "upstream": "api", "ordering_key": "k", "records": 1 })),
            (200, json!({ "upstream": "api", "ordering_key": "k", "records": 0 })),
            (200, json!({ "upstream": "api", "per_second": 5 })),
            (200, json!({ "upstream": "api", "per_second": null })),
            (200, json!({ "records": 1000, "bytes": 1024, "more": true })),
            (200, json!({ "records": 1, "bytes": 1024, "more": false })),
            (409, problem("may-repeat")),
        ]);
        for (line, says) in [
            ("queue retry --tenant acme AZ5 --may-repeat", "1 record queued again: AZ5 is queued"),
            ("queue discard --tenant acme AZ5", "1 record discarded: AZ5 is dead(discarded)"),
            ("queue pause --tenant acme api", "deliveries to upstream api of tenant acme are paused"),
            ("queue resume --tenant acme api", "deliveries to upstream api of tenant acme are resumed"),
            (
                "queue resume --tenant acme api --key k",
                "ordering key k of upstream api of tenant acme is resumed: 1 dead letter paused it",
            ),
            (
                "queue resume --tenant acme api --key k",
                "ordering key k of upstream api of tenant acme was not paused",
            ),
            (
                "queue rate --tenant acme api 5/s",
                "deliveries to upstream api of tenant acme begin at most at 5/s",
            ),
            (
                "queue rate --tenant acme api none",
                "deliveries to upstream api of tenant acme have no rate: as many begin as can",
            ),
            (
                "queue purge --tenant acme api --state dead,held",
                "1001 records (2.0 KiB) of upstream api of tenant acme discarded",
            ),
        ] {
            assert_eq!(ask(&node, line).unwrap().text, says);
        }
        let refused = ask(&node, "queue retry --tenant acme AZ5").unwrap_err().to_string();
        assert!(refused.contains("With --may-repeat"), "{refused}");
        let requests = node.requests();
        assert_eq!(requests[0].line, "POST /v1/tenants/acme/queue/records/AZ5/retry");
        assert_eq!(requests[0].json(), json!({ "may_repeat": true }));
        assert_eq!(requests[2].line, "POST /v1/tenants/acme/queue/upstreams/api/pause");
        assert_eq!(requests[4].line, "POST /v1/tenants/acme/queue/upstreams/api/resume-key");
        assert_eq!(requests[4].json(), json!({ "ordering_key": "k" }));
        assert_eq!(requests[6].line, "POST /v1/tenants/acme/queue/upstreams/api/rate");
        assert_eq!(requests[6].json(), json!({ "per_second": 5 }));
        assert_eq!(requests[7].json(), json!({ "per_second": null }));
        assert_eq!(requests[8].json(), json!({ "states": ["dead", "held"] }));
    }
}
