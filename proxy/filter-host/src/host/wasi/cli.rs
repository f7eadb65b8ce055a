//! `wasi:cli`: no environment, no arguments; what is printed goes to the log.

use wasmtime::component::{Linker, Resource};

use super::{
    CallState, Interface, Running,
    io::{Input, Output},
};
use crate::host::{GuestLog, LogLevel, Redaction};

/// What the guest printed, on each output. Made when it prints.
#[derive(Default)]
pub(in crate::host) struct Printed([Text; 2]);

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// How many more there were than the log could have.
    beyond: u64,
}

/// The level of standard output's lines, and of standard error's.
const LEVELS: [LogLevel; 2] = [LogLevel::Info, LogLevel::Error];

impl Text {
    /// Goes on with the text, as far as the log could tell it; a secret that begins there is seen whole.
    fn extend(&mut self, bytes: &[u8], log: &GuestLog, redaction: &Redaction) {
        let most = log.room().saturating_add(redaction.longest());
        let kept = bytes.len().min(most.saturating_sub(self.bytes.len()));
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.beyond = self.beyond.saturating_add((bytes.len() - kept) as u64);
    }

    /// Tells each line. Secrets are looked for in all of it at once: a guest may print one in pieces.
    fn tell(self, level: LogLevel, log: &mut GuestLog, redaction: &Redaction) {
        let text = String::from_utf8_lossy(&self.bytes);
        let (told, read) = redaction.redacted(&text, log.room());
        for line in told.lines() {
            log.push(level, line.to_owned());
        }
        log.cut = log.cut.saturating_add((text.len() - read) as u64).saturating_add(self.beyond);
    }
}

impl Printed {
    /// The guest writes to the output that has this number.
    pub(super) fn write(call: &mut CallState, output: u32, bytes: &[u8]) {
        let CallState { printed, log, config, .. } = call;
        let Self(outputs) = &mut **printed.get_or_insert_default();
        outputs[usize::from(output != 0)].extend(bytes, log, &config.redaction);
    }

    /// The call is over.
    pub(in crate::host) fn tell(self, log: &mut GuestLog, redaction: &Redaction) {
        for (text, level) in self.0.into_iter().zip(LEVELS) {
            text.tell(level, log, redaction);
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
        let (mut log, mut text) = (GuestLog::with_limit(limit), Text::default());
        for write in writes {
            text.extend(write, &log, redaction);
        }
        text.tell(LogLevel::Info, &mut log, redaction);
        log
    }

    fn lines(log: &GuestLog) -> Vec<&str> {
        log.lines.iter().map(|(_, line)| &**line).collect()
    }

    #[test]
    fn a_text_is_kept_no_further_than_the_log_could_tell_it() {
        let log = printed(100, &Redaction::of([]), &[&[b'x'; 60], &[b'y'; 60], &[b'z'; 1 << 20]]);
        assert_eq!(lines(&log), [format!("{}{}", "x".repeat(60), "y".repeat(8))]);
        assert_eq!(log.cut, 52 + (1 << 20));
        // Each line counts as a message does.
        let log = printed(100, &Redaction::of([]), &[b"one\n", b"two\n\r\n", b"three"]);
        assert_eq!((lines(&log), log.cut), (vec!["one", "two"], 5));
    }

    #[test]
    fn a_secret_that_is_printed_in_pieces_is_found() {
        let redaction = crate::host::secrets::tests::redaction(&[b"s3cret"]);
        let log = printed(200, &redaction, &[b"a s3", b"cret b\ns3cret"]);
        assert_eq!((lines(&log), log.cut), (vec!["a [redacted] b", "[redacted]"], 0));
        // One that begins within the room and ends beyond it.
        let log = printed(32 + 14, &redaction, &[b"0123456789 s3", b"cret"]);
        assert_eq!(lines(&log), ["0123456789 "]);
    }
}
