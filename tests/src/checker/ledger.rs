//! What clients tell of their requests.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// A request as its client means it.
#[derive(Clone, Debug)]
pub struct Intent {
    /// What tells it from all others, wherever it turns up.
    pub id: String,
    /// The method.
    pub method: String,
    /// The whole body.
    pub body: Vec<u8>,
    /// Requests of one key are begun one after the other.
    pub ordering_key: Option<String>,
    /// Whether the origin takes it twice as once.
    pub repeat_safe: bool,
    /// What the origin answers it whenever it answers.
    pub origin_answers: u16,
}

/// How a request ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It hasn't yet.
    Open,
    /// No connection was to be had: not a byte left.
    NeverLeft,
    /// With a response head.
    Answered(u16),
    /// Without one.
    Unanswered,
    /// With the word that nobody knows whether it was stored.
    Unconfirmed,
}

/// A request and what became of it for its client.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// What was meant.
    pub intent: Intent,
    /// Whether its last byte was handed to the kernel.
    pub sent_whole: bool,
    /// How it ended.
    pub end: End,
    /// The crash under which it was open, counted from 1.
    pub crash: Option<u32>,
    /// Whether it was open while the disk failed.
    pub disk_failed: bool,
    /// When its `202` was seen: its record was there by then.
    pub acknowledged: Option<Instant>,
    /// Where its receipt is, after a `202`.
    pub receipt: Option<String>,
    /// How the same request was answered that its client sent once more, under its key, after a `202`: the status, and
    /// where its receipt is.
    pub again: Option<(u16, Option<String>)>,
    /// What an answer that is an error says.
    pub error: Option<String>,
}

/// Every request of a run, in the order in which clients began them.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    exchanges: Vec<Exchange>,
    by_id: HashMap<String, usize>,
    /// Of those that are open.
    open: Vec<usize>,
    crashes: u32,
    crashing: bool,
    disk_fails: bool,
}

impl Book {
    fn entry(&mut self, id: &str) -> &mut Exchange {
        let at = *self.by_id.get(id).expect("a client tells that it begins before anything else");
        &mut self.exchanges[at]
    }

    fn end(&mut self, id: &str, end: End) {
        let at = self.by_id[id];
        self.open.retain(|open| *open != at);
        self.exchanges[at].end = end;
    }
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was answered that nobody knows whether it was stored.
    pub fn unconfirmed(&self, id: &str) {
        self.book().end(id, End::Unconfirmed);
    }

    /// What an answer that is an error says, for people.
    pub fn explains(&self, id: &str, error: &str) {
        self.book().entry(id).error = Some(error.into());
    }

    /// How many requests were begun.
    pub fn begun(&self) -> u64 {
        self.book().exchanges.len() as u64
    }

    /// A client is about to send this.
    ///
    /// # Panics
    /// Where another request has this id.
    pub fn begins(&self, intent: Intent) {
        let mut book = self.book();
        let at = book.exchanges.len();
        let doubled = book.by_id.insert(intent.id.clone(), at);
        assert!(doubled.is_none(), "two requests have the id {}", intent.id);
        let crash = book.crashing.then_some(book.crashes);
        let disk_failed = book.disk_fails;
        book.exchanges.push(Exchange {
            intent,
            sent_whole: false,
            end: End::Open,
            crash,
            disk_failed,
            acknowledged: None,
            receipt: None,
            again: None,
            error: None,
        });
        book.open.push(at);
    }

    /// The kernel took its last byte. Until a client tells so, the request counts as cut off.
    pub fn sent_whole(&self, id: &str) {
        self.book().entry(id).sent_whole = true;
    }

    /// No connection was to be had.
    pub fn never_left(&self, id: &str) {
        self.book().end(id, End::NeverLeft);
    }

    /// A response head came; `location` is its field.
    pub fn answered(&self, id: &str, status: u16, location: Option<&str>) {
        let mut book = self.book();
        book.end(id, End::Answered(status));
        if status == 202 {
            let entry = book.entry(id);
            entry.acknowledged = Some(Instant::now());
            entry.receipt = location.map(str::to_owned);
        }
    }

    /// A request that was answered `202` was sent again under its key, and answered again.
    pub fn answered_again(&self, id: &str, status: u16, location: Option<&str>) {
        self.book().entry(id).again = Some((status, location.map(str::to_owned)));
    }

    /// The connection ended without a response head, or its client gave up.
    pub fn unanswered(&self, id: &str) {
        self.book().end(id, End::Unanswered);
    }

    /// The node is about to be killed. From here to [`crash_ends`](Self::crash_ends) whatever is open is in flight at
    /// this crash.
    pub fn crash_begins(&self) {
        let book = &mut *self.book();
        book.crashes += 1;
        book.crashing = true;
        for at in &book.open {
            book.exchanges[*at].crash = Some(book.crashes);
        }
    }

    /// The node is gone.
    pub fn crash_ends(&self) {
        self.book().crashing = false;
    }

    /// The disk is about to fail. From here to [`disk_works`](Self::disk_works) whatever is open may end without anybody
    /// knowing whether it was stored.
    pub fn disk_fails(&self) {
        let book = &mut *self.book();
        book.disk_fails = true;
        for at in &book.open {
            book.exchanges[*at].disk_failed = true;
        }
    }

    /// The disk works again.
    pub fn disk_works(&self) {
        self.book().disk_fails = false;
    }

    /// How often it crashed.
    pub fn crashes(&self) -> u32 {
        self.book().crashes
    }

    /// Everything so far.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.book().exchanges.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(id: &str) -> Intent {
        Intent {
            id: id.into(),
            method: "POST".into(),
            body: vec![],
            ordering_key: None,
            repeat_safe: false,
            origin_answers: 200,
        }
    }

    #[test]
    fn what_is_open_at_any_moment_of_a_crash_was_in_flight_at_it() {
        let ledger = Ledger::default();
        for id in ["before", "ended", "open"] {
            ledger.begins(intent(id));
        }
        ledger.answered("ended", 202, Some("/receipt"));
        ledger.crash_begins();
        ledger.unanswered("open");
        ledger.begins(intent("during"));
        ledger.crash_ends();
        ledger.begins(intent("after"));
        let crashes: Vec<_> = ledger.exchanges().iter().map(|e| e.crash).collect();
        assert_eq!(crashes, [Some(1), None, Some(1), Some(1), None]);
        assert_eq!(ledger.exchanges()[1].receipt.as_deref(), Some("/receipt"));
    }

    #[test]
    fn what_is_open_while_the_disk_fails_is_known() {
        let ledger = Ledger::default();
        for id in ["ended", "open"] {
            ledger.begins(intent(id));
        }
        ledger.answered("ended", 200, None);
        ledger.disk_fails();
        ledger.begins(intent("during"));
        ledger.disk_works();
        ledger.begins(intent("after"));
        let failed: Vec<_> = ledger.exchanges().iter().map(|e| e.disk_failed).collect();
        assert_eq!(failed, [false, true, true, false]);
    }
}
