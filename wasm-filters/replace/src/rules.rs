//! Finds texts and puts others in their place, in a body that comes in pieces.

use serde::Deserialize;

/// What is replaced by what. At each place the first rule that fits counts, and what was put in is not looked at again.
#[derive(Deserialize)]
#[serde(try_from = "Vec<Rule>")]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    /// Whether any rule's text begins with a byte.
    begins: [bool; 256],
}

/// A text and what takes its place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    find: String,
    replace: String,
}

/// What became of a chunk.
pub(crate) struct Replaced {
    /// What goes on in place of its bytes but for those that are left; none where it is the same bytes.
    pub(crate) data: Option<Vec<u8>>,
    /// So many bytes at its end may be the first of a text that goes on in the next chunk.
    pub(crate) left: usize,
}

const MAX_RULES: usize = 32;
const MAX_FIND: usize = 1024;
/// How many times as long as what is found its replacement may be: what takes the place of a chunk of 64 KiB stays within the
/// default of `limits.body`.
const MAX_GROWTH: usize = 15;

impl Rules {
    /// Replaces what is found in a chunk. Cut anywhere, a body comes out the same: where a text may still go on, nothing is
    /// decided before the next bytes are there.
    pub(crate) fn replace(&self, chunk: &[u8], is_last: bool) -> Replaced {
        let mut data: Option<Vec<u8>> = None;
        // Up to where the chunk's bytes are in `data`, and where we are.
        let (mut copied, mut at) = (0, 0);
        while at < chunk.len() {
            let rest = &chunk[at..];
            match self.at(rest, is_last) {
                At::Nothing => at += 1,
                At::Text(rule) => {
                    let data = data.get_or_insert_with(|| Vec::with_capacity(chunk.len()));
                    data.extend_from_slice(&chunk[copied..at]);
                    data.extend_from_slice(rule.replace.as_bytes());
                    at += rule.find.len();
                    copied = at;
                }
                At::Perhaps => break,
            }
        }
        if let Some(data) = &mut data {
            data.extend_from_slice(&chunk[copied..at]);
        }
        Replaced { data, left: chunk.len() - at }
    }

    fn at(&self, rest: &[u8], is_last: bool) -> At<'_> {
        if !self.begins[usize::from(rest[0])] {
            return At::Nothing;
        }
        for rule in &self.rules {
            let find = rule.find.as_bytes();
            if rest.starts_with(find) {
                return At::Text(rule);
            }
            if !is_last && find.starts_with(rest) {
                return At::Perhaps;
            }
        }
        At::Nothing
    }
}

/// What begins at a place.
enum At<'a> {
    Nothing,
    Text(&'a Rule),
    /// A text, if the next bytes are its own.
    Perhaps,
}

impl TryFrom<Vec<Rule>> for Rules {
    type Error = &'static str;

    fn try_from(rules: Vec<Rule>) -> Result<Self, Self::Error> {
        if !(1..=MAX_RULES).contains(&rules.len()) {
            return Err("expected 1 to 32");
        }
        let mut begins = [false; 256];
        for rule in &rules {
            let Some(first) = rule.find.bytes().next().filter(|_| rule.find.len() <= MAX_FIND) else {
                return Err("expected find of 1 to 1024 bytes");
            };
            if rule.replace.len() > rule.find.len() * MAX_GROWTH {
                return Err("expected replace to be at most 15 times as long as find");
            }
            begins[usize::from(first)] = true;
        }
        Ok(Self { rules, begins })
    }
}
