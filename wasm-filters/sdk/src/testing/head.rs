//! The heads of a request and its response in memory, with the host's rules.

use std::cell::{Cell, RefCell};

use crate::{
    field,
    raw::beamline::edge::http::{Field, HeadSnapshot, HeaderError, ResponseSnapshot},
};

/// A request's head that behaves as the host's does.
#[derive(Clone, Debug, Default)]
pub struct Head {
    method: String,
    path: String,
    query: Option<String>,
    host: String,
    fields: Fields,
}

/// A response's head that behaves as the host's does.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    status: Cell<u16>,
    fields: Fields,
}

/// The fields of either.
#[derive(Clone, Debug, Default)]
struct Fields(RefCell<Vec<Field>>);

/// The most field lines of a head, and the most bytes of their names and values.
const MAX_FIELDS: usize = 100;
const MAX_BYTES: usize = 64 << 10;

impl Head {
    pub(super) fn new(method: &str, target: &str) -> Self {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.map(str::to_owned),
            host: "example.test".to_owned(),
            fields: Fields::default(),
        }
    }

    pub(super) fn with_host(self, host: &str) -> Self {
        Self { host: host.to_ascii_lowercase(), ..self }
    }

    pub(super) fn with_header(self, name: &str, value: &[u8]) -> Self {
        self.fields.came(name, value);
        self
    }

    /// The method.
    pub fn method(&self) -> String {
        self.method.clone()
    }

    /// The path, without the query.
    pub fn path(&self) -> String {
        self.path.clone()
    }

    /// What follows the `?`.
    pub fn query(&self) -> Option<String> {
        self.query.clone()
    }

    /// The host that the client named.
    pub fn host(&self) -> String {
        self.host.clone()
    }

    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.fields.get(name)
    }

    /// Every value of a field.
    pub fn get_all(&self, name: &str) -> Vec<Vec<u8>> {
        self.fields.get_all(name)
    }

    pub(crate) fn get_many(&self, names: &[&str]) -> Vec<Option<Vec<u8>>> {
        names.iter().map(|name| self.get(name)).collect()
    }

    pub(crate) fn snapshot(&self) -> HeadSnapshot {
        HeadSnapshot {
            method: self.method(),
            path: self.path(),
            query: self.query(),
            host: self.host(),
            fields: self.fields.0.borrow().clone(),
        }
    }

    pub(crate) fn set(&self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        self.fields.set(name, value)
    }

    pub(crate) fn append(&self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        self.fields.append(name, value)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), HeaderError> {
        self.fields.remove(name)
    }
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self { status: Cell::new(200), fields: Fields::default() }
    }
}

impl ResponseHead {
    pub(super) fn came_with_status(&self, status: u16) {
        self.status.set(status);
    }

    pub(super) fn came_with_header(&self, name: &str, value: &[u8]) {
        self.fields.came(name, value);
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status.get()
    }

    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.fields.get(name)
    }

    /// Every value of a field.
    pub fn get_all(&self, name: &str) -> Vec<Vec<u8>> {
        self.fields.get_all(name)
    }

    pub(crate) fn get_many(&self, names: &[&str]) -> Vec<Option<Vec<u8>>> {
        names.iter().map(|name| self.get(name)).collect()
    }

    pub(crate) fn snapshot(&self) -> ResponseSnapshot {
        ResponseSnapshot { status: self.status(), fields: self.fields.0.borrow().clone() }
    }

    pub(crate) fn set_status(&self, status: u16) -> Result<(), HeaderError> {
        if !(200..600).contains(&status) {
            return Err(HeaderError::InvalidValue);
        }
        self.status.set(status);
        Ok(())
    }

    pub(crate) fn set(&self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        self.fields.set(name, value)
    }

    pub(crate) fn append(&self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        self.fields.append(name, value)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), HeaderError> {
        self.fields.remove(name)
    }
}

impl Fields {
    /// A field as the other side sent it.
    fn came(&self, name: &str, value: &[u8]) {
        self.0.borrow_mut().push(Field { name: name.to_ascii_lowercase(), value: value.to_vec() });
    }

    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.get_all(name).into_iter().next()
    }

    fn get_all(&self, name: &str) -> Vec<Vec<u8>> {
        let fields = self.0.borrow();
        fields.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value.clone()).collect()
    }

    fn set(&self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        let field = self.checked(name, value)?;
        let mut fields = self.0.borrow_mut();
        let first = fields.iter().position(|f| f.name == field.name).unwrap_or(fields.len());
        fields.retain(|f| f.name != field.name);
        fields.insert(first, field);
        Ok(())
    }

    fn append(&self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        let field = self.checked(name, value)?;
        self.0.borrow_mut().push(field);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), HeaderError> {
        let name = checked_name(name)?;
        self.0.borrow_mut().retain(|f| f.name != name);
        Ok(())
    }

    /// The field as the host would take it.
    fn checked(&self, name: &str, value: &[u8]) -> Result<Field, HeaderError> {
        let name = checked_name(name)?;
        if value.iter().any(|b| matches!(b, 0..=8 | 10..=31 | 127)) {
            return Err(HeaderError::InvalidValue);
        }
        let fields = self.0.borrow();
        let bytes: usize = fields.iter().map(|f| f.name.len() + f.value.len()).sum();
        if fields.len() >= MAX_FIELDS || bytes + name.len() + value.len() > MAX_BYTES {
            return Err(HeaderError::TooLarge);
        }
        Ok(Field { name, value: value.to_vec() })
    }
}

/// A name that the host would take, in lower case (RFC 9110, section 5.6.2).
fn checked_name(name: &str) -> Result<String, HeaderError> {
    if !field::is_token(name) {
        return Err(HeaderError::InvalidName);
    }
    let name = name.to_ascii_lowercase();
    if field::HOSTS.contains(&&*name) {
        return Err(HeaderError::Forbidden);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_change_leaves_the_head_as_it_was() {
        let head = Head::new("GET", "/").with_header("X-Plan", b"pro");
        assert_eq!(head.set("x plan", b"free"), Err(HeaderError::InvalidName));
        assert_eq!(head.set("x-plan", b"free\r\nx-admin: 1"), Err(HeaderError::InvalidValue));
        assert_eq!(head.append("Transfer-Encoding", b"chunked"), Err(HeaderError::Forbidden));
        assert_eq!(head.remove("x-forwarded-for"), Err(HeaderError::Forbidden));
        assert_eq!(head.get("x-plan"), Some(b"pro".to_vec()));
        assert_eq!(head.snapshot().fields.len(), 1);
    }

    #[test]
    fn set_replaces_every_value_and_append_adds_one() {
        let head = Head::new("GET", "/").with_header("x-a", b"1").with_header("x-a", b"2");
        head.append("X-A", b"3").unwrap();
        assert_eq!(head.get_all("x-a").len(), 3);
        head.set("X-A", b"4").unwrap();
        assert_eq!(head.get_all("x-a"), [b"4"]);
        head.remove("x-A").unwrap();
        assert_eq!(head.get_many(&["x-a", "x-b"]), [None, None]);
    }

    #[test]
    fn a_head_stays_within_its_limits() {
        let head = Head::new("GET", "/");
        assert_eq!(head.set("x-big", &vec![b'a'; MAX_BYTES]), Err(HeaderError::TooLarge));
        for _ in 0..MAX_FIELDS {
            head.append("x-a", b"1").unwrap();
        }
        assert_eq!(head.append("x-a", b"1"), Err(HeaderError::TooLarge));
    }
}
