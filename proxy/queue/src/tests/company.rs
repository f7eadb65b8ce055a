//! Two processes with one queue, here two queues of one process: an upgrade's two halves.

use tokio::sync::oneshot;

use super::*;

/// Opens the queue of a folder that another one has open, and lets that one look about meanwhile.
async fn beside(dir: &TempDir) -> (Queue, Delivery) {
    let settings = settings(dir.path());
    tokio::task::spawn_blocking(|| Queue::open(settings)).await.unwrap().unwrap()
}

/// A delivery under way, until it is told to stop.
struct Delivering {
    stop: oneshot::Sender<()>,
    got: tokio::task::JoinHandle<Vec<Attempt>>,
}

impl Delivering {
    fn start(delivery: Delivery, answer: impl Fn(&Attempt) -> Answer + 'static) -> Self {
        let (stop, stopped) = oneshot::channel();
        let done = async { drop(stopped.await) };
        Self { stop, got: tokio::task::spawn_local(deliver_until(delivery, answer, done)) }
    }

    async fn stop(self) -> Vec<Attempt> {
        let _ = self.stop.send(());
        self.got.await.unwrap()
    }
}

async fn until_state(queue: &Queue, accepted: &Accepted, wanted: State) {
    while state(queue, accepted).await != wanted {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const DELIVERED: State = State::Delivered { response_complete: true };

#[tokio::test]
async fn a_newcomer_accepts_beside_the_owner_and_delivers_when_it_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let scene = async {
        let (old, delivery) = open(&dir);
        assert!(old.is_alone());
        let old_delivering = Delivering::start(delivery, |_| now(ok()));
        let (new, delivery) = beside(&dir).await;
        let new_delivering = Delivering::start(delivery, |_| now(ok()));
        assert!(!old.is_alone() && !new.is_alone());

        // The owner delivers what either of them accepts.
        let theirs = accept(&new, record(&new, 1, b"").await).await;
        let ours = accept(&old, record(&old, 2, &[7; 100_000]).await).await;
        for accepted in [&theirs, &ours] {
            until_state(&old, accepted, DELIVERED).await;
        }
        assert_eq!(state(&new, &ours).await, DELIVERED, "each knows the other's receipts");

        let old_got = old_delivering.stop().await;
        old.let_go(Duration::from_secs(10)).await;
        // It still accepts for requests that it is at.
        let late = accept(&old, record(&old, 3, &[8; 100_000]).await).await;
        until_state(&new, &late, DELIVERED).await;
        old.shutdown(Duration::from_secs(10)).await;
        drop(old);
        while !new.is_alone() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let last = accept(&new, record(&new, 4, b"").await).await;
        until_state(&new, &last, DELIVERED).await;

        let new_got = new_delivering.stop().await;
        let each =
            |got: &[Attempt]| by_target(got).into_iter().map(|(t, n)| (t.to_owned(), n)).collect::<Vec<_>>();
        let mut all = [each(&old_got), each(&new_got)].concat();
        all.sort();
        assert_eq!(all, [("/1", 1), ("/2", 1), ("/3", 1), ("/4", 1)].map(|(t, n)| (t.to_owned(), n)));
        assert_eq!(old_got.len(), 2);
        assert_eq!(body_files(&dir), 0);
        assert_eq!(new.totals().open, 0);
    };
    tokio::task::LocalSet::new().run_until(scene).await;
}

#[tokio::test]
async fn in_company_a_request_with_an_ordering_key_goes_past_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let scene = async {
        let (old, delivery) = open(&dir);
        let backlog = |queue: &Queue| queue.backlog(&tenant(), &upstream(), "k");
        assert_eq!(backlog(&old), Backlog::Empty);
        let delivering = Delivering::start(delivery, |_| now(ok()));
        let (new, waiting) = beside(&dir).await;
        assert_eq!([backlog(&old), backlog(&new)], [Backlog::Possible; 2], "the other one may know more");
        drop(waiting);
        new.shutdown(Duration::from_secs(10)).await;
        drop(new);
        while backlog(&old) != Backlog::Empty {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        delivering.stop().await;
    };
    tokio::task::LocalSet::new().run_until(scene).await;
}

#[tokio::test]
async fn what_the_owner_was_delivering_when_it_died_is_recovered_by_its_successor_alone() {
    for (repeat_safe, end) in [(true, DELIVERED), (false, State::Dead { reason: DeadReason::Indeterminate })]
    {
        let dir = tempfile::tempdir().unwrap();
        let scene = async {
            let (old, delivery) = open(&dir);
            let accepted = accept(&old, NewRecord { repeat_safe, ..record(&old, 1, b"").await }).await;
            let delivering = Delivering::start(delivery, |_| Box::pin(std::future::pending()));
            let (new, delivery) = beside(&dir).await;
            let successor = Delivering::start(delivery, |_| now(ok()));
            until_state(&new, &accepted, State::Delivering).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(
                state(&new, &accepted).await,
                State::Delivering,
                "who does not own it recovers nothing"
            );

            // As a process that is killed: its locks go, and nothing is put back.
            delivering.got.abort();
            let _ = delivering.got.await;
            old.shutdown(Duration::from_secs(10)).await;
            drop(old);
            until_state(&new, &accepted, end).await;
            assert_eq!(successor.stop().await.len(), usize::from(repeat_safe));
        };
        tokio::task::LocalSet::new().run_until(scene).await;
    }
}
