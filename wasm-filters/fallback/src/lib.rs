//! Takes the first upstream that is up, else the queue.
//!
//! See `README.md` for the configuration.

mod config;
mod decide;

use beamline_sdk::{Filter, Request, Verdict, upstream};

use crate::{config::Config, decide::Decision};

/// The filter.
struct Fallback;

impl Filter for Fallback {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let state = |name: &str| upstream::status(name).map(|status| status.state);
        match decide::on(config, state, || request.method()) {
            Decision::Route(upstream) => Verdict::route(upstream).into(),
            Decision::Enqueue(enqueue) => {
                let key = enqueue.ordering_key_header.as_ref().and_then(|name| request.header(name));
                let verdict = Verdict::enqueue(enqueue.upstream.as_str());
                match key.as_ref().and_then(|key| key.to_str()).filter(|key| (1..=256).contains(&key.len())) {
                    Some(key) => verdict.ordering_key(key).into(),
                    None => verdict.into(),
                }
            }
            Decision::Refuse => Verdict::refuse(503, "Nobody is there to answer. Please try again later.")
                .header("retry-after", config.retry_after_seconds.to_string())
                .into(),
        }
    }
}

beamline_sdk::export!(Fallback);

#[cfg(test)]
mod tests {
    use beamline_sdk::{Verdict, testing::Call, upstream::State};
    use serde_json::json;

    use super::Fallback;

    #[test]
    fn cases_come_out_as_they_say() {
        beamline_sdk::testing::run_cases::<Fallback>(include_str!("../cases.json"));
    }

    #[test]
    fn each_state_of_three_upstreams_has_its_verdict() {
        let states = [None, Some(State::Down), Some(State::Degraded), Some(State::Ready)];
        for prefer_ready in [false, true] {
            let config = json!({ "upstreams": ["a", "b", "c"], "prefer_ready": prefer_ready });
            for n in 0..64 {
                let of = [states[n % 4], states[n / 4 % 4], states[n / 16]];
                let called = ["a", "b", "c"].into_iter().zip(of);
                let call =
                    called.clone().fold(Call::get("/").config(config.clone()), |call, (name, state)| {
                        match state {
                            Some(state) => call.upstream(name, state),
                            None => call,
                        }
                    });
                let ready =
                    called.clone().find(|(_, state)| *state == Some(State::Ready)).filter(|_| prefer_ready);
                let up =
                    called.clone().find(|(_, state)| matches!(state, Some(State::Ready | State::Degraded)));
                let verdict = call.run::<Fallback>().verdict;
                match ready.or(up) {
                    Some((name, _)) => assert_eq!(verdict, Verdict::route(name).into(), "{of:?}"),
                    None => assert!(matches!(verdict, Verdict::Respond(_)), "{of:?}"),
                }
            }
        }
    }
}
