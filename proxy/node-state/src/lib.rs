//! healthy, degraded or draining: one state machine and the watch that everything reads.
