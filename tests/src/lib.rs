//! The end-to-end harness: the real binary as a child process, real and raw clients before it, origins and a trace
//! receiver behind it, a load generator, and faults (`kill -9`, power cuts). Suites and the demo drive the binary by its
//! public faces only: its command line, its ports, its files. No crate of the proxy is linked here.
//!
//! Everything is bounded in time and cleaned up on drop.

pub mod admin;
pub mod beamline;
pub mod canary;
pub mod checker;
pub mod client;
pub mod demo;
pub mod disk;
pub mod environment;
pub mod faults;
pub mod guests;
pub mod handover;
pub mod heavy;
pub mod histogram;
pub mod http1;
pub mod load;
pub mod nats;
pub mod origin;
pub mod otlp;
pub mod ports;
pub mod powercut;
pub mod process;
pub mod raw;
pub mod scene;
pub mod seal_keys;
pub mod seed;
mod server;
pub mod tools;
pub mod wait;
pub mod workload;
