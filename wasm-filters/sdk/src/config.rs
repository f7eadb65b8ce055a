//! A filter's configuration, from the JSON text that the host hands over.

use serde::de::DeserializeOwned;

/// Reads the configuration. `null`, which is what a filter without `config` gets, falls back to `{}`.
pub(crate) fn read<C: DeserializeOwned>(text: &str) -> Result<C, String> {
    let read = |text| serde_json::from_str::<C>(text);
    if text != "null" {
        // The text itself stays out of the log: a configuration may hold words that not every reader should know.
        return read(text).map_err(|error| format!("config is not valid: {error}"));
    }
    read("null")
        .or_else(|_| read("{}"))
        .map_err(|error| format!("config is missing: {error}: give this filter a config in the manifest"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::read;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Needs {
        name: String,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Optional {
        #[serde(default)]
        count: u32,
    }

    #[test]
    fn a_missing_config_is_enough_where_every_field_has_a_default() {
        assert_eq!(read::<()>("null"), Ok(()));
        assert_eq!(read::<Option<Needs>>("null"), Ok(None));
        assert_eq!(read::<Optional>("null"), Ok(Optional { count: 0 }));
    }

    #[test]
    fn errors_name_the_field_and_what_to_do() {
        let missing = read::<Needs>("null").unwrap_err();
        assert!(missing.contains("config is missing: missing field `name`"), "{missing}");
        let unknown = read::<Needs>(r#"{"nam":"x"}"#).unwrap_err();
        assert!(unknown.contains("unknown field `nam`, expected `name`"), "{unknown}");
    }
}
