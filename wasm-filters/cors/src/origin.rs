//! Origins (RFC 6454), as a browser names them and as a configuration allows them.

/// Which origins are meant: one, or every host below a name.
pub(crate) struct OriginPattern {
    /// `https://`
    scheme: &'static str,
    /// With the port, where it is not the scheme's own; after `*.` where that stands in the configuration.
    host: String,
    below: bool,
}

impl OriginPattern {
    /// Reads an origin such as `https://app.test:8443`, or `https://*.app.test` for every host below a name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let expected = ": expected an origin such as https://app.test or https://*.app.test, in lower case, without a path";
            [text, expected].concat()
        };
        let (scheme, rest) = split(text.as_bytes()).ok_or_else(wrong)?;
        let (below, host) = match rest.strip_prefix(b"*.") {
            // Below a top-level domain stands everybody.
            Some(host) if host.contains(&b'.') => (true, host),
            Some(_) => return Err(wrong()),
            None => (false, rest),
        };
        if host.starts_with(b".") || !is_host(host) {
            return Err(wrong());
        }
        Ok(Self { scheme, host: String::from_utf8_lossy(host).into_owned(), below })
    }

    /// Whether an origin is one of these. Byte for byte: browsers write them in one way.
    pub(crate) fn holds(&self, origin: &[u8]) -> bool {
        let Some((scheme, host)) = split(origin).filter(|(_, host)| is_host(host)) else {
            return false;
        };
        let wanted = self.host.as_bytes();
        scheme == self.scheme
            && if self.below {
                host.strip_suffix(wanted).is_some_and(|labels| labels.len() > 1 && labels.ends_with(b"."))
            } else {
                host == wanted
            }
    }
}

/// The scheme, and the host with its port.
fn split(origin: &[u8]) -> Option<(&'static str, &[u8])> {
    ["https://", "http://"]
        .into_iter()
        .find_map(|scheme| Some((scheme, origin.strip_prefix(scheme.as_bytes())?)))
}

fn is_host(host: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]".contains(byte);
    !host.is_empty() && host.len() <= 262 && host.iter().all(plain)
}
