//! The hub: sessions, router, certificate authority, front door.
