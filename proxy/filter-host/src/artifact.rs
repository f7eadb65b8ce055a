//! What the compile worker makes of a module: machine code for each tier that it has.

/// A compiled module, in one piece for the worker's pipe and the cache: the component's length (u32, little endian),
/// the component, the core module of the reset tier where there is one.
pub(crate) struct Artifact {
    pub(crate) component: Vec<u8>,
    pub(crate) core: Option<Vec<u8>>,
}

impl Artifact {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.component.len()).expect("machine code of at most 4 MiB of Wasm");
        let core = self.core.as_deref().unwrap_or_default();
        [&length.to_le_bytes(), self.component.as_slice(), core].concat()
    }

    /// Component and core module of an artifact; none where it is not of this form.
    pub(crate) fn split(bytes: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (component, core) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        Some((component, (!core.is_empty()).then_some(core)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_comes_apart_as_it_was_put_together() {
        for core in [None, Some(b"core".to_vec())] {
            let bytes = Artifact { component: b"component".to_vec(), core: core.clone() }.to_bytes();
            assert_eq!(Artifact::split(&bytes), Some((&b"component"[..], core.as_deref())));
        }
        assert_eq!(Artifact::split(b"\x05\0\0\0abcd"), None);
        assert_eq!(Artifact::split(b"\0\0"), None);
    }
}
