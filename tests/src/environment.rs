//! What the environment asks of a test beyond its usual form.

use std::env::{self, VarError};

/// The number that a variable names; none where there is no such variable.
///
/// # Panics
/// Where it is no number: another run than the one that was asked for would say nothing.
pub fn number(name: &str) -> Option<u64> {
    parsed(name, env::var(name))
}

fn parsed(name: &str, value: Result<String, VarError>) -> Option<u64> {
    match value {
        Ok(text) => match text.parse() {
            Ok(number) => Some(number),
            Err(_) => panic!("{name}: expected a whole number; found {text:?}"),
        },
        Err(VarError::NotPresent) => None,
        Err(error) => panic!("{name}: expected a whole number: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_and_what_is_none_is_told() {
        assert_eq!(parsed("N", Ok("7".into())), Some(7));
        assert_eq!(parsed("N", Err(VarError::NotPresent)), None);
        for wrong in ["", "7 ", "-1", "0x7", "seven"] {
            assert!(std::panic::catch_unwind(|| parsed("N", Ok(wrong.into()))).is_err(), "{wrong:?}");
        }
    }
}
