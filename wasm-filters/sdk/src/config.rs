//! A filter's configuration, from the JSON text that the host hands over.

use serde::de::DeserializeOwned;

/// Reads the configuration. `null`, which is what a filter without `config` gets, falls back to `{}`.
///
/// An error says which value is meant, as `rules[1].prefix`, and what was expected.
pub(crate) fn read<C: DeserializeOwned>(text: &str) -> Result<C, String> {
    if text == "null" {
        return parse::<C>("null").or_else(|_| parse("{}")).map_err(|error| missing(&error));
    }
    let is_cut_off = |text: &str| parse::<C>(text).is_err_and(|error| error.is_eof());
    parse::<C>(text).map_err(|error| invalid(text, &error, &is_cut_off))
}

/// Not inlined: what reads a configuration is the largest part of most modules, and stands there once.
#[inline(never)]
fn parse<C: DeserializeOwned>(text: &str) -> Result<C, serde_json::Error> {
    serde_json::from_str(text)
}

fn missing(error: &serde_json::Error) -> String {
    ["config is missing: ", &error.to_string(), ": give this filter a config in the manifest"].concat()
}

/// What is told of a configuration that cannot be read: never its text, which may hold words that not every reader of the log should
/// know.
fn invalid(text: &str, error: &serde_json::Error, is_cut_off: &dyn Fn(&str) -> bool) -> String {
    let way = way(text, blamed(text, is_cut_off));
    // A line and a column of a text that nobody has written are no help.
    let place = [" at line ", &error.line().to_string(), " column ", &error.column().to_string()].concat();
    let error = error.to_string();
    let colon = if way.is_empty() { "" } else { ": " };
    ["config is not valid: ", &way, colon, error.strip_suffix(&place).unwrap_or(&error)].concat()
}

/// The end of the value of a JSON text that an error is about: the first after which nothing more is needed for it. Of a text that
/// ends before it, the error is that it is cut off.
///
/// serde itself tells no value, and the place only when it has left the value. `serde_path_to_error` would tell it, but makes each
/// module 6 to 16 KiB larger (measured).
fn blamed(text: &str, is_cut_off: &dyn Fn(&str) -> bool) -> usize {
    let mut ends = Vec::new();
    walk(text, &mut |end, _| ends.push(end));
    // A space, so that a number has ended where the text does.
    let at = ends.partition_point(|end| is_cut_off(&[text.get(..*end).unwrap_or_default(), " "].concat()));
    ends.get(at).copied().unwrap_or(text.len())
}

/// The way to the value of a JSON text that ends at a place, as `rules[1].prefix`.
fn way(text: &str, end: usize) -> String {
    let mut way = String::new();
    walk(text, &mut |at, steps| {
        if at == end {
            for step in steps {
                let (before, name, after) = match step {
                    Step::Member("") => continue,
                    Step::Member(name) if way.is_empty() => ("", *name, ""),
                    Step::Member(name) => (".", *name, ""),
                    Step::Item(place) => ("[", &*place.to_string(), "]"),
                };
                for part in [before, name, after] {
                    way.push_str(part);
                }
            }
        }
    });
    way
}

/// One step of the way to a value.
enum Step<'a> {
    /// Of an object; without a name before its first.
    Member(&'a str),
    /// Of a list.
    Item(usize),
}

/// Goes through a valid JSON text; shows where each value and each member's name ends, and the way to it.
fn walk<'a>(text: &'a str, show: &mut dyn FnMut(usize, &[Step<'a>])) {
    let bytes = text.as_bytes();
    let (mut steps, mut at, mut is_name) = (Vec::new(), 0, false);
    while let Some(byte) = bytes.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'{' | b'[' => {
                is_name = *byte == b'{';
                steps.push(if is_name { Step::Member("") } else { Step::Item(0) });
                continue;
            }
            b',' => {
                match steps.last_mut() {
                    Some(Step::Item(place)) => *place += 1,
                    _ => is_name = true,
                }
                continue;
            }
            b':' | b' ' | b'\t' | b'\r' | b'\n' => continue,
            b'}' | b']' => _ = steps.pop(),
            b'"' => {
                while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if bytes.get(at) == Some(&b'\\') { 2 } else { 1 };
                }
                if let (true, Some(Step::Member(name))) = (is_name, steps.last_mut()) {
                    *name = text.get(start + 1..at).unwrap_or_default();
                }
                at += 1;
                is_name = false;
            }
            _ => at += bytes.iter().skip(at).take_while(|byte| !b",]} \t\r\n".contains(byte)).count(),
        }
        show(at, &steps);
    }
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
        let missing = read::<Needs>("null").unwrap_err();
        assert!(missing.contains("config is missing: missing field `name`"), "{missing}");
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rules {
        #[serde(default)]
        rules: Vec<Rule>,
        #[serde(default)]
        most: Few,
        #[serde(default)]
        all: (),
    }

    #[derive(Debug, Deserialize)]
    #[serde(try_from = "Written")]
    struct Rule;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        a: Option<Few>,
        b: Option<String>,
    }

    /// At least 20.
    #[derive(Debug, Default, Deserialize)]
    #[serde(try_from = "u8")]
    struct Few;

    impl TryFrom<u8> for Few {
        type Error = &'static str;

        fn try_from(number: u8) -> Result<Self, Self::Error> {
            if number < 20 { Err("expected 20 or more") } else { Ok(Self) }
        }
    }

    impl TryFrom<Written> for Rule {
        type Error = &'static str;

        fn try_from(rule: Written) -> Result<Self, Self::Error> {
            if rule.a.is_some() == rule.b.is_some() { Err("expected a or b, one of them") } else { Ok(Self) }
        }
    }

    #[test]
    fn errors_name_the_value_and_what_would_be_right() {
        let expected_list = "config is not valid: rules: invalid type: string \"x\", expected a sequence";
        for (text, error) in [
            (r#"{"most":5}"#, "config is not valid: most: expected 20 or more"),
            (r#"{"rules":[],"most":5}"#, "config is not valid: most: expected 20 or more"),
            (r#"{"most":2,"rules":[]}"#, "config is not valid: most: expected 20 or more"),
            (
                r#"{"most":200,"rules":[{"b":""},{"a":200},{}]}"#,
                "config is not valid: rules[2]: expected a or b, one of them",
            ),
            (
                r#"{"rules":[{"b":"a,[]{}:\"\\"},{"a":2}]}"#,
                "config is not valid: rules[1].a: expected 20 or more",
            ),
            (r#"{"rules":[{"b":"","a":25}]}"#, "config is not valid: rules[0]: expected a or b, one of them"),
            (
                "{ \"rules\" : [ { \"a\" : 25 } , { \"a\" : 2 } ] }",
                "config is not valid: rules[1].a: expected 20 or more",
            ),
            (
                r#"{"rules":[{"c":1}]}"#,
                "config is not valid: rules[0].c: unknown field `c`, expected `a` or `b`",
            ),
            (r#"{"rules":"x"}"#, expected_list),
            (r#"{"rules":"x","most":25}"#, expected_list),
            (r#"{"most":true}"#, "config is not valid: most: invalid type: boolean `true`, expected u8"),
            (r#"{"all":1}"#, "config is not valid: all: invalid type: integer `1`, expected unit"),
            ("7", "config is not valid: invalid type: integer `7`, expected struct Rules"),
        ] {
            assert_eq!(read::<Rules>(text).unwrap_err(), error, "{text}");
        }
        assert_eq!(read::<Vec<Few>>("[25,5]").unwrap_err(), "config is not valid: [1]: expected 20 or more");
        let Rules { rules, most: Few, all: () } =
            read(r#"{"rules":[{"a":20},{"b":"x"}],"most":255,"all":null}"#).unwrap();
        assert_eq!(rules.len(), 2);
    }

    #[test]
    fn a_long_configuration_is_searched_in_few_steps() {
        let rules: Vec<_> =
            (0..20_000).map(|n| format!(r#"{{"a":{}}}"#, if n == 19_999 { 2 } else { 22 })).collect();
        let error = read::<Rules>(&format!(r#"{{"rules":[{}]}}"#, rules.join(","))).unwrap_err();
        assert_eq!(error, "config is not valid: rules[19999].a: expected 20 or more");
    }
}
