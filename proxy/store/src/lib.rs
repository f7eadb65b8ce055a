//! The control-plane store: one trait, embedded in SQLite.
