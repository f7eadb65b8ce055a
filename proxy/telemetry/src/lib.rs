//! The Transaction record, JSON Lines and OTLP traces.
