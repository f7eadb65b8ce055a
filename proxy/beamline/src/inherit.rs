//! Listening sockets that were made outside: by a service manager or a predecessor (`LISTEN_FDS`).

use anyhow::Context as _;
use beamline_dataplane::Listener;

/// The name of the admin API's socket in `LISTEN_FDNAMES`.
const ADMIN: &str = "admin";

/// What came from outside.
#[derive(Default)]
pub(crate) struct Inherited {
    /// Sockets for tenants' traffic.
    pub(crate) data: Vec<Listener>,
    /// The admin API's socket.
    pub(crate) admin: Option<Listener>,
}

/// Takes the sockets that `LISTEN_FDS` announces to this process. Call once, before descriptors are opened.
pub(crate) fn sockets() -> anyhow::Result<Inherited> {
    let announced =
        sd_listen_fds::get().context("LISTEN_FDS is set, but its descriptors cannot be taken over")?;
    let mut inherited = Inherited::default();
    for (name, fd) in announced {
        let listener = Listener::inherit(fd.into_std())?;
        if name.as_deref() == Some(ADMIN) {
            inherited.admin = Some(listener);
        } else {
            inherited.data.push(listener);
        }
    }
    Ok(inherited)
}
