//! Settings and what is sampled. The whole, with real collectors, is in `tests/`.

use super::*;

#[test]
fn a_log_target_is_read_from_text() {
    assert_eq!("stdout".parse(), Ok(LogTarget::Stdout));
    assert_eq!("off".parse(), Ok(LogTarget::Off));
    assert_eq!("/var/log/beamline.jsonl".parse(), Ok(LogTarget::File("/var/log/beamline.jsonl".into())));
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_is_refused_with_its_path() {
    let log = LogTarget::File("/nowhere/at/all".into());
    let error = Telemetry::open(Settings { log, ..Settings::default() }, &Handle::current()).err().unwrap();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[tokio::test]
async fn without_an_exporter_nothing_is_sampled() {
    let settings = Settings { log: LogTarget::Off, ..Settings::default() };
    let telemetry = Telemetry::open(settings, &Handle::current()).unwrap();
    assert_eq!(telemetry.sampler(), Sampler::NEVER);
    assert!(telemetry.flush(Duration::from_secs(5)).await);
}
