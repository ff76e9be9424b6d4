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
pub mod watch;
pub mod world;

use anyhow::Result;
use moorline_e2e::process::Process;
use std::time::{Duration, Instant};

/// Far more than anything here takes; a scene that takes longer has failed.
pub const LONG: Duration = Duration::from_secs(90);

/// Waits for the end of a process and gives its exit code; `None` when a signal ended it. [`Process::wait`] would keep a thread
/// from what else runs on it, and that may be what the process waits for.
///
/// # Errors
/// It still runs after `limit`.
pub async fn ended(process: &mut Process, limit: Duration) -> Result<Option<i32>> {
    let begin = Instant::now();
    loop {
        match process.wait(Duration::ZERO) {
            Err(error) if limit < begin.elapsed() => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            code => return code,
        }
    }
}
