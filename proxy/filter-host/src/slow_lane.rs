//! Where calls go that outlived their first slice, wait for a time, are to do what takes long, or whose tenant owes for slices: niced threads that serve tenants by deficit round robin.
//!
//! A data worker polls a call once. If the call is still running when its slice is over, its future moves here,
//! and the worker goes on with other requests; the verdict comes back through a channel. Two tenants with long
//! calls share a lane thread evenly, however many calls each has. A call whose client went away is dropped at its
//! next slice, or at once where it waits.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Instant,
};

use beamline_model::TenantName;
use tokio::sync::oneshot;

use crate::{
    admission::Seat,
    alarm,
    call::{Finished, SLICE, begin_lane_slice, end_lane_slice, this_is_the_lane},
    ticker::Ticker,
};

/// How much lower than the data workers' the lane's priority is.
const NICENESS: i32 = 10;

pub(crate) type Call = Pin<Box<dyn Future<Output = Finished> + Send>>;

/// Polls a call on whichever thread: none where a host function of it panicked, which ends this call alone and not what else
/// the thread runs.
pub(crate) fn poll_call(call: &mut Call, cx: &mut Context<'_>) -> Poll<Option<Finished>> {
    let poll = std::panic::AssertUnwindSafe(|| call.as_mut().poll(cx));
    match std::panic::catch_unwind(poll) {
        Ok(polled) => polled.map(Some),
        Err(_) => Poll::Ready(None),
    }
}

pub(crate) struct SlowLane {
    shared: Arc<Shared>,
}

struct Shared {
    // A mutex: contended only by calls that cost a slice or more, or whose tenant owes for some.
    queue: Mutex<RunQueue>,
    runnable: Condvar,
    ticker: Ticker,
}

#[derive(Default)]
struct RunQueue {
    tenants: HashMap<TenantName, Share>,
    /// Tenants with something to run, in turn.
    turn: VecDeque<TenantName>,
    closed: bool,
}

#[derive(Default)]
struct Share {
    runnable: VecDeque<Arc<Entry>>,
    live: usize,
    /// Nanoseconds that the tenant may still run before its turn ends; negative after a slice that ran over.
    deficit: i64,
    queued: bool,
}

struct Entry {
    tenant: TenantName,
    lane: Weak<Shared>,
    // Its own mutex, so that a wake never waits for another call's poll.
    place: Mutex<Place>,
}

/// Where a call is: waiting in `task`, or away being polled.
#[derive(Default)]
struct Place {
    task: Option<Task>,
    /// In the run queue.
    queued: bool,
    /// Woken while it was being polled.
    woken: bool,
}

struct Task {
    call: Call,
    done: oneshot::Sender<Finished>,
    /// Dropped before the verdict is told: whoever hears it may begin the next call.
    seat: Seat,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wake for Entry {
    fn wake(self: Arc<Self>) {
        let mut place = locked(&self.place);
        if place.task.is_none() {
            place.woken = true;
        } else if !std::mem::replace(&mut place.queued, true)
            && let Some(lane) = self.lane.upgrade()
        {
            drop(place);
            lane.push(self);
        }
    }
}

impl Entry {
    /// Takes the call out to poll it.
    fn lift(&self) -> Option<Task> {
        let mut place = locked(&self.place);
        (place.queued, place.woken) = (false, false);
        place.task.take()
    }

    /// Puts a pending call back; whether it is to be queued again at once.
    fn put_back(&self, task: Task) -> bool {
        let mut place = locked(&self.place);
        place.task = Some(task);
        place.queued = place.woken;
        place.woken
    }
}

impl RunQueue {
    fn push(&mut self, entry: Arc<Entry>) {
        let share = self.tenants.entry(entry.tenant.clone()).or_default();
        if !std::mem::replace(&mut share.queued, true) {
            self.turn.push_back(entry.tenant.clone());
        }
        share.runnable.push_back(entry);
    }

    /// The next call to poll. A tenant in debt pays with its turn.
    fn pop(&mut self) -> Option<Arc<Entry>> {
        const QUANTUM: i64 = SLICE.as_nanos() as i64;
        loop {
            let tenant = self.turn.pop_front()?;
            let Some(share) = self.tenants.get_mut(&tenant) else { continue };
            if share.deficit <= 0 {
                share.deficit += QUANTUM;
                self.turn.push_back(tenant);
                continue;
            }
            let entry = share.runnable.pop_front();
            if share.runnable.is_empty() {
                share.queued = false;
            } else {
                // To the front: the tenant goes on until its deficit is used up.
                self.turn.push_front(tenant);
            }
            if let Some(entry) = entry {
                return Some(entry);
            }
        }
    }

    fn charge(&mut self, tenant: &TenantName, nanos: i64, ended: bool) {
        let Some(share) = self.tenants.get_mut(tenant) else { return };
        share.deficit -= nanos;
        if share.deficit <= 0 && self.turn.front() == Some(tenant) {
            self.turn.rotate_left(1);
        }
        if ended {
            share.live -= 1;
            if share.live == 0 {
                self.tenants.remove(tenant);
                self.turn.retain(|t| t != tenant);
            }
        }
    }
}

impl Shared {
    fn push(&self, entry: Arc<Entry>) {
        locked(&self.queue).push(entry);
        self.runnable.notify_one();
    }

    fn next(&self) -> Option<Arc<Entry>> {
        loop {
            let next_alarm = alarm::ring();
            let mut queue = locked(&self.queue);
            if queue.closed {
                return None;
            }
            if let Some(entry) = queue.pop() {
                return Some(entry);
            }
            // Whatever ends the wait, the loop looks again for what there is to do.
            match next_alarm {
                None => drop(self.runnable.wait(queue)),
                Some(at) => {
                    let pause = at.saturating_duration_since(Instant::now());
                    drop(self.runnable.wait_timeout(queue, pause));
                }
            }
        }
    }

    fn run(&self) {
        while let Some(entry) = self.next() {
            let Some(mut task) = entry.lift() else { continue };
            self.ticker.keep();
            let start = begin_lane_slice();
            let waker = Waker::from(Arc::clone(&entry));
            let mut cx = Context::from_waker(&waker);
            // Wakes a call that waits when nobody waits for it any more.
            let polled = match task.done.poll_closed(&mut cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => poll_call(&mut task.call, &mut cx),
            };
            let nanos = i64::try_from(end_lane_slice(start).as_nanos()).unwrap_or(i64::MAX);
            locked(&self.queue).charge(&entry.tenant, nanos, polled.is_ready());
            match polled {
                Poll::Pending => {
                    if entry.put_back(task) {
                        self.push(entry);
                    }
                }
                Poll::Ready(finished) => {
                    drop(task.seat);
                    if let Some(finished) = finished {
                        // Nobody waits any more where the client went away.
                        let _ = task.done.send(finished);
                    }
                }
            }
        }
    }
}

impl SlowLane {
    pub(crate) fn start(threads: usize, ticker: Ticker) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), runnable: Condvar::new(), ticker });
        for i in 0..threads.max(1) {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("slow-lane-{i}")).spawn(move || {
                // Without the right to change priorities the lane still works; the workers then share with it.
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
                this_is_the_lane();
                crate::reset::keep_nothing_on_this_thread();
                alarm::ring_on_this_thread();
                shared.run();
            })?;
        }
        Ok(Self { shared })
    }

    /// Takes a call over that has a seat. The receiver fails where the call died with its host function.
    pub(crate) fn take(&self, tenant: TenantName, call: Call, seat: Seat) -> oneshot::Receiver<Finished> {
        let shared = &self.shared;
        let (done, verdict) = oneshot::channel();
        let entry = Arc::new(Entry {
            tenant: tenant.clone(),
            lane: Arc::downgrade(shared),
            place: Mutex::new(Place { task: Some(Task { call, done, seat }), queued: true, woken: false }),
        });
        let mut queue = locked(&shared.queue);
        queue.tenants.entry(tenant).or_default().live += 1;
        queue.push(entry);
        drop(queue);
        shared.runnable.notify_one();
        verdict
    }
}

impl Drop for SlowLane {
    fn drop(&mut self) {
        locked(&self.shared.queue).closed = true;
        self.shared.runnable.notify_all();
    }
}
