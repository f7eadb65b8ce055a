//! `log`: messages of a guest, bounded.

use super::{CallState, secrets::Redaction};
use crate::bindings::beamline::edge::log;

/// The severity of a guest's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the usual four")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// What a message counts beside its text: empty ones would otherwise be free.
const LINE_COST: u64 = 32;

/// What a guest logged in one call.
#[derive(Debug, Default)]
pub struct GuestLog {
    /// The messages, in order.
    pub lines: Vec<(LogLevel, String)>,
    /// Bytes cut because the call's limit was reached.
    pub cut: u64,
    left: u64,
}

impl GuestLog {
    pub(crate) fn with_limit(bytes: u64) -> Self {
        Self { lines: Vec::new(), cut: 0, left: bytes }
    }

    /// Bytes that the next message may have.
    pub(super) fn room(&self) -> usize {
        usize::try_from(self.left.saturating_sub(LINE_COST)).unwrap_or(usize::MAX)
    }

    /// Writes what there is room for, without secrets.
    pub(super) fn write(&mut self, level: LogLevel, mut message: String, redaction: &Redaction) {
        let room = self.room();
        if room > 0 && redaction.is_needed() {
            let (told, read) = redaction.redacted(&message, room);
            self.cut = self.cut.saturating_add((message.len() - read) as u64);
            message = told;
        }
        self.push(level, message);
    }

    /// Takes down what there is room for of a message that has no secrets.
    pub(super) fn push(&mut self, level: LogLevel, mut message: String) {
        let room = self.room();
        if room == 0 {
            self.cut = self.cut.saturating_add(message.len() as u64);
            return;
        }
        if message.len() > room {
            let end = message.floor_char_boundary(room);
            self.cut = self.cut.saturating_add((message.len() - end) as u64);
            message.truncate(end);
        }
        self.left = self.left.saturating_sub(message.len() as u64 + LINE_COST);
        self.lines.push((level, message));
    }
}

impl log::Host for CallState {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        self.count_call()?;
        let level = match level {
            log::Level::Debug => LogLevel::Debug,
            log::Level::Info => LogLevel::Info,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Error => LogLevel::Error,
        };
        self.log.write(level, message, &self.config.redaction);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::secrets::tests::redaction, *};

    #[test]
    fn a_log_is_cut_at_its_limit_and_between_characters() {
        let mut log = GuestLog::with_limit(100);
        log.write(LogLevel::Info, "é".repeat(100), &Redaction::of([]));
        log.write(LogLevel::Info, "more".into(), &Redaction::of([]));
        assert_eq!(log.lines.len(), 1);
        assert_eq!(log.lines[0].1, "é".repeat(34));
        assert_eq!(log.cut, 132 + 4);
    }

    #[test]
    fn a_secret_does_not_get_into_a_log() {
        let mut log = GuestLog::with_limit(60);
        log.write(LogLevel::Info, "a s3cret b".repeat(3), &redaction(&[b"s3cret"]));
        assert_eq!(log.lines[0].1, "a [redacted] ba [redacted] b");
        assert_eq!(log.cut, 10);
    }
}
