//! What the writer tells delivery after a commit.
//!
//! It never waits for delivery: where too many notices lie unread it drops them and leaves word, and delivery looks
//! at the log instead, which is the truth in any case.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    vec,
};

use tokio::sync::mpsc;

use crate::{
    log::Candidate,
    rate::Rate,
    record::{Lane, Seq},
    settings::bounds::NOTICES,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A record is queued that may be tried.
    Ready(Candidate),
    /// A record was not as delivery believed when it came back: the log has what it is now.
    Changed { lane: Lane, seq: Seq },
    /// A record is queued behind others of its key; it expires at this time.
    Behind { expires_ms: u64 },
    /// The lane's held records are queued again.
    Released(Lane),
    /// The lane has this rate from now on, or none.
    Rate(Lane, Option<Rate>),
    /// A page of expired records ended; when the next one expires, and whether the page was full.
    Swept { next_ms: Option<u64>, full: bool },
    /// A page of finished records was deleted; the earliest finish of what is left, and whether the page was full.
    Pruned { oldest_delivered_ms: Option<u64>, oldest_dead_ms: Option<u64>, full: bool },
    /// A page of kept answers was deleted; until when the next one is kept, and whether the page was full.
    Forgot { next_ms: Option<u64>, full: bool },
    /// A record was ended by hand at this time; its receipt is to be deleted in its time.
    Ended { at_ms: u64 },
    /// Someone thinks that the upstream may be well, or there, again.
    Nudge(Lane),
    /// The log was reopened: what delivery knows of it may be wrong.
    Rescan,
}

/// Both counters are `SeqCst`: one side sets `missed` and then looks at `unread`, the other lowers `unread` and then looks
/// at `missed`, and at least one of them must see what the other did.
struct Shared {
    unread: AtomicUsize,
    missed: AtomicBool,
}

/// Gathers notices until they are let go together: each waking of delivery costs the writer a system call.
pub(crate) struct NoticeSender {
    shared: Arc<Shared>,
    gathered: Vec<Notice>,
    // Unbounded as a channel; `unread` bounds it.
    sender: mpsc::UnboundedSender<Vec<Notice>>,
}

pub(crate) struct NoticeReceiver {
    shared: Arc<Shared>,
    receiver: mpsc::UnboundedReceiver<Vec<Notice>>,
    /// What came and is not read yet.
    come: vec::IntoIter<Notice>,
    rescan: bool,
}

pub(crate) fn notices() -> (NoticeSender, NoticeReceiver) {
    let shared = Arc::new(Shared { unread: AtomicUsize::new(0), missed: AtomicBool::new(false) });
    let (sender, receiver) = mpsc::unbounded_channel();
    let sender = NoticeSender { shared: Arc::clone(&shared), gathered: Vec::new(), sender };
    (sender, NoticeReceiver { shared, receiver, come: Vec::new().into_iter(), rescan: false })
}

impl NoticeSender {
    /// Adds a notice to those that [`NoticeSender::flush`] lets go.
    pub(crate) fn add(&mut self, notice: Notice) {
        // Answers to delivery's own questions are as few as its questions, and must not be lost. Rates are as few as hands,
        // and no look at the log would tell them.
        let kept = matches!(
            notice,
            Notice::Released(_)
                | Notice::Changed { .. }
                | Notice::Rate(..)
                | Notice::Swept { .. }
                | Notice::Pruned { .. }
                | Notice::Forgot { .. }
        );
        if kept || self.shared.unread.load(Ordering::SeqCst) < NOTICES {
            return self.push(notice);
        }
        self.shared.missed.store(true, Ordering::SeqCst);
        if self.shared.unread.load(Ordering::SeqCst) == 0 {
            self.push(Notice::Rescan);
        }
    }

    fn push(&mut self, notice: Notice) {
        self.shared.unread.fetch_add(1, Ordering::SeqCst);
        self.gathered.push(notice);
    }

    /// Lets delivery have what was gathered.
    pub(crate) fn flush(&mut self) {
        if !self.gathered.is_empty() {
            // Nobody delivers: then nobody needs to know.
            let _ = self.sender.send(std::mem::take(&mut self.gathered));
        }
    }
}

impl NoticeReceiver {
    /// The next notice; `Rescan` when some were missed and all others are read. None when the writer has ended.
    /// Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<Notice> {
        if std::mem::take(&mut self.rescan) {
            return Some(Notice::Rescan);
        }
        if self.come.len() == 0 {
            self.come = self.receiver.recv().await?.into_iter();
        }
        self.read()
    }

    /// The next notice, where one is there.
    pub(crate) fn try_recv(&mut self) -> Option<Notice> {
        if std::mem::take(&mut self.rescan) {
            return Some(Notice::Rescan);
        }
        if self.come.len() == 0 {
            self.come = self.receiver.try_recv().ok()?.into_iter();
        }
        self.read()
    }

    /// Reads one of those that came.
    fn read(&mut self) -> Option<Notice> {
        let notice = self.come.next()?;
        if self.shared.unread.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.rescan = self.shared.missed.swap(false, Ordering::SeqCst);
        }
        Some(notice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn when_too_many_lie_unread_delivery_is_told_to_rescan() {
        let (mut sender, mut receiver) = notices();
        for expires_ms in 0..NOTICES as u64 + 10 {
            sender.add(Notice::Behind { expires_ms });
            if expires_ms % 100 == 0 {
                sender.flush();
            }
        }
        sender.add(Notice::Swept { next_ms: None, full: false });
        sender.flush();
        for expires_ms in 0..NOTICES as u64 {
            let next = if expires_ms % 2 == 0 { receiver.recv().await } else { receiver.try_recv() };
            assert_eq!(next, Some(Notice::Behind { expires_ms }));
        }
        assert_eq!(receiver.recv().await, Some(Notice::Swept { next_ms: None, full: false }));
        assert_eq!(receiver.try_recv(), Some(Notice::Rescan));
        assert_eq!(receiver.try_recv(), None);
        sender.add(Notice::Behind { expires_ms: 1 });
        assert_eq!(receiver.try_recv(), None, "it is gathered");
        sender.flush();
        assert_eq!(receiver.recv().await, Some(Notice::Behind { expires_ms: 1 }));
        drop(sender);
        assert_eq!(receiver.recv().await, None);
    }
}
