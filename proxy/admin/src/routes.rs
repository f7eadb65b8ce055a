//! Every route, in one table.

use axum::routing::{MethodFilter, MethodRouter, on};
use http::Method;

use crate::{AdminState, audit, bodies, manifests, metrics, modules, node, queue, secrets, tenants};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Anybody who can reach the listener: no token is asked for.
    Anyone,
    /// The operator's token.
    Operator,
    /// Any token; what is answered is what it may see.
    Token,
    /// A token of the tenant in the path, or the operator's.
    Tenant,
}

impl Who {
    /// As the reference page writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::Operator => "the operator",
            Self::Token => "any token",
            Self::Tenant => "the tenant, the operator",
        }
    }
}

/// One route of the API. `docs/reference/admin-api.md` has a section for each.
#[derive(Clone, Debug)]
pub struct RouteRow {
    /// The method. Where there is a GET, HEAD works too.
    pub method: Method,
    /// The path, with its parameters in braces.
    pub path: &'static str,
    /// Whose token it takes.
    pub who: Who,
    /// What it does, in a few words that can follow "can".
    pub does: &'static str,
    /// The most bytes that its request's body may have; 0 where it takes none.
    pub max_body: usize,
    /// The status of success.
    pub success: u16,
    /// The problems that are its own, as tokens of [`crate::PROBLEMS`]. Every route with a token can also answer
    /// `token-missing` and `token-unknown`, every one `internal`.
    pub problems: &'static [&'static str],
    operation: Operation,
}

/// What a route calls: one variant for each handler, so that no row can lack one.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Ready,
    Live,
    Metrics,
    Status,
    CreateTenant,
    ListTenants,
    ShowTenant,
    DeleteTenant,
    PushModule,
    ListModules,
    Apply,
    ShowManifest,
    ListRevisions,
    ShowRevision,
    Rollback,
    ListSecrets,
    SetSecret,
    RemoveSecret,
    Lanes,
    ListRecords,
    ExportRecords,
    ExportBodies,
    ShowRecord,
    RetryRecord,
    DiscardRecord,
    PurgeUpstream,
    PauseUpstream,
    ResumeUpstream,
    ResumeKey,
    RateUpstream,
    Audit,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What every route below a tenant can answer.
macro_rules! of_a_tenant {
    ($($more:literal),* $(,)?) => {
        &["other-tenant", "unknown-tenant", "store-unavailable", "store-damaged", "stopping", $($more),*]
    };
}

/// Every route, in the order of the reference page.
pub const ROUTES: &[RouteRow] = &[
    RouteRow {
        method: Method::GET,
        path: "/readyz",
        who: Who::Anyone,
        does: "tell whether new traffic should come here",
        max_body: 0,
        success: 200,
        problems: &["not-ready"],
        operation: Operation::Ready,
    },
    RouteRow {
        method: Method::GET,
        path: "/livez",
        who: Who::Anyone,
        does: "tell whether every worker makes progress",
        max_body: 0,
        success: 200,
        problems: &["not-live"],
        operation: Operation::Live,
    },
    RouteRow {
        method: Method::GET,
        path: "/metrics",
        who: Who::Operator,
        does: "see what the node counts",
        max_body: 0,
        success: 200,
        problems: &["operator-only"],
        operation: Operation::Metrics,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/status",
        who: Who::Operator,
        does: "see how the node, its tenants and its queue fare",
        max_body: 0,
        success: 200,
        problems: &["operator-only"],
        operation: Operation::Status,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants",
        who: Who::Operator,
        does: "create a tenant with its grant and its first token",
        max_body: 64 * KIB,
        success: 201,
        problems: &[
            "operator-only",
            "store-unavailable",
            "store-unconfirmed",
            "store-damaged",
            "stopping",
            "invalid-request",
            "body-too-large",
            "body-incomplete",
            "tenant-exists",
            "host-taken",
        ],
        operation: Operation::CreateTenant,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants",
        who: Who::Token,
        does: "list the tenants that the token may see",
        max_body: 0,
        success: 200,
        problems: &["store-unavailable", "store-damaged", "stopping"],
        operation: Operation::ListTenants,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}",
        who: Who::Tenant,
        does: "see a tenant: its grant, active revision and upstreams",
        max_body: 0,
        success: 200,
        problems: of_a_tenant![],
        operation: Operation::ShowTenant,
    },
    RouteRow {
        method: Method::DELETE,
        path: "/v1/tenants/{tenant}",
        who: Who::Operator,
        does: "delete a tenant, its queued requests drained or discarded first",
        max_body: 0,
        success: 200,
        problems: &[
            "operator-only",
            "unknown-tenant",
            "store-unavailable",
            "store-damaged",
            "stopping",
            "queue-unavailable",
            "invalid-request",
            "backlog",
        ],
        operation: Operation::DeleteTenant,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/modules",
        who: Who::Tenant,
        does: "upload, check and compile a module",
        // The largest that any limit class can allow; before it is read, the tenant's own is asked for.
        max_body: 64 * MIB,
        success: 200,
        problems: of_a_tenant![
            "store-unconfirmed",
            "body-too-large",
            "body-incomplete",
            "module-rejected",
            "module-quota",
            "compiler-unavailable",
            "being-deleted"
        ],
        operation: Operation::PushModule,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/modules",
        who: Who::Tenant,
        does: "list the tenant's modules, oldest first",
        max_body: 0,
        success: 200,
        problems: of_a_tenant![],
        operation: Operation::ListModules,
    },
    RouteRow {
        method: Method::PUT,
        path: "/v1/tenants/{tenant}/manifest",
        who: Who::Tenant,
        does: "make a manifest the active revision",
        max_body: MIB,
        success: 200,
        problems: of_a_tenant![
            "store-unconfirmed",
            "invalid-request",
            "invalid-manifest",
            "body-too-large",
            "body-incomplete",
            "outside-grant",
            "module-path",
            "unknown-module",
            "module-unloadable",
            "nothing-to-keep",
            "secret-not-set",
            "secret-unavailable",
            "no-seal-key",
            "backlog",
            "queue-unavailable",
            "being-deleted",
            "changed-meanwhile"
        ],
        operation: Operation::Apply,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/manifest",
        who: Who::Tenant,
        does: "see the active revision with its manifest",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["no-revision", "revision-unreadable"],
        operation: Operation::ShowManifest,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/revisions",
        who: Who::Tenant,
        does: "list the tenant's revisions, newest first",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["invalid-request"],
        operation: Operation::ListRevisions,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/revisions/{revision}",
        who: Who::Tenant,
        does: "see one revision with its manifest",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["unknown-revision", "revision-unreadable"],
        operation: Operation::ShowRevision,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/rollback",
        who: Who::Tenant,
        does: "make an earlier revision the active one",
        max_body: 4 * KIB,
        success: 200,
        problems: of_a_tenant![
            "store-unconfirmed",
            "invalid-request",
            "body-too-large",
            "body-incomplete",
            "unknown-revision",
            "no-revision",
            "no-previous-revision",
            "revision-unreadable",
            "outside-grant",
            "unknown-module",
            "module-unloadable",
            "nothing-to-keep",
            "secret-not-set",
            "secret-unavailable",
            "no-seal-key",
            "backlog",
            "queue-unavailable",
            "being-deleted",
            "changed-meanwhile"
        ],
        operation: Operation::Rollback,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/secrets",
        who: Who::Tenant,
        does: "list the tenant's secrets without their values",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["revision-unreadable"],
        operation: Operation::ListSecrets,
    },
    RouteRow {
        method: Method::PUT,
        path: "/v1/tenants/{tenant}/secrets/{secret}",
        who: Who::Tenant,
        does: "set a secret",
        max_body: 16 * KIB,
        success: 200,
        problems: of_a_tenant![
            "unknown-secret",
            "body-too-large",
            "body-incomplete",
            "invalid-secret",
            "secret-quota",
            "no-seal-key",
            "being-deleted"
        ],
        operation: Operation::SetSecret,
    },
    RouteRow {
        method: Method::DELETE,
        path: "/v1/tenants/{tenant}/secrets/{secret}",
        who: Who::Tenant,
        does: "remove a secret that the active revision does not name",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["unknown-secret", "secret-in-use", "revision-unreadable", "being-deleted"],
        operation: Operation::RemoveSecret,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/queue",
        who: Who::Token,
        does: "see what waits and what is dead for each upstream that the token may see",
        max_body: 0,
        success: 200,
        problems: &["queue-unavailable"],
        operation: Operation::Lanes,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/queue/records",
        who: Who::Tenant,
        does: "list the tenant's queued records, oldest first",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["queue-unavailable", "invalid-request"],
        operation: Operation::ListRecords,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/queue/export",
        who: Who::Tenant,
        does: "read the tenant's queued records without their secrets, oldest first",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["queue-unavailable", "invalid-request"],
        operation: Operation::ExportRecords,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/queue/bodies",
        who: Who::Tenant,
        does: "read the tenant's queued records with their bodies, oldest first, as JSON Lines; audited",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["exports-taken", "queue-unavailable", "invalid-request"],
        operation: Operation::ExportBodies,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/tenants/{tenant}/queue/records/{record}",
        who: Who::Tenant,
        does: "see one queued record without its secrets",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["queue-unavailable", "unknown-record"],
        operation: Operation::ShowRecord,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/queue/records/{record}/retry",
        who: Who::Tenant,
        does: "queue a dead letter again",
        max_body: 4 * KIB,
        success: 200,
        problems: of_a_tenant![
            "queue-unavailable",
            "invalid-request",
            "body-too-large",
            "body-incomplete",
            "unknown-record",
            "record-state",
            "may-repeat"
        ],
        operation: Operation::RetryRecord,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/queue/records/{record}/discard",
        who: Who::Tenant,
        does: "give a record up and erase its content",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["queue-unavailable", "unknown-record", "record-state"],
        operation: Operation::DiscardRecord,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/queue/upstreams/{upstream}/purge",
        who: Who::Tenant,
        does: "give up all records of an upstream",
        max_body: 4 * KIB,
        success: 200,
        problems: of_a_tenant![
            "queue-unavailable",
            "invalid-request",
            "body-too-large",
            "body-incomplete",
            "unknown-upstream"
        ],
        operation: Operation::PurgeUpstream,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/queue/upstreams/{upstream}/pause",
        who: Who::Tenant,
        does: "pause deliveries to an upstream",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["queue-unavailable", "unknown-upstream"],
        operation: Operation::PauseUpstream,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/queue/upstreams/{upstream}/resume",
        who: Who::Tenant,
        does: "resume deliveries to an upstream",
        max_body: 0,
        success: 200,
        problems: of_a_tenant!["queue-unavailable", "unknown-upstream"],
        operation: Operation::ResumeUpstream,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/queue/upstreams/{upstream}/resume-key",
        who: Who::Tenant,
        does: "let an ordering key go on that a dead record paused",
        max_body: 4 * KIB,
        success: 200,
        problems: of_a_tenant![
            "queue-unavailable",
            "invalid-request",
            "body-too-large",
            "body-incomplete",
            "unknown-upstream"
        ],
        operation: Operation::ResumeKey,
    },
    RouteRow {
        method: Method::POST,
        path: "/v1/tenants/{tenant}/queue/upstreams/{upstream}/rate",
        who: Who::Tenant,
        does: "bound the deliveries to an upstream that begin in a second",
        max_body: 4 * KIB,
        success: 200,
        problems: of_a_tenant![
            "queue-unavailable",
            "invalid-request",
            "body-too-large",
            "body-incomplete",
            "unknown-upstream"
        ],
        operation: Operation::RateUpstream,
    },
    RouteRow {
        method: Method::GET,
        path: "/v1/audit",
        who: Who::Token,
        does: "read what was done by whom, oldest first",
        max_body: 0,
        success: 200,
        problems: &[
            "other-tenant",
            "store-unavailable",
            "store-damaged",
            "stopping",
            "queue-unavailable",
            "invalid-request",
        ],
        operation: Operation::Audit,
    },
];

/// The handler of a row, for its method.
pub(crate) fn endpoint(row: &RouteRow) -> MethodRouter<AdminState> {
    let method = MethodFilter::try_from(row.method.clone())
        .expect("the table has only methods that a router can match");
    match row.operation {
        Operation::Ready => on(method, node::ready),
        Operation::Live => on(method, node::live),
        Operation::Metrics => on(method, metrics::metrics),
        Operation::Status => on(method, node::status),
        Operation::CreateTenant => on(method, tenants::create),
        Operation::ListTenants => on(method, tenants::list),
        Operation::ShowTenant => on(method, tenants::show),
        Operation::DeleteTenant => on(method, tenants::delete),
        Operation::PushModule => on(method, modules::push),
        Operation::ListModules => on(method, modules::list),
        Operation::Apply => on(method, manifests::apply),
        Operation::ShowManifest => on(method, manifests::active),
        Operation::ListRevisions => on(method, manifests::revisions),
        Operation::ShowRevision => on(method, manifests::revision),
        Operation::Rollback => on(method, manifests::rollback),
        Operation::ListSecrets => on(method, secrets::list),
        Operation::SetSecret => on(method, secrets::set),
        Operation::RemoveSecret => on(method, secrets::remove),
        Operation::Lanes => on(method, queue::lanes),
        Operation::ListRecords => on(method, queue::records),
        Operation::ExportRecords => on(method, queue::export),
        Operation::ExportBodies => on(method, bodies::export),
        Operation::ShowRecord => on(method, queue::record),
        Operation::RetryRecord => on(method, queue::retry),
        Operation::DiscardRecord => on(method, queue::discard),
        Operation::PurgeUpstream => on(method, queue::purge),
        Operation::PauseUpstream => on(method, queue::pause),
        Operation::ResumeUpstream => on(method, queue::resume),
        Operation::ResumeKey => on(method, queue::resume_key),
        Operation::RateUpstream => on(method, queue::rate),
        Operation::Audit => on(method, audit::list),
    }
}
