//! The degraded-mode queue: a durable log and a pure delivery scheduler.
