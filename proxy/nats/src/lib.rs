//! NATS connections: subjects and grants now, accounts, reconnects and acks later.
