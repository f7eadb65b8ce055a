//! `wasi:cli`: no environment, no arguments; what is printed goes to the log.

use memchr::memchr;
use wasmtime::component::{Linker, Resource};

use super::{
    CallState, Interface, Running,
    io::{Input, Output},
};
use crate::host::{GuestLog, LogLevel, Redaction};

/// Lines that the guest has begun and not ended, of each output. Made when it prints.
#[derive(Default)]
pub(in crate::host) struct Printed([Line; 2]);

/// What a line has so far.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    /// How many more there were than the log could have.
    beyond: u64,
}

/// The level of standard output's lines, and of standard error's.
const LEVELS: [LogLevel; 2] = [LogLevel::Info, LogLevel::Error];

impl Line {
    /// Goes on with the line, as far as the log could tell it; a secret that begins there is seen whole.
    fn extend(&mut self, bytes: &[u8], log: &GuestLog, redaction: &Redaction) {
        let most = log.room().saturating_add(redaction.longest());
        let kept = bytes.len().min(most.saturating_sub(self.bytes.len()));
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.beyond += (bytes.len() - kept) as u64;
    }

    fn end(&mut self, level: LogLevel, log: &mut GuestLog, redaction: &Redaction) {
        let Self { bytes, beyond } = std::mem::take(self);
        log.write(level, String::from_utf8_lossy(&bytes).into_owned(), redaction);
        log.cut += beyond;
    }
}

impl Printed {
    /// The guest writes to the output that has this number.
    pub(super) fn write(call: &mut CallState, output: u32, bytes: &[u8]) {
        let CallState { printed, log, config, .. } = call;
        let Self(lines) = &mut **printed.get_or_insert_default();
        let output = usize::from(output != 0);
        let (line, level, mut rest) = (&mut lines[output], LEVELS[output], bytes);
        // Not line by line where the log is full: a guest can print millions of them.
        while log.room() > 0 {
            let Some(end) = memchr(b'\n', rest) else {
                line.extend(rest, log, &config.redaction);
                return;
            };
            line.extend(&rest[..end], log, &config.redaction);
            line.end(level, log, &config.redaction);
            rest = &rest[end + 1..];
        }
        log.cut += rest.len() as u64;
    }

    /// The call is over: what was not ended is a line all the same.
    pub(in crate::host) fn end(self, log: &mut GuestLog, redaction: &Redaction) {
        for (mut line, level) in self.0.into_iter().zip(LEVELS) {
            if !line.bytes.is_empty() {
                line.end(level, log, redaction);
            }
        }
    }
}

fn exited(how: impl std::fmt::Display) -> wasmtime::Error {
    wasmtime::Error::msg(format!("the guest called exit {how}: a filter ends its call by its verdict"))
}

pub(super) fn link(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    let mut environment = Interface::of(linker, "wasi:cli/environment")?;
    environment.function("get-environment", |_, ()| Ok((Vec::<(String, String)>::new(),)))?;
    environment.function("get-arguments", |_, ()| Ok((Vec::<String>::new(),)))?;
    environment.function("initial-cwd", |_, ()| Ok((None::<String>,)))?;
    let mut exit = Interface::of(linker, "wasi:cli/exit")?;
    exit.function::<(Result<(), ()>,), ()>("exit", |_, (status,)| {
        Err(exited(if status.is_ok() { "with success" } else { "with a failure" }))
    })?;
    exit.function::<(u8,), ()>("exit-with-code", |_, (code,)| {
        Err(exited(format_args!("with the code {code}")))
    })?;
    Interface::of(linker, "wasi:cli/stdin")?
        .function("get-stdin", |_, ()| Ok((Resource::<Input>::new_own(0),)))?;
    Interface::of(linker, "wasi:cli/stdout")?
        .function("get-stdout", |_, ()| Ok((Resource::<Output>::new_own(0),)))?;
    Interface::of(linker, "wasi:cli/stderr")?
        .function("get-stderr", |_, ()| Ok((Resource::<Output>::new_own(1),)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(limit: u64, redaction: &Redaction, writes: &[&[u8]]) -> GuestLog {
        let (mut log, mut line) = (GuestLog::with_limit(limit), Line::default());
        for write in writes {
            line.extend(write, &log, redaction);
        }
        line.end(LogLevel::Info, &mut log, redaction);
        log
    }

    #[test]
    fn a_line_is_kept_no_further_than_the_log_could_tell_it() {
        let log = printed(100, &Redaction::of([]), &[&[b'x'; 60], &[b'y'; 60], &[b'z'; 1 << 20]]);
        assert_eq!(log.lines[0].1, format!("{}{}", "x".repeat(60), "y".repeat(8)));
        assert_eq!(log.cut, 52 + (1 << 20));
    }

    #[test]
    fn a_secret_that_is_printed_in_pieces_is_found_in_its_line() {
        let redaction = crate::host::secrets::tests::redaction(&[b"s3cret"]);
        let log = printed(200, &redaction, &[b"a s3", b"cret b"]);
        assert_eq!((&*log.lines[0].1, log.cut), ("a [redacted] b", 0));
        // One that begins within the room and ends beyond it.
        let log = printed(32 + 14, &redaction, &[b"0123456789 s3", b"cret"]);
        assert_eq!(log.lines[0].1, "0123456789 ");
    }
}
