//! A small embeddable Kubernetes-style API server over a revisioned store.
