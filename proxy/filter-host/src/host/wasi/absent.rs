//! What there is none of: files, terminals, sockets. Nothing gives a guest a handle of these, so a function that takes one ends
//! the call.

use wasmtime::component::{ComponentType, Lift, Linker, Lower, Resource};

use super::{
    Interface, Running,
    io::Failed,
    sockets::{Addresses, Tcp, Udp},
};

/// A file or folder: nobody has one.
enum Descriptor {}

/// The entries of a folder: nobody has any.
enum Entries {}

/// A terminal that is read from: nobody has one.
enum TerminalInput {}

/// A terminal that is written to: nobody has one.
enum TerminalOutput {}

/// Datagrams that come in: nobody has any.
enum Incoming {}

/// Datagrams that go out: nobody has any.
enum Outgoing {}

pub(super) fn link(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    terminals(linker)?;
    files(linker)?;
    sockets(linker)
}

fn terminals(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    Interface::of(linker, "wasi:cli/terminal-input")?.resource::<TerminalInput>("terminal-input")?;
    Interface::of(linker, "wasi:cli/terminal-output")?.resource::<TerminalOutput>("terminal-output")?;
    Interface::of(linker, "wasi:cli/terminal-stdin")?
        .function("get-terminal-stdin", |_, ()| Ok((None::<Resource<TerminalInput>>,)))?;
    Interface::of(linker, "wasi:cli/terminal-stdout")?
        .function("get-terminal-stdout", |_, ()| Ok((None::<Resource<TerminalOutput>>,)))?;
    Interface::of(linker, "wasi:cli/terminal-stderr")?
        .function("get-terminal-stderr", |_, ()| Ok((None::<Resource<TerminalOutput>>,)))
}

fn files(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    Interface::of(linker, "wasi:filesystem/preopens")?
        .function("get-directories", |_, ()| Ok((Vec::<(Resource<Descriptor>, String)>::new(),)))?;
    let mut types = Interface::of(linker, "wasi:filesystem/types")?;
    types.resource::<Descriptor>("descriptor")?;
    types.resource::<Entries>("directory-entry-stream")?;
    types.absent(&[
        "[method]descriptor.read-via-stream",
        "[method]descriptor.write-via-stream",
        "[method]descriptor.append-via-stream",
        "[method]descriptor.advise",
        "[method]descriptor.sync-data",
        "[method]descriptor.get-flags",
        "[method]descriptor.get-type",
        "[method]descriptor.set-size",
        "[method]descriptor.set-times",
        "[method]descriptor.read",
        "[method]descriptor.write",
        "[method]descriptor.read-directory",
        "[method]descriptor.sync",
        "[method]descriptor.create-directory-at",
        "[method]descriptor.stat",
        "[method]descriptor.stat-at",
        "[method]descriptor.set-times-at",
        "[method]descriptor.link-at",
        "[method]descriptor.open-at",
        "[method]descriptor.readlink-at",
        "[method]descriptor.remove-directory-at",
        "[method]descriptor.rename-at",
        "[method]descriptor.symlink-at",
        "[method]descriptor.unlink-file-at",
        "[method]descriptor.is-same-object",
        "[method]descriptor.metadata-hash",
        "[method]descriptor.metadata-hash-at",
        "[method]directory-entry-stream.read-directory-entry",
    ])?;
    // Of an error, of which there is none either: no stream fails.
    types.function("filesystem-error-code", |_, (_,): (Resource<Failed>,)| Ok((None::<ErrorCode>,)))
}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "a module's type is compared with it; nobody is told one")]
enum ErrorCode {
    #[component(name = "access")]
    Access,
    #[component(name = "would-block")]
    WouldBlock,
    #[component(name = "already")]
    Already,
    #[component(name = "bad-descriptor")]
    BadDescriptor,
    #[component(name = "busy")]
    Busy,
    #[component(name = "deadlock")]
    Deadlock,
    #[component(name = "quota")]
    Quota,
    #[component(name = "exist")]
    Exist,
    #[component(name = "file-too-large")]
    FileTooLarge,
    #[component(name = "illegal-byte-sequence")]
    IllegalByteSequence,
    #[component(name = "in-progress")]
    InProgress,
    #[component(name = "interrupted")]
    Interrupted,
    #[component(name = "invalid")]
    Invalid,
    #[component(name = "io")]
    Io,
    #[component(name = "is-directory")]
    IsDirectory,
    #[component(name = "loop")]
    Loop,
    #[component(name = "too-many-links")]
    TooManyLinks,
    #[component(name = "message-size")]
    MessageSize,
    #[component(name = "name-too-long")]
    NameTooLong,
    #[component(name = "no-device")]
    NoDevice,
    #[component(name = "no-entry")]
    NoEntry,
    #[component(name = "no-lock")]
    NoLock,
    #[component(name = "insufficient-memory")]
    InsufficientMemory,
    #[component(name = "insufficient-space")]
    InsufficientSpace,
    #[component(name = "not-directory")]
    NotDirectory,
    #[component(name = "not-empty")]
    NotEmpty,
    #[component(name = "not-recoverable")]
    NotRecoverable,
    #[component(name = "unsupported")]
    Unsupported,
    #[component(name = "no-tty")]
    NoTty,
    #[component(name = "no-such-device")]
    NoSuchDevice,
    #[component(name = "overflow")]
    Overflow,
    #[component(name = "not-permitted")]
    NotPermitted,
    #[component(name = "pipe")]
    Pipe,
    #[component(name = "read-only")]
    ReadOnly,
    #[component(name = "invalid-seek")]
    InvalidSeek,
    #[component(name = "text-file-busy")]
    TextFileBusy,
    #[component(name = "cross-device")]
    CrossDevice,
}

fn sockets(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    let mut lookup = Interface::of(linker, "wasi:sockets/ip-name-lookup")?;
    lookup.resource::<Addresses>("resolve-address-stream")?;
    lookup.absent(&[
        "[method]resolve-address-stream.resolve-next-address",
        "[method]resolve-address-stream.subscribe",
    ])?;
    let mut tcp = Interface::of(linker, "wasi:sockets/tcp")?;
    tcp.resource::<Tcp>("tcp-socket")?;
    tcp.absent(&[
        "[method]tcp-socket.start-bind",
        "[method]tcp-socket.finish-bind",
        "[method]tcp-socket.start-connect",
        "[method]tcp-socket.finish-connect",
        "[method]tcp-socket.start-listen",
        "[method]tcp-socket.finish-listen",
        "[method]tcp-socket.accept",
        "[method]tcp-socket.local-address",
        "[method]tcp-socket.remote-address",
        "[method]tcp-socket.is-listening",
        "[method]tcp-socket.address-family",
        "[method]tcp-socket.set-listen-backlog-size",
        "[method]tcp-socket.keep-alive-enabled",
        "[method]tcp-socket.set-keep-alive-enabled",
        "[method]tcp-socket.keep-alive-idle-time",
        "[method]tcp-socket.set-keep-alive-idle-time",
        "[method]tcp-socket.keep-alive-interval",
        "[method]tcp-socket.set-keep-alive-interval",
        "[method]tcp-socket.keep-alive-count",
        "[method]tcp-socket.set-keep-alive-count",
        "[method]tcp-socket.hop-limit",
        "[method]tcp-socket.set-hop-limit",
        "[method]tcp-socket.receive-buffer-size",
        "[method]tcp-socket.set-receive-buffer-size",
        "[method]tcp-socket.send-buffer-size",
        "[method]tcp-socket.set-send-buffer-size",
        "[method]tcp-socket.subscribe",
        "[method]tcp-socket.shutdown",
    ])?;
    let mut udp = Interface::of(linker, "wasi:sockets/udp")?;
    udp.resource::<Udp>("udp-socket")?;
    udp.resource::<Incoming>("incoming-datagram-stream")?;
    udp.resource::<Outgoing>("outgoing-datagram-stream")?;
    udp.absent(&[
        "[method]udp-socket.start-bind",
        "[method]udp-socket.finish-bind",
        "[method]udp-socket.stream",
        "[method]udp-socket.local-address",
        "[method]udp-socket.remote-address",
        "[method]udp-socket.address-family",
        "[method]udp-socket.unicast-hop-limit",
        "[method]udp-socket.set-unicast-hop-limit",
        "[method]udp-socket.receive-buffer-size",
        "[method]udp-socket.set-receive-buffer-size",
        "[method]udp-socket.send-buffer-size",
        "[method]udp-socket.set-send-buffer-size",
        "[method]udp-socket.subscribe",
        "[method]incoming-datagram-stream.receive",
        "[method]incoming-datagram-stream.subscribe",
        "[method]outgoing-datagram-stream.check-send",
        "[method]outgoing-datagram-stream.send",
        "[method]outgoing-datagram-stream.subscribe",
    ])
}
