//! The control plane over a real SQLite store; modules come through the seam.

mod bench;

mod apply;
mod deletion;
mod durable;
mod grants;
mod keys;
mod modules;
mod rollback;
mod secrets;
mod tokens;
mod unloaded;
mod workers;
