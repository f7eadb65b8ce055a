//! Sets the header fields that tell browsers to be careful.
//!
//! See `README.md` for the configuration and what each field is for.

mod config;

use beamline_sdk::{Request, ResponseFilter, ResponseHead, ResponseVerdict, log};

use crate::config::Config;

/// The filter.
struct SecurityHeaders;

impl ResponseFilter for SecurityHeaders {
    type Config = Config;

    fn on_response(config: &Config, _: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        for name in &config.remove {
            response.remove_header(name).expect("filters may change the field");
        }
        for (name, value) in &config.fields {
            // One for which there is no room keeps none of the others off.
            if (config.overwrite || response.header(name).is_none())
                && let Err(error) = response.set_header(name, &**value)
            {
                log::warn!("{name} could not be set: {error:?}");
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
    fn a_field_for_which_there_is_no_room_is_told_in_the_log_and_keeps_no_other_off() {
        let full = (0..98).fold(Call::get("/"), |call, n| call.response_header(&format!("x-{n}"), "1"));
        let outcome = full.response_header("server", "nginx").run_response::<SecurityHeaders>();
        assert_eq!((outcome.log.len(), outcome.head.get("server")), (2, None));
        assert_eq!(outcome.head.get("x-content-type-options").unwrap(), b"nosniff");
        assert_eq!(outcome.head.get("cross-origin-opener-policy"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_configuration_splits_a_field(value in "\\PC{0,20}|[\\r\\n -~]{0,20}") {
            let config = serde_json::json!({ "content_security_policy": value });
            let read = serde_json::from_value::<crate::config::Config>(config);
            let plain = !value.is_empty() && value.trim() == value && value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            proptest::prop_assert_eq!(read.is_ok(), plain);
        }
    }
}
