//! Clusters: endpoints, per-worker pools, breakers; HTTP/1.1 upstreams.
