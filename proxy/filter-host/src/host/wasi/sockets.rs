//! `wasi:sockets`: no socket is made and no name looked up. What a filter wants of the network is `beamline:edge/outbound`.

use wasmtime::component::{ComponentType, Lift, Linker, Lower, Resource};

use super::{Interface, Running, io::Failed};

/// The network, which leads nowhere.
enum Network {}

/// A TCP socket: nobody has one.
pub(super) enum Tcp {}

/// A UDP socket: nobody has one.
pub(super) enum Udp {}

/// The addresses of a name: nobody has any.
pub(super) enum Addresses {}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "a module's type is compared with all of it; a guest is told one")]
enum ErrorCode {
    #[component(name = "unknown")]
    Unknown,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "not-supported")]
    NotSupported,
    #[component(name = "invalid-argument")]
    InvalidArgument,
    #[component(name = "out-of-memory")]
    OutOfMemory,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "concurrency-conflict")]
    ConcurrencyConflict,
    #[component(name = "not-in-progress")]
    NotInProgress,
    #[component(name = "would-block")]
    WouldBlock,
    #[component(name = "invalid-state")]
    InvalidState,
    #[component(name = "new-socket-limit")]
    NewSocketLimit,
    #[component(name = "address-not-bindable")]
    AddressNotBindable,
    #[component(name = "address-in-use")]
    AddressInUse,
    #[component(name = "remote-unreachable")]
    RemoteUnreachable,
    #[component(name = "connection-refused")]
    ConnectionRefused,
    #[component(name = "connection-reset")]
    ConnectionReset,
    #[component(name = "connection-aborted")]
    ConnectionAborted,
    #[component(name = "datagram-too-large")]
    DatagramTooLarge,
    #[component(name = "name-unresolvable")]
    NameUnresolvable,
    #[component(name = "temporary-resolver-failure")]
    TemporaryResolverFailure,
    #[component(name = "permanent-resolver-failure")]
    PermanentResolverFailure,
}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[expect(
    dead_code,
    reason = "a module's type is compared with it; which one a guest asks for is all the same"
)]
enum AddressFamily {
    #[component(name = "ipv4")]
    Ipv4,
    #[component(name = "ipv6")]
    Ipv6,
}

fn denied<T>() -> (Result<Resource<T>, ErrorCode>,) {
    (Err(ErrorCode::AccessDenied),)
}

pub(super) fn link(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    let mut network = Interface::of(linker, "wasi:sockets/network")?;
    network.resource::<Network>("network")?;
    // Of an error, of which there is none. Typed, as all that takes no handle first: see `absent`.
    network.function("network-error-code", |_, (_,): (Resource<Failed>,)| Ok((None::<ErrorCode>,)))?;
    Interface::of(linker, "wasi:sockets/instance-network")?
        .function("instance-network", |_, ()| Ok((Resource::<Network>::new_own(0),)))?;
    Interface::of(linker, "wasi:sockets/tcp-create-socket")?
        .function("create-tcp-socket", |_, (_,): (AddressFamily,)| Ok(denied::<Tcp>()))?;
    Interface::of(linker, "wasi:sockets/udp-create-socket")?
        .function("create-udp-socket", |_, (_,): (AddressFamily,)| Ok(denied::<Udp>()))?;
    Interface::of(linker, "wasi:sockets/ip-name-lookup")?
        .function("resolve-addresses", |_, (_, _): (Resource<Network>, String)| Ok(denied::<Addresses>()))
}
