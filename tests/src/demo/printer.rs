//! What the story looks like: a few kinds of lines, coloured on a terminal only.

use std::{
    io::{IsTerminal as _, Write as _, stdout},
    time::{Duration, Instant},
};

/// Prints to standard output. Errors of writing are not the story's: somebody may have piped it to `head`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Printer {
    is_terminal: bool,
    has_colours: bool,
}

/// How a text is set off.
#[derive(Clone, Copy, Debug)]
pub(super) enum Style {
    Title,
    Faint,
    Command,
    Good,
    Bad,
    Mark,
}

/// How wide the first column of exchanges is.
const REQUEST_COLUMN: usize = 52;

impl Printer {
    /// Colours where standard output is a terminal that has some and `NO_COLOR` is not set.
    pub(super) fn for_stdout() -> Self {
        let is_terminal = stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { is_terminal, has_colours: is_terminal && !no_color && !dumb }
    }

    /// Without colours and without a terminal.
    #[cfg(test)]
    pub(super) const fn plain() -> Self {
        Self { is_terminal: false, has_colours: false }
    }

    /// A text in a style, where there are colours.
    pub(super) fn paint(self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Title => "1",
            Style::Faint => "2",
            Style::Command => "36",
            Style::Good => "32",
            Style::Bad => "1;31",
            Style::Mark => "33",
        };
        if self.has_colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A line as it is.
    pub(super) fn line(self, text: &str) {
        let mut out = stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// The first and the last line of the story.
    pub(super) fn title(self, text: &str) {
        self.line(&format!("\n{}", self.paint(Style::Title, text)));
    }

    /// The head of a chapter.
    pub(super) fn chapter(self, number: usize, of: usize, title: &str, shows: &str) {
        let rule = "─".repeat(72_usize.saturating_sub(title.chars().count()));
        self.line(&format!(
            "\n{} {} {}",
            self.paint(Style::Mark, &format!("{number}/{of}")),
            self.paint(Style::Title, title),
            self.paint(Style::Faint, &rule)
        ));
        shows.lines().for_each(|line| self.line(&format!("    {}", self.paint(Style::Faint, line))));
    }

    /// A command line that is run.
    pub(super) fn command(self, text: &str) {
        self.line(&format!("  $ {}", self.paint(Style::Command, text)));
    }

    /// What a step led to.
    pub(super) fn detail(self, text: &str) {
        text.lines().for_each(|line| self.line(&format!("      {line}")));
    }

    /// What happens in the scene, where no command is run for it.
    pub(super) fn scene(self, text: &str) {
        self.line(&format!("  {} {text}", self.paint(Style::Mark, "»")));
    }

    /// A request and what became of it.
    pub(super) fn exchange(self, request: &str, response: &str) {
        self.line(&format!("    {request:REQUEST_COLUMN$} {} {response}", self.paint(Style::Faint, "→")));
    }

    /// A claim that held.
    pub(super) fn met(self, claim: &str) {
        self.line(&format!("  {} {claim}", self.paint(Style::Good, "✓")));
    }

    /// A claim that did not hold.
    pub(super) fn failure(self, place: &str, claim: &str, expected: &str, found: &str) {
        self.line(&format!("\n  {} {place} failed: {claim}", self.paint(Style::Bad, "✗")));
        self.line(&format!("      expected  {expected}"));
        let mut label = "found   ";
        for line in found.lines() {
            self.line(&format!("      {label}  {line}"));
            label = "        ";
        }
    }

    /// Why there is no story, or no more of it.
    pub(super) fn problem(self, text: &str) {
        self.line(&format!("\n{} {text}", self.paint(Style::Bad, "✗")));
    }

    /// What another program said.
    pub(super) fn quote(self, text: &str) {
        text.lines().for_each(|line| self.line(&self.paint(Style::Faint, line)));
    }

    /// Shows that something is being waited for, from the first half second on, until it is dropped.
    pub(super) fn waiting(self, what: &str) -> Waiting {
        Waiting { print: self, what: what.to_owned(), since: Instant::now(), shown: 0 }
    }
}

/// A wait under way: on a terminal a line that is rewritten and goes away, else a dot for each second.
pub(super) struct Waiting {
    print: Printer,
    what: String,
    since: Instant,
    /// How many steps of it have been shown.
    shown: u64,
}

/// From when on a wait is shown.
const SHOWN_FROM: Duration = Duration::from_millis(500);

impl Waiting {
    /// Shows how long it has lasted. To be called a few times a second.
    pub(super) fn tick(&mut self) {
        let elapsed = self.since.elapsed();
        if elapsed < SHOWN_FROM {
            return;
        }
        let mut out = stdout().lock();
        let _ = if self.print.is_terminal {
            self.shown = 1;
            let text = format!("{} … {:.0} s", self.what, elapsed.as_secs_f64());
            write!(out, "\r\x1b[2K    {}", self.print.paint(Style::Faint, &text))
        } else if self.shown == 0 {
            self.shown = 1;
            write!(out, "    {} …", self.what)
        } else if elapsed.as_secs() >= self.shown {
            self.shown += 1;
            write!(out, ".")
        } else {
            Ok(())
        };
        let _ = out.flush();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.shown == 0 {
            return;
        }
        let mut out = stdout().lock();
        let _ = if self.print.is_terminal {
            write!(out, "\r\x1b[2K")
        } else {
            writeln!(out, " {:.1} s", self.since.elapsed().as_secs_f64())
        };
        let _ = out.flush();
    }
}
