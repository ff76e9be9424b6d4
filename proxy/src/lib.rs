//! The HTTP data plane: one request over one stream.
