//! Messages in the node's JSON Lines, beside the request's access record.
//!
//! ```
//! # let plan = "pro";
//! beamline_sdk::log::info!("plan {plan} goes to its own origin");
//! ```
//!
//! The host adds tenant, filter and trace id. What goes beyond the limit `log` of one call is cut and counted.

pub use crate::raw::beamline::edge::log::Level;
#[doc(inline)]
pub use crate::{__debug as debug, __error as error, __info as info, __warn as warn};

/// Writes one message. The macros of this module are shorter.
pub fn write(level: Level, message: &str) {
    crate::host::log(level, message);
}

#[doc(hidden)]
#[macro_export]
macro_rules! __write {
    ($level:ident, $($message:tt)+) => {
        $crate::log::write($crate::log::Level::$level, &::std::format!($($message)+))
    };
}

/// Logs at level `debug`, as [`format!`] formats.
#[doc(hidden)]
#[macro_export]
macro_rules! __debug {
    ($($message:tt)+) => { $crate::__write!(Debug, $($message)+) };
}

/// Logs at level `info`, as [`format!`] formats.
#[doc(hidden)]
#[macro_export]
macro_rules! __info {
    ($($message:tt)+) => { $crate::__write!(Info, $($message)+) };
}

/// Logs at level `warn`, as [`format!`] formats.
#[doc(hidden)]
#[macro_export]
macro_rules! __warn {
    ($($message:tt)+) => { $crate::__write!(Warn, $($message)+) };
}

/// Logs at level `error`, as [`format!`] formats.
#[doc(hidden)]
#[macro_export]
macro_rules! __error {
    ($($message:tt)+) => { $crate::__write!(Error, $($message)+) };
}
