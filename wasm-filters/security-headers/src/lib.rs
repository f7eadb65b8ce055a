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
        if let Err(error) = tell(config, response) {
            log::warn!("not every field could be set: {error:?}");
        }
        ResponseVerdict::next()
    }
}

fn tell(config: &Config, response: &mut ResponseHead) -> Result<(), HeaderError> {
    for name in &config.remove {
        response.remove_header(name)?;
    }
    for (name, value) in &config.fields {
        if config.overwrite || response.header(name).is_none() {
            response.set_header(name, value)?;
        }
    }
    Ok(())
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
    fn a_head_that_takes_nothing_more_is_told_in_the_log() {
        let full = (0..100).fold(Call::get("/"), |call, n| call.response_header(&format!("x-{n}"), "1"));
        assert_eq!(full.run_response::<SecurityHeaders>().log.len(), 1);
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
