//! A hub, agents that do as they are told, and real proxies between them, all on loopback.

pub mod across;
pub mod api;
pub mod client;
pub mod crowd;
pub mod emulator;
pub mod fleet;
pub mod gate;
pub mod middle;
pub mod recorder;
pub mod site;
pub mod world;

/// Far more than anything here takes; a scene that takes longer has failed.
pub const LONG: std::time::Duration = std::time::Duration::from_secs(90);
