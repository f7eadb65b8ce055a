//! What the probe is told to do.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// One thing to do. Fields that it has no use for are ignored.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Step {
    /// What to do: see [`act::run`](crate::act::run).
    #[serde(rename = "do")]
    pub(crate) action: Action,
    /// How many: milliseconds, bytes, MiB or calls, as the action says.
    #[serde(alias = "ms", alias = "bytes", alias = "mib", alias = "calls")]
    pub(crate) n: u64,
    /// What to do after an action that does not decide by itself: a word or a whole step. Without it, that action
    /// routes to `upstream`, or says `next` where there is none.
    pub(crate) then: Value,
    /// Where to route or enqueue; `origin` without it.
    pub(crate) upstream: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) timeout_ms: Option<u32>,
    pub(crate) ordering_key: Option<String>,
    pub(crate) delay_ms: Option<u64>,
    pub(crate) expiry_ms: Option<u64>,
    pub(crate) call: String,
    pub(crate) key: String,
    pub(crate) by: i64,
    pub(crate) expected: Option<String>,
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) bucket: String,
    pub(crate) rate: [u32; 3],
    pub(crate) value: Option<f64>,
    pub(crate) url: String,
    /// The status of `respond`; 200 if it is 0.
    pub(crate) status: u16,
    /// Header fields: of the answer (`respond`), or changes of the head (`set-headers`), where `null` removes a
    /// field, a text sets it, and an array sets its first and appends its other texts.
    pub(crate) headers: BTreeMap<String, Value>,
    pub(crate) body: String,
    /// Whether `set-headers` answers with what became of each change.
    pub(crate) reply: bool,
    /// Other steps by exact path.
    pub(crate) paths: BTreeMap<String, Step>,
}

/// What can be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Action {
    #[default]
    Next,
    Route,
    Respond,
    Enqueue,
    /// Never ends.
    Spin,
    /// Busy for about `n` milliseconds.
    SpinMs,
    /// Takes memory without end.
    Bomb,
    /// Takes `n` MiB and writes to all of it.
    Alloc,
    /// Panics.
    Trap,
    /// Executes `unreachable`.
    Unreachable,
    /// Calls itself without end.
    Recurse,
    /// Reads `x-h1` to `x-h12` one by one, compares the last with `other`, routes to `upstream` or to `other`.
    Headers,
    /// The same in one crossing.
    HeadersMany,
    /// Changes the head.
    SetHeaders,
    /// Answers with the head as JSON.
    Head,
    /// Logs `n` bytes in one message, or the body where `n` is 0.
    Log,
    /// Calls the host `n` times.
    Calls,
    /// Answers with how often this instance was called, and tells the head: `x-count` is always 1.
    Count,
    /// Answers with a random number.
    Random,
    /// Answers with the status of `upstream` as JSON.
    Upstream,
    /// Answers with the wall clock, and with how long the call took before and after about `n` busy milliseconds.
    Clock,
    /// Answers with what is known of the request beside its head.
    Properties,
    /// Makes `call` (`get`, `set`, `delete`, `increment`, `compare-and-set`) of keys and values, with `key`, `body` or `n` bytes
    /// for a value, `by`, `expected` and `ttl_ms`; answers with what it gave, or with the name of the error.
    Kv,
    /// Takes `n` tokens from the bucket `bucket` of `key`, that fills by `rate`: tokens, period in ms, burst.
    Take,
    /// Sends a request with the method `call` (`GET` without it) to `url`, with `headers` and `body`, within `timeout_ms`; `n` times,
    /// at least once. Answers with the status and body of the last answer, or with the name of the error; with a
    /// `then` it goes on.
    Send,
    /// Answers with the secret `key`, or `null`. With a `then` it logs it, and goes on.
    Secret,
    /// Adds `by` to the counter `key`, or lets the histogram `key` observe `value`, with `headers` for labels.
    Metric,
}

impl Step {
    /// A step from the header `x-probe`: `spin`, `spin-ms=5` or `{"do": "respond", "status": 418}`.
    pub(crate) fn from_header(text: &str) -> Option<Self> {
        if text.starts_with('{') {
            return serde_json::from_str(text).ok();
        }
        let (word, n) = text.split_once('=').unwrap_or((text, "0"));
        Some(Self { n: n.parse().ok()?, ..Self::from_word(word)? })
    }

    /// The step after this one, where there is one.
    ///
    /// # Panics
    /// Where `then` is neither an action's word nor a step.
    pub(crate) fn then(&self) -> Option<Self> {
        let step = match &self.then {
            Value::Null => return None,
            Value::String(word) => Self::from_word(word),
            step => Self::deserialize(step).ok(),
        };
        Some(step.expect("then: a word or a step"))
    }

    fn from_word(word: &str) -> Option<Self> {
        let action = Action::deserialize(Value::from(word)).ok()?;
        Some(Self { action, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_word_a_word_with_a_number_or_json() {
        let step = |text| Step::from_header(text).unwrap();
        assert_eq!(step("spin").action, Action::Spin);
        assert_eq!((step("spin-ms=5").action, step("spin-ms=5").n), (Action::SpinMs, 5));
        assert_eq!(step(r#"{"do":"respond","status":418}"#).status, 418);
        assert_eq!(step(r#"{"do":"log","bytes":9,"then":"trap"}"#).then().unwrap().action, Action::Trap);
        for bad in ["", "dance", "spin-ms=x", "{", r#"{"do":"next","what":1}"#] {
            assert_eq!(Step::from_header(bad), None, "{bad}");
        }
    }
}
