//! What a filter answers in the upstream's place, for tests to look at.

use std::fmt::Debug;

use super::{Outcome, ResponseOutcome};
use crate::{HeaderValue, Response, ResponseVerdict, Verdict};

/// An answer that a filter gave.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a>(&'a Response);

impl<'a> Answer<'a> {
    /// The status.
    pub fn status(&self) -> u16 {
        self.0.as_raw().status
    }

    /// The first value of a field, whose name may be given in any case.
    pub fn header(&self, name: &str) -> Option<HeaderValue> {
        let field = self.0.as_raw().headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        Some(HeaderValue::from_bytes(field.value.clone()))
    }

    /// The body.
    pub fn body(&self) -> &'a [u8] {
        &self.0.as_raw().body
    }
}

impl Outcome {
    /// What the filter answered.
    ///
    /// # Panics
    /// Where it decided otherwise.
    #[track_caller]
    pub fn answer(&self) -> Answer<'_> {
        match &self.verdict {
            Verdict::Respond(response) => Answer(response),
            other => no_answer(other),
        }
    }
}

impl ResponseOutcome {
    /// What the filter answered in the response's place.
    ///
    /// # Panics
    /// Where it decided otherwise.
    #[track_caller]
    pub fn answer(&self) -> Answer<'_> {
        match &self.verdict {
            ResponseVerdict::Respond(response) => Answer(response),
            other => no_answer(other),
        }
    }
}

#[track_caller]
fn no_answer(verdict: &dyn Debug) -> ! {
    panic!("expected an answer, found {verdict:?}")
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use crate::{Filter, Request, ResponseFilter, ResponseHead, ResponseVerdict, Verdict, testing::Call};

    struct Refuses;

    impl Filter for Refuses {
        type Config = ();

        fn on_request((): &(), request: &mut Request) -> Verdict {
            match request.query() {
                Some(why) => Verdict::refuse(403, &why).header("X-Why", "1").into(),
                None => Verdict::next(),
            }
        }
    }

    impl ResponseFilter for Refuses {
        type Config = ();

        fn on_response((): &(), request: &Request, _: &mut ResponseHead) -> ResponseVerdict {
            match request.query() {
                Some(why) => ResponseVerdict::refuse(502, &why).into(),
                None => ResponseVerdict::next(),
            }
        }
    }

    #[test]
    fn a_refusal_is_a_problem_document() {
        let outcome = Call::get("/?say \"no\" \\ \u{e9}\n").run::<Refuses>();
        let answer = outcome.answer();
        assert_eq!((answer.status(), answer.header("x-why").unwrap()), (403, "1".into()));
        assert_eq!(answer.header("Content-Type").unwrap(), "application/problem+json");
        assert_eq!(answer.header("cache-control").unwrap(), "no-store");
        let told: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(told, serde_json::json!({ "status": 403, "detail": "say \"no\" \\ \u{e9}\n" }));
        let outcome = Call::get("/?gone").run_response::<Refuses>();
        assert_eq!((outcome.answer().status(), outcome.answer().header("x-why")), (502, None));
        assert_eq!(outcome.answer().body(), br#"{"status":502,"detail":"gone"}"#);
    }

    #[test]
    fn what_is_no_answer_is_told() {
        assert!(catch_unwind(|| Call::get("/").run::<Refuses>().answer().status()).is_err());
        assert!(catch_unwind(|| Call::get("/").run_response::<Refuses>().answer().status()).is_err());
    }
}
