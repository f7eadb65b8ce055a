//! What a module imports, for filters that run on the machine at hand.

use std::{cell::RefCell, collections::BTreeMap};

use serde_json::Value;

pub(crate) use super::{Head, ResponseHead};
use crate::{context, log::Level, upstream::Status};

/// What the host answers during a call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) config: Value,
    pub(crate) upstreams: BTreeMap<String, Status>,
    pub(crate) random: u64,
    pub(crate) context: Option<Vec<u8>>,
    pub(crate) log: Vec<(Level, String)>,
}

thread_local! {
    // Host functions take no argument that could carry it: in a module the host is simply there.
    static HOST: RefCell<Host> = RefCell::default();
}

impl Host {
    /// Makes this the host of the calling thread while `call` runs; gives the host as it is afterwards.
    pub(crate) fn during<T>(self, call: impl FnOnce() -> T) -> (T, Self) {
        HOST.set(self);
        let result = call();
        (result, HOST.take())
    }
}

pub(crate) fn log(level: Level, message: &str) {
    HOST.with_borrow_mut(|host| host.log.push((level, message.to_owned())));
}

pub(crate) fn random() -> u64 {
    HOST.with_borrow(|host| host.random)
}

pub(crate) fn upstream(name: &str) -> Option<Status> {
    HOST.with_borrow(|host| host.upstreams.get(name).copied())
}

pub(crate) fn context() -> Option<Vec<u8>> {
    HOST.with_borrow(|host| host.context.clone())
}

pub(crate) fn set_context(value: &[u8]) -> Result<(), context::TooLarge> {
    if value.len() > context::MAX {
        return Err(context::TooLarge);
    }
    HOST.with_borrow_mut(|host| host.context = Some(value.to_vec()));
    Ok(())
}
