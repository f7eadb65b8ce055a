//! `docs/reference/admin-api.md`, taken apart.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

/// One route's section.
#[derive(Debug, Default)]
pub(crate) struct Section {
    /// Its lines that are no JSON.
    pub(crate) lines: Vec<String>,
    /// The document under "Request:".
    pub(crate) request: Option<Value>,
    /// The document under "Answer:".
    pub(crate) answer: Option<Value>,
}

/// The page.
pub(crate) struct Page {
    /// Its text.
    pub(crate) text: String,
    /// The sections of routes by `METHOD /path`, in no order.
    pub(crate) sections: BTreeMap<String, Section>,
}

impl Page {
    /// Reads the page.
    pub(crate) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/admin-api.md");
        let text = std::fs::read_to_string(path).unwrap();
        let mut sections = BTreeMap::<String, Section>::new();
        let mut current = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(title) = line.strip_prefix("### `") {
                let name = title.trim_end_matches('`').to_owned();
                assert!(
                    sections.insert(name.clone(), Section::default()).is_none(),
                    "{name} has two sections"
                );
                current = Some(name);
            } else if line.starts_with('#') {
                current = None;
            }
            let Some(section) = current.as_ref().and_then(|name| sections.get_mut(name)) else { continue };
            if line == "```text" {
                let text: Vec<_> = lines.by_ref().take_while(|l| *l != "```").collect();
                section.answer = Some(text.join("\n").into());
            } else if line == "```json" {
                let json: Vec<_> = lines.by_ref().take_while(|l| *l != "```").collect();
                let document = serde_json::from_str(&json.join("\n"))
                    .unwrap_or_else(|e| panic!("{current:?}: an example is no JSON: {e}"));
                let of =
                    section.lines.iter().rev().find(|l| l.starts_with("Request:") || l.starts_with("Answer"));
                match of {
                    Some(l) if l.starts_with("Request:") => section.request = Some(document),
                    _ => section.answer = Some(document),
                }
            } else {
                section.lines.push(line.to_owned());
            }
        }
        Self { text, sections }
    }

    /// The example of what a route is asked.
    pub(crate) fn request(&self, route: &str) -> &Value {
        self.sections[route].request.as_ref().unwrap_or_else(|| panic!("{route} has an example of a request"))
    }
}

/// A document without its values: what two answers of one route have in common.
///
/// Arrays and nulls say nothing of what could be in them, so they fit everything.
pub(crate) fn same_shape(at: &str, a: &Value, b: &Value) -> Result<(), String> {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let names = |o: &serde_json::Map<String, Value>| o.keys().cloned().collect::<Vec<_>>();
            let (mut l, mut r) = (names(left), names(right));
            l.sort_unstable();
            r.sort_unstable();
            if l != r {
                return Err(format!("{at}: {l:?} is not {r:?}"));
            }
            left.iter().try_for_each(|(name, value)| same_shape(&format!("{at}.{name}"), value, &right[name]))
        }
        (Value::Array(left), Value::Array(right)) => {
            left.iter().zip(right).try_for_each(|(l, r)| same_shape(&format!("{at}[]"), l, r))
        }
        (Value::Null, _) | (_, Value::Null) => Ok(()),
        _ if std::mem::discriminant(a) == std::mem::discriminant(b) => Ok(()),
        _ => Err(format!("{at}: {a} is not of the kind of {b}")),
    }
}
