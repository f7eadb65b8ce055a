//! One thread's way to one connection: makes it, and makes another when it ends.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use beamline_model::ConnectionName;
use tokio::{sync::Notify, time};

use crate::{Change, ConnectError, Connection, ConnectionSettings, Connections, Ended, connect::connect};

/// From the loss of a connection to the first try, at most; doubled after each that fails.
const BACKOFF: Duration = Duration::from_millis(100);
/// The most that doubling leads to: an outage that ends is over for everybody within it.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Why there is no connection now.
#[derive(Clone, Debug)]
pub enum NotConnected {
    /// It could not be made.
    Connect(ConnectError),
    /// It ended, and the next one is not made yet.
    Lost {
        /// Its server.
        server: SocketAddr,
        /// Why it ended.
        why: Ended,
    },
    /// The first try is not over yet.
    Pending,
}

/// One thread's way to one connection. Cheap to clone; every clone is the same one. Dropping the last ends the
/// connection.
#[derive(Clone)]
pub struct Client(Rc<Keeper>);

struct Keeper {
    name: ConnectionName,
    settings: Arc<ConnectionSettings>,
    connections: Connections,
    state: RefCell<State>,
    /// Notified when the first try is over.
    tried: Notify,
}

enum State {
    /// Nobody has asked yet.
    Idle,
    /// The first try is under way.
    Trying,
    Up(Connection),
    /// It is tried again when the back-off ends. Who asks meanwhile is told so at once.
    Down(NotConnected),
}

impl Client {
    /// To one of `connections`, or none where it is not defined. Connects when it is first asked for.
    pub fn to(connections: &Connections, name: &ConnectionName) -> Option<Self> {
        let settings = Arc::clone(connections.get(name)?);
        Some(Self(Rc::new(Keeper {
            name: name.clone(),
            settings,
            connections: connections.clone(),
            state: RefCell::new(State::Idle),
            tried: Notify::new(),
        })))
    }

    /// The connection's bounds.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.0.settings
    }

    /// Whether the connection stands now. Makes none.
    pub fn is_connected(&self) -> bool {
        matches!(*self.0.state.borrow(), State::Up(_))
    }

    /// The connection as it stands. Only the very first try is waited for, at most so long: later, a connection that
    /// is down is down.
    ///
    /// # Errors
    /// Where there is none now.
    ///
    /// # Panics
    /// Outside a `LocalSet` or a local runtime.
    pub async fn connection(&self, wait: Duration) -> Result<Connection, NotConnected> {
        if matches!(*self.0.state.borrow(), State::Idle) {
            *self.0.state.borrow_mut() = State::Trying;
            tokio::task::spawn_local(keep(Rc::downgrade(&self.0)));
        }
        if matches!(*self.0.state.borrow(), State::Trying) {
            // Out of time, or tried: what came of it is looked at below.
            let _ = time::timeout(wait, self.0.tried.notified()).await;
        }
        match &*self.0.state.borrow() {
            State::Up(connection) => Ok(connection.clone()),
            State::Down(why) => Err(why.clone()),
            State::Idle | State::Trying => Err(NotConnected::Pending),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let State::Up(connection) = &*self.state.borrow() {
            connection.end();
        }
    }
}

/// Connects, drives the connection to its end, waits, and connects again; until nobody holds the client any more.
async fn keep(keeper: Weak<Keeper>) {
    let mut failures = 0;
    // Whether it was told that it is down: an outage is one event, however often it is tried. But for reasons that
    // nobody would come to know of otherwise, each of them once.
    let mut told = false;
    let mut told_of = Vec::new();
    loop {
        let Some((name, settings, connections)) = keeper.upgrade().map(|k| k.parts()) else { return };
        let connected = connect(&settings, random()).await;
        match connected {
            Ok(connection) => {
                let server = connection.peer();
                let Some(alive) = keeper.upgrade() else { return };
                alive.become_(State::Up(connection.clone()));
                drop(alive);
                connections.tell(&name, &Change::Connected { server, tls: connection.is_tls() });
                failures = 0;
                told_of.clear();
                let mut driving = tokio::task::spawn_local({
                    let connection = connection.clone();
                    async move { connection.drive().await }
                });
                let why = tokio::select! {
                    ended = &mut driving => ended.unwrap_or_else(|failed| {
                        connection.end();
                        Ended::Io(failed.to_string())
                    }),
                    // It is driven on, for what waits for replies, until its server ends it.
                    () = connection.leaves() => Ended::Leaving,
                };
                if why == Ended::Dropped {
                    return;
                }
                connections.tell(&name, &Change::Lost { server, why: why.to_string() });
                told = true;
                if let Some(keeper) = keeper.upgrade() {
                    keeper.become_(State::Down(NotConnected::Lost { server, why }));
                }
            }
            Err(error) => {
                failures += 1;
                let kind = std::mem::discriminant(&error);
                let is_news = error.is_to_be_mended() && !told_of.contains(&kind);
                if !told || is_news {
                    connections.tell(&name, &Change::Unreachable { why: error.to_string() });
                    told = true;
                    told_of.push(kind);
                }
                if let Some(keeper) = keeper.upgrade() {
                    keeper.become_(State::Down(NotConnected::Connect(error)));
                }
            }
        }
        time::sleep(backoff(failures, random())).await;
    }
}

impl Keeper {
    fn parts(&self) -> (ConnectionName, Arc<ConnectionSettings>, Connections) {
        (self.name.clone(), Arc::clone(&self.settings), self.connections.clone())
    }

    fn become_(&self, state: State) {
        *self.state.borrow_mut() = state;
        self.tried.notify_waiters();
    }
}

/// Between half and the whole of what doubling leads to, so that threads and nodes do not come back in step.
fn backoff(failures: u32, random: u32) -> Duration {
    let whole = BACKOFF.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(BACKOFF_MAX);
    whole / 2 + whole.mul_f64(f64::from(random) / f64::from(u32::MAX)) / 2
}

/// Jitter alone hangs on it, so a system without randomness gets none.
fn random() -> u32 {
    getrandom::u32().unwrap_or(0)
}
