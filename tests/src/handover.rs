//! Listening sockets that outlive the nodes that serve them, handed over as a service manager does (`LISTEN_FDS`).
//!
//! `shim/with_sockets.c` is started in the binary's place, takes the sockets from here and becomes the binary.
//!
//! ```no_run
//! # use beamline_tests::{beamline::{Beamline, Options}, handover::Handover, ports::Port};
//! # fn main() -> anyhow::Result<()> {
//! let port = Port::reserve()?;
//! let sockets = Handover::of(vec![std::net::TcpListener::bind(port.address())?.into()], None)?;
//! let mut node = Beamline::prepare(Options::default())?;
//! sockets.give_to(&mut node)?;
//! node.launch()?; // serves on `port`, as each other node does that has these sockets
//! # Ok(())
//! # }
//! ```

use std::{
    io::{IoSlice, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::JoinHandle,
};

use anyhow::{Context, Result, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

use crate::{
    beamline::{Beamline, binary},
    tools,
};

/// The most sockets of one handover.
const MOST: usize = 8;

/// Sockets that any number of nodes can be started with. Its own handles on them go with this.
pub struct Handover {
    sockets: Arc<Vec<OwnedFd>>,
    names: Option<String>,
    channel: UnixListener,
    giving: Option<JoinHandle<()>>,
    folder: TempDir,
}

impl Handover {
    /// Of these sockets in this order, with what `LISTEN_FDNAMES` is to say (names with `:` between), or without it.
    ///
    /// # Errors
    /// Where there is no C compiler, or there are no sockets or more than 8.
    pub fn of(sockets: Vec<OwnedFd>, names: Option<&str>) -> Result<Self> {
        ensure!((1..=MOST).contains(&sockets.len()), "expected 1 to {MOST} sockets; found {}", sockets.len());
        let folder = tempfile::Builder::new().prefix("handover-").tempdir()?;
        build(&folder.path().join("with_sockets"))?;
        let channel = UnixListener::bind(folder.path().join("sockets"))?;
        let (sockets, accepting) = (Arc::new(sockets), channel.try_clone()?);
        let for_thread = Arc::clone(&sockets);
        let giving = std::thread::Builder::new().name("handover".into()).spawn(move || {
            // Ends when the listener is shut down.
            while let Ok((stream, _)) = accepting.accept() {
                // A shim that did not get its sockets says so and ends; the node's start then fails.
                let _ = give(&stream, &for_thread);
            }
        })?;
        Ok(Self { sockets, names: names.map(str::to_owned), channel, giving: Some(giving), folder })
    }

    /// From now on this node starts with the sockets.
    ///
    /// # Errors
    /// Where the binary isn't there.
    pub fn give_to(&self, node: &mut Beamline) -> Result<()> {
        let options = node.options_mut();
        let run = options.binary.clone().map_or_else(binary, Ok)?.canonicalize()?;
        let mut set = |name: &str, value: &Path| options.environment.push((name.into(), value.into()));
        set("WITH_SOCKETS_RUN", &run);
        set("WITH_SOCKETS_FROM", &self.folder.path().join("sockets"));
        if let Some(names) = &self.names {
            set("LISTEN_FDNAMES", Path::new(names));
        }
        options.binary = Some(self.folder.path().join("with_sockets"));
        Ok(())
    }

    /// The sockets themselves.
    pub fn sockets(&self) -> &[OwnedFd] {
        &self.sockets
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Both);
        if let Some(giving) = self.giving.take() {
            let _ = giving.join();
        }
    }
}

/// Sends the descriptors and waits until they are taken.
fn give(mut stream: &UnixStream, sockets: &[OwnedFd]) -> Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(OwnedFd::as_fd).collect();
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&borrowed)), "there is room for {MOST} descriptors");
    sendmsg(stream, &[IoSlice::new(b"!")], &mut control, SendFlags::NOSIGNAL)?;
    let _ = stream.read(&mut [0])?;
    Ok(())
}

fn build(shim: &PathBuf) -> Result<()> {
    tools::require(&["cc"])?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/with_sockets.c");
    let output = Command::new("cc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(shim)
        .arg(&source)
        .output()
        .context("cannot run cc")?;
    ensure!(
        output.status.success(),
        "cc could not build {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
