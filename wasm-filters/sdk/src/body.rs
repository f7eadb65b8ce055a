//! Bodies, whole or chunk by chunk, as a filter sees and changes them.

/// A body that was read whole, before anything was sent of the message that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    came: Vec<u8>,
    replaced: Option<Vec<u8>>,
}

/// Some bytes of a body that streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'call> {
    bytes: &'call [u8],
    last: bool,
}

/// What happens to a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkVerdict {
    /// It goes on as it is.
    Pass,
    /// Something else goes on.
    Replace(Replacement),
    /// It is kept, and shown again at the beginning of the next chunk. The last chunk goes on instead.
    Hold,
}

/// What goes on in place of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    data: Vec<u8>,
    again: usize,
}

impl Body {
    pub(crate) fn new(came: Vec<u8>) -> Self {
        Self { came, replaced: None }
    }

    /// The bytes: those that came, or those put in their place.
    pub fn bytes(&self) -> &[u8] {
        self.replaced.as_deref().unwrap_or(&self.came)
    }

    /// Sends these bytes in place of those that came. The host states their length.
    ///
    /// Fields that speak of the body, such as `content-type`, `content-encoding` and `etag`, are the filter's to change.
    pub fn replace(&mut self, bytes: impl Into<Vec<u8>>) {
        self.replaced = Some(bytes.into());
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn into_replaced(self) -> Option<Vec<u8>> {
        self.replaced
    }
}

impl<'call> Chunk<'call> {
    pub(crate) fn new(bytes: &'call [u8], last: bool) -> Self {
        Self { bytes, last }
    }

    /// What was kept of earlier chunks, and what has come since: at most 64 KiB of the latter.
    pub fn bytes(&self) -> &'call [u8] {
        self.bytes
    }

    /// Whether the body ends with it. Every body has one such chunk, which may be empty.
    pub fn is_last(&self) -> bool {
        self.last
    }
}

impl ChunkVerdict {
    /// It goes on as it is.
    pub fn pass() -> Self {
        Self::Pass
    }

    /// These bytes go on in its place.
    pub fn replace(data: impl Into<Vec<u8>>) -> Replacement {
        Replacement { data: data.into(), again: 0 }
    }

    /// Nothing goes on in its place.
    pub fn drop() -> Self {
        Self::replace(Vec::new()).into()
    }

    /// It is kept, and shown again at the beginning of the next chunk, up to the limit `body`. The last chunk goes on
    /// instead.
    ///
    /// Of what is long, the host gathers some more before it shows it again.
    pub fn hold() -> Self {
        Self::Hold
    }
}

impl Replacement {
    /// Has the last so many bytes of the chunk shown again, at the beginning of the next one: what may be the first half of
    /// something. They go on only if a later verdict lets them. Of no meaning for the last chunk.
    pub fn again(mut self, bytes: usize) -> Self {
        self.again = bytes;
        self
    }

    pub(crate) fn into_parts(self) -> (Vec<u8>, usize) {
        (self.data, self.again)
    }
}

impl From<Replacement> for ChunkVerdict {
    fn from(replacement: Replacement) -> Self {
        Self::Replace(replacement)
    }
}
