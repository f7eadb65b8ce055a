//! Sets the header fields that tell browsers to be careful.
//!
//! See `README.md` for the configuration and what each field is for.

mod config;

use beamline_sdk::{HeaderError, Request, ResponseFilter, ResponseHead, ResponseVerdict, log};

use crate::config::Config;

/// The filter.
struct SecurityHeaders;

impl ResponseFilter for SecurityHeaders {
    type Config = Config;

    fn on_response(config: &Config, _: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        // One that is refused keeps none of the others off.
        let told = |name: &str, changed: Result<(), HeaderError>| {
            if let Err(error) = changed {
                log::warn!("{name} could not be changed: {error:?}");
            }
        };
        for name in &config.remove {
            told(name, response.remove_header(name));
        }
        for (name, value) in &config.fields {
            if config.overwrite || response.header(name).is_none() {
                told(name, response.set_header(name, value));
            }
        }
        ResponseVerdict::next()
    }
}

beamline_sdk::export!(SecurityHeaders: response);

#[cfg(test)]
mod tests {
    use beamline_sdk::testing::Call;

    use super::SecurityHeaders;

    #[test]
    fn cases_come_out_as_they_say() {
        beamline_sdk::testing::run_response_cases::<SecurityHeaders>(include_str!("../cases.json"));
    }

    #[test]
    fn a_field_that_cannot_be_changed_is_told_in_the_log_and_keeps_no_other_off() {
        let config = serde_json::json!({ "remove": ["via", "x-a"] });
        let call = Call::get("/").config(config).response_header("via", "1.1 a").response_header("x-a", "1");
        let outcome = call.run_response::<SecurityHeaders>();
        assert_eq!((outcome.log.len(), outcome.head.get("x-a")), (1, None));
        assert_eq!(outcome.head.get("x-frame-options").unwrap(), b"DENY");
    }

    proptest::proptest! {
        #[test]
        fn no_configuration_splits_a_field(value in "\\PC{0,20}|[\\r\\n -~]{0,20}") {
            let config = serde_json::json!({ "content_security_policy": value });
            let read = serde_json::from_value::<crate::config::Config>(config);
            let plain = !value.is_empty() && value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            proptest::prop_assert_eq!(read.is_ok(), plain);
        }
    }
}
