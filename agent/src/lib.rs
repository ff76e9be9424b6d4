//! The cluster agent: dials the hub and serves streams.
