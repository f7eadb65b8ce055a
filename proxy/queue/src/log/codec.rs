//! Header fields as one value of a row: a version byte, then for each field two lengths (`u32`, little-endian), a name and a value.

const VERSION: u8 = 1;

/// The stored form of header fields.
pub(super) fn encode(headers: &[(String, Vec<u8>)]) -> Vec<u8> {
    let size = headers.iter().map(|(n, v)| 8 + n.len() + v.len()).sum::<usize>();
    let mut out = Vec::with_capacity(1 + size);
    out.push(VERSION);
    for (name, value) in headers {
        for len in [name.len(), value.len()] {
            let len = u32::try_from(len).expect("a head is bounded far below 4 GiB");
            out.extend_from_slice(&len.to_le_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value);
    }
    out
}

/// The fields of a stored form, or none where it is not one.
pub(super) fn decode(stored: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let (version, mut rest) = stored.split_first()?;
    if *version != VERSION {
        return None;
    }
    let mut headers = Vec::new();
    while !rest.is_empty() {
        let (name_len, after) = rest.split_first_chunk()?;
        let (value_len, after) = after.split_first_chunk()?;
        let (name, after) = after.split_at_checked(length(name_len)?)?;
        let (value, after) = after.split_at_checked(length(value_len)?)?;
        headers.push((std::str::from_utf8(name).ok()?.to_owned(), value.to_vec()));
        rest = after;
    }
    Some(headers)
}

fn length(stored: &[u8; 4]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(*stored)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn headers_read_back_and_torn_ones_are_refused(
            headers in vec(("[a-z-]{1,20}", vec(any::<u8>(), 0..40)), 0..8),
            cut in 1_usize..6,
        ) {
            let stored = encode(&headers);
            if !headers.is_empty() {
                prop_assert_eq!(decode(&stored[..stored.len() - cut.min(stored.len() - 2)]).as_ref() == Some(&headers), false);
            }
            prop_assert_eq!(decode(&stored), Some(headers));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn another_version_is_refused() {
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[2]), None);
    }
}
