//! The admin API: authenticates, calls control and queue, decides nothing.
