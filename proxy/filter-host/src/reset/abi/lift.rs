//! From the guest's memory to values.

use wasmtime::{Result, bail};

use crate::call::MAX_HANDED_OVER;

/// Reads values out of a guest's memory, all of which is untrusted.
pub(crate) struct Lift<'m> {
    memory: &'m [u8],
    /// Bytes that may still be copied, repeated parts counted each time.
    fuel: usize,
}

impl<'m> Lift<'m> {
    pub(crate) fn new(memory: &'m [u8]) -> Self {
        Self { memory, fuel: MAX_HANDED_OVER }
    }

    fn spend(&mut self, count: usize, size: usize) -> Result<()> {
        match count.checked_mul(size).and_then(|bytes| self.fuel.checked_sub(bytes)) {
            Some(left) => self.fuel = left,
            None => bail!(
                "too much data is being copied between the host and the guest: \
                 fuel allocated for hostcalls has been exhausted"
            ),
        }
        Ok(())
    }

    fn slice(&self, ptr: u32, bytes: Option<usize>) -> Option<&'m [u8]> {
        self.memory.get(ptr as usize..)?.get(..bytes?)
    }

    /// A `string`.
    pub(crate) fn string(&mut self, ptr: u32, len: u32) -> Result<&'m str> {
        let Some(bytes) = self.slice(ptr, Some(len as usize)) else {
            bail!("string pointer/length out of bounds of memory")
        };
        self.spend(bytes.len(), 1)?;
        Ok(std::str::from_utf8(bytes)?)
    }

    /// A `list<u8>`.
    pub(crate) fn bytes(&mut self, ptr: u32, len: u32) -> Result<&'m [u8]> {
        let Some(bytes) = self.slice(ptr, Some(len as usize)) else {
            bail!("list pointer/length out of bounds of memory")
        };
        self.spend(bytes.len(), 1)?;
        Ok(bytes)
    }

    /// The elements of a list whose elements are records of `size` bytes, aligned to `align`; `cost` is what one
    /// takes of the host.
    pub(crate) fn list(
        &mut self,
        ptr: u32,
        len: u32,
        (size, align): (usize, u32),
        cost: usize,
    ) -> Result<impl ExactSizeIterator<Item = Record<'m>> + use<'m>> {
        let Some(bytes) = self.slice(ptr, (len as usize).checked_mul(size)) else {
            bail!("list pointer/length out of bounds of memory")
        };
        self.spend(len as usize, cost)?;
        if !ptr.is_multiple_of(align) {
            bail!("list pointer is not aligned")
        }
        Ok(bytes.chunks_exact(size).map(Record))
    }

    /// What a function returned in memory: a record of `size` bytes, aligned to `align`.
    pub(crate) fn returned(&self, ptr: u32, (size, align): (usize, u32)) -> Result<Record<'m>> {
        if !ptr.is_multiple_of(align) {
            bail!("return pointer not aligned")
        }
        let Some(bytes) = self.slice(ptr, Some(size)) else { bail!("pointer out of bounds of memory") };
        Ok(Record(bytes))
    }

    /// The `string` that a record holds at `at`.
    pub(crate) fn string_at(&mut self, record: Record<'m>, at: usize) -> Result<&'m str> {
        self.string(record.u32(at), record.u32(at + 4))
    }

    /// The `list<u8>` that a record holds at `at`.
    pub(crate) fn bytes_at(&mut self, record: Record<'m>, at: usize) -> Result<&'m [u8]> {
        self.bytes(record.u32(at), record.u32(at + 4))
    }
}

/// A record in the guest's memory; offsets are the layout's, never the guest's.
#[derive(Clone, Copy)]
pub(crate) struct Record<'m>(&'m [u8]);

impl<'m> Record<'m> {
    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        *self.0[at..].first_chunk().expect("an offset within the record's layout")
    }

    pub(crate) fn u8(self, at: usize) -> u8 {
        self.array::<1>(at)[0]
    }

    pub(crate) fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(crate) fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    /// The rest of the record from `at` on.
    pub(crate) fn from(self, at: usize) -> Self {
        Self(&self.0[at..])
    }

    /// An `option` whose discriminant is at `at`: the payload is read where there is one.
    pub(crate) fn option<T>(self, at: usize, some: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        flat_option(self.u8(at).into(), some)
    }
}

/// An `option` among a function's arguments: the payload is read where there is one.
pub(crate) fn flat_option<T>(discriminant: u32, some: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    match discriminant {
        0 => Ok(None),
        1 => some().map(Some),
        _ => bail!("invalid option discriminant"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<T>(result: Result<T>) -> String {
        result.err().expect("refused").to_string()
    }

    #[test]
    fn whatever_points_beyond_the_memory_is_refused() {
        let memory = [b'a'; 100];
        let mut lift = Lift::new(&memory);
        assert_eq!(lift.string(96, 4).unwrap(), "aaaa");
        assert_eq!(lift.bytes(100, 0).unwrap(), b"");
        for (ptr, len) in [(97, 4), (100, 1), (101, 0), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX)] {
            assert_eq!(words(lift.string(ptr, len)), "string pointer/length out of bounds of memory");
            assert_eq!(words(lift.bytes(ptr, len)), "list pointer/length out of bounds of memory");
            let list = lift.list(ptr & !3, len.max(1), (16, 4), 1);
            assert_eq!(words(list), "list pointer/length out of bounds of memory");
        }
        assert_eq!(lift.list(4, 6, (16, 4), 1).unwrap().len(), 6);
        assert_eq!(words(lift.list(2, 1, (16, 4), 1)), "list pointer is not aligned");
        assert_eq!(words(lift.returned(4, (64, 8))), "return pointer not aligned");
        assert_eq!(words(lift.returned(40, (64, 8))), "pointer out of bounds of memory");
        assert!(lift.returned(32, (64, 8)).is_ok());
    }

    #[test]
    fn strings_are_utf_8() {
        let mut lift = Lift::new(b"a\xffb");
        assert!(lift.string(0, 1).is_ok());
        assert!(lift.string(0, 3).is_err());
    }

    #[test]
    fn parts_that_a_guest_names_again_and_again_are_counted_each_time() {
        let memory = vec![b'a'; 1 << 20];
        let mut lift = Lift::new(&memory);
        for _ in 0..MAX_HANDED_OVER >> 20 {
            lift.string(0, 1 << 20).unwrap();
        }
        assert!(words(lift.string(0, 1)).starts_with("too much data"));
        assert!(words(Lift::new(&memory).list(0, 1 << 16, (16, 4), 1 << 12)).starts_with("too much data"));
    }

    #[test]
    fn an_option_is_none_or_some() {
        for (byte, read) in [(0, Some(None)), (1, Some(Some(7))), (2, None)] {
            let memory = [byte];
            let record = Lift::new(&memory).returned(0, (1, 1)).unwrap();
            assert_eq!(record.option(0, || Ok(7)).ok(), read);
        }
    }
}
