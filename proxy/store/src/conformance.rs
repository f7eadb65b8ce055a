//! What every [`Store`] must do, as claims that an implementation's tests run with [`run`].
//!
//! Each claim gets a place of its own. Where a claim is about durability it drops the store and opens the place
//! again: what survives a kill of the process is tested where the process is, in the end-to-end suites.

#![expect(clippy::unwrap_used, reason = "tests, though not under cfg(test) alone")]

use std::sync::Arc;

use beamline_model::{
    Digest, Grant, HostName, RevisionId, SecretName, TenantName, Token, TokenHash, TokenScope,
};

use crate::{
    Deletion, KvBatch, KvRecord, KvRow, ModuleRecord, RevisionSummary, SecretRecord, Stamp, Store,
    StoreError, TenantRecord,
};

/// Somewhere a store can be opened, dropped and opened again.
pub trait Place {
    /// Opens the store that is there, or makes an empty one.
    fn open(&self) -> Arc<dyn Store>;
}

/// One claim of the suite.
type Claim = (&'static str, fn(&dyn Place));

/// Every claim, in the order in which [`run`] takes them.
const CLAIMS: [Claim; 19] = [
    ("an_empty_store_holds_nothing", an_empty_store_holds_nothing),
    ("the_first_operator_token_is_added_once", the_first_operator_token_is_added_once),
    ("a_tenant_reads_back_as_it_was_created", a_tenant_reads_back_as_it_was_created),
    ("a_name_has_one_tenant", a_name_has_one_tenant),
    ("a_host_has_one_tenant", a_host_has_one_tenant),
    ("a_refused_change_leaves_nothing_behind", a_refused_change_leaves_nothing_behind),
    ("a_module_is_kept_once_and_known_to_its_tenants", a_module_is_kept_once_and_known_to_its_tenants),
    ("revisions_count_from_one_without_gaps", revisions_count_from_one_without_gaps),
    ("an_activation_remembers_what_it_replaced", an_activation_remembers_what_it_replaced),
    ("nobody_writes_over_a_change_unseen", nobody_writes_over_a_change_unseen),
    ("one_of_many_racing_changes_wins", one_of_many_racing_changes_wins),
    ("a_secret_is_its_tenants_and_reads_back_sealed", a_secret_is_its_tenants_and_reads_back_sealed),
    ("a_secret_is_sealed_anew_only_as_it_was", a_secret_is_sealed_anew_only_as_it_was),
    ("what_filters_store_is_their_tenants_and_the_last_of_it_counts", kv_is_the_tenants_and_the_last_counts),
    ("what_filters_store_goes_with_their_tenant", kv_goes_with_the_tenant),
    ("a_deletion_is_begun_before_it_is_done", a_deletion_is_begun_before_it_is_done),
    (
        "a_deleted_tenant_leaves_its_audit_and_nothing_else",
        a_deleted_tenant_leaves_its_audit_and_nothing_else,
    ),
    ("the_audit_has_every_change_in_order", the_audit_has_every_change_in_order),
    ("everything_is_there_after_a_restart", everything_is_there_after_a_restart),
];

/// Runs every claim, each in a fresh place from `place`.
///
/// # Panics
/// Where a claim does not hold; the claim's name is printed first.
pub fn run<P: Place>(place: impl Fn() -> P) {
    for (name, claim) in CLAIMS {
        eprintln!("store conformance: {name}");
        claim(&place());
    }
}

fn stamp(at_ms: u64) -> Stamp<'static> {
    Stamp { at_ms, actor: "operator" }
}

fn name(text: &str) -> TenantName {
    text.parse().expect("the suite's names are valid")
}

fn grant(hosts: &[&str]) -> Grant {
    Grant {
        hosts: hosts.iter().map(|h| h.parse::<HostName>().expect("the suite's hosts are valid")).collect(),
        upstream_ranges: vec!["127.0.0.1:9001-9002".parse().expect("the suite's ranges are valid")],
        ..Grant::default()
    }
}

fn token(text: &str) -> TokenHash {
    Token::presented(text).hash()
}

fn secret(text: &str) -> SecretName {
    text.parse().expect("the suite's names are valid")
}

fn create(store: &dyn Store, tenant: &str, hosts: &[&str]) -> TenantName {
    let tenant = name(tenant);
    store
        .create_tenant(&tenant, &grant(hosts), &token(tenant.as_str()), stamp(1))
        .expect("nothing stands against the tenant");
    tenant
}

fn commit(store: &dyn Store, tenant: &TenantName, replaces: Option<u64>, manifest: &str) -> u64 {
    store
        .commit_revision(tenant, replaces.map(RevisionId), manifest, stamp(5))
        .expect("nothing stands against the revision")
        .revision
        .0
}

fn record(store: &dyn Store, tenant: &TenantName) -> TenantRecord {
    store.tenant(tenant).expect("the store answers").expect("the tenant is there")
}

fn an_empty_store_holds_nothing(place: &dyn Place) {
    let store = place.open();
    let nobody = name("nobody");
    assert!(store.tokens().unwrap().is_empty());
    assert!(store.tenants().unwrap().is_empty());
    assert_eq!(store.tenant(&nobody).unwrap(), None);
    assert!(store.modules(&nobody).unwrap().is_empty());
    assert_eq!(store.module(&nobody, &Digest::of(b"m")).unwrap(), None);
    assert_eq!(store.module_bytes(&Digest::of(b"m")).unwrap(), None);
    assert_eq!(store.revision(&nobody, RevisionId(1)).unwrap(), None);
    assert!(store.revisions(&nobody, None, 10).unwrap().is_empty());
    assert!(store.secrets(&nobody).unwrap().is_empty());
    assert!(store.kv(&nobody).unwrap().is_empty());
    assert!(store.audit(None, 0, 10).unwrap().is_empty());
}

fn the_first_operator_token_is_added_once(place: &dyn Place) {
    let store = place.open();
    create(&*store, "acme", &[]);
    assert!(
        store.add_first_operator_token(&token("first"), stamp(1)).unwrap(),
        "a tenant's token is no operator's"
    );
    assert!(!store.add_first_operator_token(&token("second"), stamp(2)).unwrap());
    let mut scopes: Vec<_> = store.tokens().unwrap();
    scopes.sort_by_key(|(_, scope)| *scope != TokenScope::Operator);
    assert_eq!(
        scopes,
        [(token("first"), TokenScope::Operator), (token("acme"), TokenScope::Tenant(name("acme")))]
    );
}

fn a_tenant_reads_back_as_it_was_created(place: &dyn Place) {
    let store = place.open();
    let (zeta, acme) =
        (create(&*store, "zeta", &["zeta.test"]), create(&*store, "acme", &["a.test", "a.test"]));
    let expected = TenantRecord {
        name: acme.clone(),
        grant: grant(&["a.test", "a.test"]),
        created_ms: 1,
        active: None,
        previous: None,
        deletion: None,
    };
    assert_eq!(record(&*store, &acme), expected);
    let names: Vec<_> = store.tenants().unwrap().into_iter().map(|t| t.name).collect();
    assert_eq!(names, [acme, zeta], "by name");
}

fn a_name_has_one_tenant(place: &dyn Place) {
    let store = place.open();
    let acme = create(&*store, "acme", &["acme.test"]);
    let again = store.create_tenant(&acme, &grant(&["other.test"]), &token("other"), stamp(2));
    assert!(matches!(again, Err(StoreError::NameTaken(n)) if n == acme));
    assert_eq!(record(&*store, &acme).grant, grant(&["acme.test"]));
}

fn a_host_has_one_tenant(place: &dyn Place) {
    let store = place.open();
    let acme = create(&*store, "acme", &["acme.test", "shared.test"]);
    let other = store.create_tenant(
        &name("other"),
        &grant(&["other.test", "shared.test"]),
        &token("other"),
        stamp(2),
    );
    let Err(StoreError::HostTaken { host, tenant }) = other else { panic!("expected HostTaken: {other:?}") };
    assert_eq!((host.as_str(), tenant), ("shared.test", acme));
}

fn a_refused_change_leaves_nothing_behind(place: &dyn Place) {
    let store = place.open();
    create(&*store, "acme", &["acme.test"]);
    let before = store.audit(None, 0, 100).unwrap();
    let refused =
        store.create_tenant(&name("other"), &grant(&["other.test", "acme.test"]), &token("other"), stamp(2));
    assert!(refused.is_err());
    assert_eq!(store.tenant(&name("other")).unwrap(), None);
    assert_eq!(store.tokens().unwrap().len(), 1);
    assert_eq!(store.audit(None, 0, 100).unwrap(), before);
    create(&*store, "third", &["other.test"]); // the refused tenant's first host is free

    let nobody = name("nobody");
    let digest = Digest::of(b"m");
    let unknown = |error| matches!(error, StoreError::UnknownTenant(t) if t == nobody);
    assert!(unknown(store.put_module(&nobody, &digest, b"m", "{}", stamp(1)).unwrap_err()));
    assert_eq!(store.module_bytes(&digest).unwrap(), None);
    assert!(unknown(store.commit_revision(&nobody, None, "{}", stamp(1)).unwrap_err()));
    assert!(unknown(store.activate_revision(&nobody, None, RevisionId(1), stamp(1)).unwrap_err()));
    assert!(unknown(store.begin_deletion(&nobody, Deletion::Drain, stamp(1)).unwrap_err()));
    assert!(unknown(store.delete_tenant(&nobody, stamp(1)).unwrap_err()));
    assert!(unknown(store.set_secret(&nobody, &secret("a"), b"sealed", stamp(1)).unwrap_err()));
    assert!(unknown(store.remove_secret(&nobody, &secret("a"), stamp(1)).unwrap_err()));
    assert!(store.secrets(&nobody).unwrap().is_empty());
}

fn a_module_is_kept_once_and_known_to_its_tenants(place: &dyn Place) {
    let store = place.open();
    let (acme, other) = (create(&*store, "acme", &[]), create(&*store, "other", &[]));
    let (first, second) = (Digest::of(b"first"), Digest::of(b"second"));
    assert!(store.put_module(&acme, &first, b"first", "{\"n\":1}", stamp(7)).unwrap());
    assert!(store.put_module(&acme, &second, b"second", "{}", stamp(8)).unwrap());
    assert!(!store.put_module(&acme, &first, b"first", "{\"n\":2}", stamp(9)).unwrap(), "known already");

    let expected = ModuleRecord { digest: first, size: 5, info: "{\"n\":1}".to_owned(), pushed_ms: 7 };
    assert_eq!(store.module(&acme, &first).unwrap(), Some(expected.clone()), "the first info stays");
    assert_eq!(store.module(&other, &first).unwrap(), None, "another's module is not one's own");
    let digests: Vec<_> = store.modules(&acme).unwrap().into_iter().map(|m| m.digest).collect();
    assert_eq!(digests, [first, second], "oldest first");

    assert!(store.put_module(&other, &first, b"first", "{}", stamp(10)).unwrap());
    assert_eq!(store.modules(&other).unwrap().len(), 1);
    assert_eq!(store.module_bytes(&first).unwrap().as_deref(), Some(&b"first"[..]));
    let pushes = store.audit(None, 0, 100).unwrap();
    assert_eq!(pushes.iter().filter(|row| row.action == "module.push").count(), 3);
}

fn revisions_count_from_one_without_gaps(place: &dyn Place) {
    let store = place.open();
    let (acme, other) = (create(&*store, "acme", &[]), create(&*store, "other", &[]));
    assert_eq!(commit(&*store, &acme, None, "one"), 1);
    assert_eq!(commit(&*store, &acme, Some(1), "two"), 2);
    assert!(store.commit_revision(&acme, Some(RevisionId(1)), "lost", stamp(1)).is_err());
    store.activate_revision(&acme, Some(RevisionId(2)), RevisionId(1), stamp(1)).unwrap();
    assert_eq!(commit(&*store, &acme, Some(1), "three"), 3, "after the last, not after the active one");
    assert_eq!(commit(&*store, &other, None, "one"), 1, "each tenant counts its own");

    let ids = |before, limit| {
        let page = store.revisions(&acme, before, limit).unwrap();
        page.iter().map(|r: &RevisionSummary| r.id.0).collect::<Vec<_>>()
    };
    assert_eq!(ids(None, 10), [3, 2, 1]);
    assert_eq!(ids(None, 2), [3, 2]);
    assert_eq!(ids(Some(RevisionId(2)), 10), [1]);
    assert_eq!(store.revision(&acme, RevisionId(2)).unwrap().unwrap().manifest, "two");
    assert_eq!(store.revision(&acme, RevisionId(4)).unwrap(), None);
}

fn an_activation_remembers_what_it_replaced(place: &dyn Place) {
    let store = place.open();
    let acme = create(&*store, "acme", &[]);
    let states = |store: &dyn Store| {
        let tenant = record(store, &acme);
        (tenant.active.map(|r| r.0), tenant.previous.map(|r| r.0))
    };
    commit(&*store, &acme, None, "one");
    assert_eq!(states(&*store), (Some(1), None));
    commit(&*store, &acme, Some(1), "two");
    assert_eq!(states(&*store), (Some(2), Some(1)));
    let done = store.activate_revision(&acme, Some(RevisionId(2)), RevisionId(1), stamp(1)).unwrap();
    assert_eq!((done.revision, done.replaced), (RevisionId(1), Some(RevisionId(2))));
    assert_eq!(states(&*store), (Some(1), Some(2)));
    store.activate_revision(&acme, Some(RevisionId(1)), RevisionId(1), stamp(1)).unwrap();
    assert_eq!(states(&*store), (Some(1), Some(2)), "to activate the active one changes nothing");
}

fn nobody_writes_over_a_change_unseen(place: &dyn Place) {
    let store = place.open();
    let acme = create(&*store, "acme", &[]);
    commit(&*store, &acme, None, "one");
    commit(&*store, &acme, Some(1), "two");
    let moved = |error| {
        matches!(error, StoreError::Moved { expected, found, .. }
            if expected != found && found == Some(RevisionId(2)))
    };
    assert!(moved(store.commit_revision(&acme, None, "three", stamp(1)).unwrap_err()));
    assert!(moved(store.commit_revision(&acme, Some(RevisionId(1)), "three", stamp(1)).unwrap_err()));
    assert!(moved(store.activate_revision(&acme, Some(RevisionId(1)), RevisionId(1), stamp(1)).unwrap_err()));
    let unknown = store.activate_revision(&acme, Some(RevisionId(2)), RevisionId(9), stamp(1));
    assert!(matches!(unknown, Err(StoreError::UnknownRevision { revision: RevisionId(9), .. })));
    assert_eq!(record(&*store, &acme).active, Some(RevisionId(2)));
    assert_eq!(store.revisions(&acme, None, 10).unwrap().len(), 2);
}

fn one_of_many_racing_changes_wins(place: &dyn Place) {
    let store = place.open();
    let acme = create(&*store, "acme", &[]);
    let won = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|i| {
                let (store, acme) = (&store, &acme);
                scope.spawn(move || store.commit_revision(acme, None, &format!("{i}"), stamp(1)).is_ok())
            })
            .collect();
        racers.into_iter().map(|r| r.join().expect("a racer does not panic")).filter(|w| *w).count()
    });
    assert_eq!(won, 1);
    assert_eq!(store.revisions(&acme, None, 10).unwrap().len(), 1);
}

fn a_secret_is_its_tenants_and_reads_back_sealed(place: &dyn Place) {
    let store = place.open();
    let (acme, other) = (create(&*store, "acme", &[]), create(&*store, "other", &[]));
    assert!(store.set_secret(&acme, &secret("token"), b"sealed-1", stamp(7)).unwrap(), "new");
    assert!(
        !store.set_secret(&acme, &secret("token"), b"sealed-2", stamp(8)).unwrap(),
        "in place of the first"
    );
    assert!(store.set_secret(&acme, &secret("key"), b"\0\xff", stamp(9)).unwrap());
    let record =
        |name, sealed: &[u8], set_ms| SecretRecord { name: secret(name), sealed: sealed.to_vec(), set_ms };
    let expected = [record("key", b"\0\xff", 9), record("token", b"sealed-2", 8)];
    assert_eq!(store.secrets(&acme).unwrap(), expected, "by name");
    assert!(store.secrets(&other).unwrap().is_empty(), "another's secrets are not one's own");

    let unknown = store.remove_secret(&other, &secret("token"), stamp(10));
    assert!(matches!(unknown, Err(StoreError::UnknownSecret { tenant, .. }) if tenant == other));
    store.remove_secret(&acme, &secret("token"), stamp(11)).unwrap();
    assert!(store.remove_secret(&acme, &secret("token"), stamp(12)).is_err());
    drop(store);
    let store = place.open();
    assert_eq!(store.secrets(&acme).unwrap(), expected[..1]);
    let rows = store.audit(Some(&acme), 0, 100).unwrap();
    let actions: Vec<_> = rows.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["tenant.create", "secret.set", "secret.set", "secret.set", "secret.remove"]);
    assert_eq!(rows[1].detail, serde_json::json!({ "secret": "token", "new": true }));
    assert!(!format!("{rows:?}").contains("sealed"), "the audit has names, nothing of values");
}

fn a_secret_is_sealed_anew_only_as_it_was(place: &dyn Place) {
    let store = place.open();
    let (acme, token) = (create(&*store, "acme", &[]), secret("token"));
    store.set_secret(&acme, &token, b"old", stamp(7)).unwrap();
    assert!(store.reseal_secret(&acme, &token, b"old", b"new", stamp(8)).unwrap());
    assert!(
        !store.reseal_secret(&acme, &token, b"old", b"late", stamp(9)).unwrap(),
        "it is not that any more"
    );
    assert!(!store.reseal_secret(&acme, &secret("other"), b"old", b"new", stamp(9)).unwrap());
    let expected = [SecretRecord { name: token, sealed: b"new".to_vec(), set_ms: 7 }];
    assert_eq!(store.secrets(&acme).unwrap(), expected, "when it was set stays");
    let rows = store.audit(Some(&acme), 0, 100).unwrap();
    assert_eq!(rows.iter().filter(|row| row.action == "secret.reseal").count(), 1);
}

/// What a tenant's filters store: keys with their values, and keys that are gone.
fn batch<'a>(tenant: &'a TenantName, entries: &[(&'a str, &'a str)], gone: &[&'a str]) -> KvBatch<'a> {
    let row = |(key, value): &(&'a str, &'a str)| KvRow { key, value: value.as_bytes(), expires_ms: None };
    KvBatch { tenant, all: false, entries: entries.iter().map(row).collect(), gone: gone.to_vec() }
}

fn kept(store: &dyn Store, tenant: &TenantName) -> Vec<(String, String)> {
    let text = |r: KvRecord| (r.key, String::from_utf8_lossy(&r.value).into_owned());
    store.kv(tenant).unwrap().into_iter().map(text).collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn kv_is_the_tenants_and_the_last_counts(place: &dyn Place) {
    let store = place.open();
    let (acme, other) = (create(&*store, "acme", &["a.test"]), create(&*store, "other", &["b.test"]));
    let rows = store.audit(None, 0, 10).unwrap();
    store
        .write_kv(&[
            batch(&acme, &[("a", "1"), ("b", "2"), ("", "")], &["c"]),
            batch(&other, &[("a", "o")], &[]),
        ])
        .unwrap();
    store.write_kv(&[batch(&acme, &[("a", "3")], &["b", "", "b"])]).unwrap();
    let timed = KvRow { key: "t", value: &[0, 255], expires_ms: Some(1234) };
    store.write_kv(&[KvBatch { entries: vec![timed], ..batch(&acme, &[], &[]) }]).unwrap();
    drop(store);
    let store = place.open();
    let bytes = KvRecord { key: "t".into(), value: vec![0, 255], expires_ms: Some(1234) };
    assert_eq!(store.kv(&acme).unwrap()[1], bytes);
    assert_eq!(kept(&*store, &acme)[0], ("a".into(), "3".into()));
    assert_eq!(kept(&*store, &other), pairs(&[("a", "o")]));
    let all = |entries| KvBatch { all: true, ..batch(&acme, entries, &[]) };
    store.write_kv(&[all(&[("d", "4")])]).unwrap();
    assert_eq!(kept(&*store, &acme), pairs(&[("d", "4")]), "all that there is");
    store.write_kv(&[all(&[])]).unwrap();
    assert!(store.kv(&acme).unwrap().is_empty());
    assert_eq!(kept(&*store, &other), pairs(&[("a", "o")]), "another tenant's stays");
    assert_eq!(store.audit(None, 0, 10).unwrap(), rows, "it is not in the audit");
}

fn kv_goes_with_the_tenant(place: &dyn Place) {
    let store = place.open();
    let acme = create(&*store, "acme", &["a.test"]);
    store.write_kv(&[batch(&acme, &[("a", "1")], &[])]).unwrap();
    store.begin_deletion(&acme, Deletion::Drain, stamp(2)).unwrap();
    store.delete_tenant(&acme, stamp(3)).unwrap();
    let other = create(&*store, "other", &["b.test"]);
    store.write_kv(&[batch(&acme, &[("a", "2")], &[]), batch(&other, &[("a", "1")], &[])]).unwrap();
    assert!(kept(&*store, &acme).is_empty(), "nothing is stored of one that is not there");
    assert_eq!(kept(&*store, &other), pairs(&[("a", "1")]), "which is no other tenant's harm");
    create(&*store, "acme", &["a.test"]);
    assert!(kept(&*store, &acme).is_empty(), "whoever gets the name finds nothing");
}

fn a_deletion_is_begun_before_it_is_done(place: &dyn Place) {
    let store = place.open();
    let acme = create(&*store, "acme", &["acme.test"]);
    let early = store.delete_tenant(&acme, stamp(2)).unwrap_err();
    assert!(matches!(early, StoreError::NotBeingDeleted(t) if t == acme));
    let begin = |store: &dyn Store, deletion| store.begin_deletion(&acme, deletion, stamp(3)).unwrap();
    assert_eq!(begin(&*store, Deletion::Drain), Deletion::Drain);
    assert_eq!(begin(&*store, Deletion::Drain), Deletion::Drain, "twice is once");
    assert_eq!(begin(&*store, Deletion::Discard), Deletion::Discard);
    assert_eq!(begin(&*store, Deletion::Drain), Deletion::Discard, "what is given up stays so");
    drop(store);
    let store = place.open();
    assert_eq!(record(&*store, &acme).deletion, Some(Deletion::Discard));
    let rows = store.audit(Some(&acme), 0, 100).unwrap();
    let begun: Vec<_> = rows.iter().filter(|row| row.action == "tenant.begin-deletion").collect();
    assert_eq!(begun.iter().map(|row| &row.detail["queued"]).collect::<Vec<_>>(), ["drain", "discard"]);
}

fn a_deleted_tenant_leaves_its_audit_and_nothing_else(place: &dyn Place) {
    let store = place.open();
    let (acme, other) = (create(&*store, "acme", &["acme.test"]), create(&*store, "other", &[]));
    let (own, shared) = (Digest::of(b"own"), Digest::of(b"shared"));
    store.put_module(&acme, &own, b"own", "{}", stamp(1)).unwrap();
    for tenant in [&acme, &other] {
        store.put_module(tenant, &shared, b"shared", "{}", stamp(1)).unwrap();
    }
    commit(&*store, &acme, None, "one");
    commit(&*store, &acme, Some(1), "two");
    store.set_secret(&acme, &secret("token"), b"sealed", stamp(1)).unwrap();
    let before = store.audit(Some(&acme), 0, 100).unwrap();
    store.begin_deletion(&acme, Deletion::Drain, stamp(6)).unwrap();
    store.delete_tenant(&acme, stamp(7)).unwrap();
    drop(store);

    let store = place.open();
    assert_eq!(store.tenant(&acme).unwrap(), None);
    assert_eq!(store.tokens().unwrap(), [(token("other"), TokenScope::Tenant(other.clone()))]);
    assert!(store.modules(&acme).unwrap().is_empty() && store.secrets(&acme).unwrap().is_empty());
    assert_eq!(store.module_bytes(&own).unwrap(), None, "nobody has it any more");
    assert_eq!(store.module_bytes(&shared).unwrap().as_deref(), Some(&b"shared"[..]));
    assert!(store.revisions(&acme, None, 10).unwrap().is_empty());
    let after = store.audit(Some(&acme), 0, 100).unwrap();
    assert_eq!(after[..before.len()], before);
    assert_eq!(after.last().unwrap().action, "tenant.delete");
    assert!(store.delete_tenant(&acme, stamp(8)).is_err());

    // Its name and host are free, and its numbers begin anew.
    create(&*store, "acme", &["acme.test"]);
    assert_eq!(commit(&*store, &acme, None, "one"), 1);
}

fn the_audit_has_every_change_in_order(place: &dyn Place) {
    let store = place.open();
    store.add_first_operator_token(&token("operator"), stamp(10)).unwrap();
    let (acme, other) = (create(&*store, "acme", &["acme.test"]), create(&*store, "other", &[]));
    let stamp = Stamp { at_ms: 20, actor: "tenant/acme" };
    store.put_module(&acme, &Digest::of(b"m"), b"m", "{}", stamp).unwrap();
    store.commit_revision(&acme, None, "one", stamp).unwrap();
    store.commit_revision(&acme, Some(RevisionId(1)), "two", stamp).unwrap();
    store.activate_revision(&acme, Some(RevisionId(2)), RevisionId(1), stamp).unwrap();

    let rows = store.audit(None, 0, 100).unwrap();
    let actions: Vec<_> =
        rows.iter().map(|r| (r.action.as_str(), r.tenant.as_ref().map(TenantName::as_str))).collect();
    assert_eq!(
        actions,
        [
            ("token.create", None),
            ("tenant.create", Some("acme")),
            ("tenant.create", Some("other")),
            ("module.push", Some("acme")),
            ("revision.commit", Some("acme")),
            ("revision.commit", Some("acme")),
            ("revision.activate", Some("acme")),
        ]
    );
    assert!(rows.is_sorted_by(|a, b| a.seq < b.seq));
    let last = &rows[6];
    assert_eq!((last.at_ms, last.actor.as_str()), (20, "tenant/acme"));
    assert_eq!(last.detail, serde_json::json!({ "revision": 1, "replaced": 2 }));
    assert_eq!(rows[3].detail["digest"], Digest::of(b"m").to_string());
    assert_eq!(rows[1].detail["grant"]["hosts"][0], "acme.test");

    assert_eq!(store.audit(Some(&other), 0, 100).unwrap(), rows[2..3]);
    assert_eq!(store.audit(Some(&acme), rows[3].seq, 100).unwrap(), rows[4..]);
    assert_eq!(store.audit(None, 0, 2).unwrap(), rows[..2]);
    let text = format!("{rows:?}");
    assert!(!text.contains(&token("operator").to_hex()), "not even a token's hash is in the audit");
}

fn everything_is_there_after_a_restart(place: &dyn Place) {
    let acme = name("acme");
    let all = |store: &dyn Store| {
        (
            store.tokens().unwrap(),
            store.tenants().unwrap(),
            store.modules(&acme).unwrap(),
            store.module_bytes(&Digest::of(b"m")).unwrap(),
            store.revisions(&acme, None, 10).unwrap(),
            store.secrets(&acme).unwrap(),
            store.revision(&acme, RevisionId(1)).unwrap(),
            store.audit(None, 0, 100).unwrap(),
        )
    };
    let store = place.open();
    store.add_first_operator_token(&token("operator"), stamp(1)).unwrap();
    create(&*store, "acme", &["acme.test"]);
    store.put_module(&acme, &Digest::of(b"m"), b"m", "{}", stamp(1)).unwrap();
    commit(&*store, &acme, None, "one");
    commit(&*store, &acme, Some(1), "two");
    store.set_secret(&acme, &secret("token"), b"sealed", stamp(1)).unwrap();
    let before = all(&*store);
    drop(store);

    let store = place.open();
    assert_eq!(all(&*store), before);
    let last = before.7.last().expect("the audit has rows").seq;
    commit(&*store, &acme, Some(2), "three");
    assert!(store.audit(None, last, 10).unwrap().iter().all(|row| row.seq > last));
}
