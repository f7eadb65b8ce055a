//! What a suite found: figures as a table, bars met or missed, all of it as JSON too.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a figure may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn allows(self, found: f64) -> bool {
        match self {
            Self::AtMost(bound) => found <= bound,
            Self::AtLeast(bound) => found >= bound,
        }
    }

    fn words(self) -> (&'static str, f64) {
        match self {
            Self::AtMost(bound) => ("at most", bound),
            Self::AtLeast(bound) => ("at least", bound),
        }
    }
}

/// A bar: a figure and what it may be.
pub(crate) struct Bar {
    pub(crate) what: String,
    pub(crate) found: f64,
    pub(crate) bound: Bound,
    pub(crate) unit: &'static str,
    /// Why the figure counts for nothing, such as failed requests.
    pub(crate) void: Option<String>,
}

impl Bar {
    pub(crate) fn met(&self) -> bool {
        self.void.is_none() && self.bound.allows(self.found)
    }
}

/// A table: the first column to the left, the others to the right.
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&h| h.into()).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn print(&self) {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let widths: Vec<_> = (0..self.head.len())
            .map(|i| all().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        for row in all() {
            let mut line = String::new();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let space = " ".repeat(width - cell.chars().count());
                line.push_str(&if i == 0 { format!("{cell}{space}") } else { format!("  {space}{cell}") });
            }
            println!("  {}", line.trim_end());
        }
    }
}

/// Prints the bars and gives how many were missed.
pub(crate) fn print_bars(bars: &[Bar]) -> usize {
    println!("\nbars");
    for bar in bars {
        let word = if bar.met() { "met   " } else { "MISSED" };
        let void = bar.void.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        let (side, bound) = bar.bound.words();
        println!("  {word}  {}: {:.2} {}, {side} {bound}{void}", bar.what, bar.found, bar.unit);
    }
    bars.iter().filter(|bar| !bar.met()).count()
}

/// Writes `target/bench/SUITE.json` or the like.
pub(crate) fn write_json(folder: &Path, suite: &str, bars: &[Bar], mut figures: Value) -> Result<()> {
    figures["suite"] = suite.into();
    figures["machine"] = machine();
    figures["bars"] = bars
        .iter()
        .map(|b| {
            let (side, bound) = b.bound.words();
            json!({ "what": b.what, "found": b.found, "bound": side, "at": bound, "unit": b.unit, "void": b.void, "met": b.met() })
        })
        .collect();
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(format!("{suite}.json"));
    fs::write(&file, serde_json::to_string_pretty(&figures)? + "\n")?;
    println!("\nwritten to {}", file.display());
    Ok(())
}

fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "processor": model,
        "processors": cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
        "kernel": kernel.trim(),
    })
}

/// The middle value; of an even number of them, the mean of the two in the middle. Zero of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => values[n / 2],
        _ => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![]), 0.0);
    }

    #[test]
    fn a_void_figure_meets_no_bar() {
        let mut bar =
            Bar { what: String::new(), found: 1.0, bound: Bound::AtMost(1.25), unit: "", void: None };
        assert!(bar.met());
        bar.void = Some("3 requests failed".into());
        assert!(!bar.met());
    }
}
