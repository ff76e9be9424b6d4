//! A program as a Windows service: registered, removed, run. On other systems every call says that there are none.
//!
//! A crate of its own for the one place where Windows calls back into the program, which takes `unsafe` code.

#[cfg(windows)]
mod windows;

use std::{ffi::OsString, path::PathBuf};

/// What the service manager is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The service's name, as `sc` and `Start-Service` know it.
    pub name: String,
    /// Its name for people.
    pub display_name: String,
    /// What it does, in a line.
    pub description: String,
    /// The program, an absolute path.
    pub program: PathBuf,
    /// Its arguments at each start.
    pub arguments: Vec<OsString>,
}

/// Why a service could not be registered, removed or run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Not on this system.
    #[error("this system has no Windows services")]
    NotWindows,
    /// The service manager refused.
    #[error("the service manager does not {what} {name}: {why}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// With which service.
        name: String,
        /// In the system's words.
        why: String,
    },
    /// The process was not started by the service manager.
    #[error("{0} was not started by the service manager: start it with `sc start {0}`")]
    NotAService(String),
}

/// What runs until it is stopped; gives the exit code.
pub type Work = Box<dyn FnOnce() -> u32 + Send>;
/// Asks the work to end; may be called more than once, from another thread.
pub type Stop = Box<dyn Fn() + Send + Sync>;

/// Registers a service that starts with the system, as `LocalService`, and is started again 5 s after a failure.
///
/// # Errors
/// The service manager refuses, or this is not Windows.
pub fn install(registration: &Registration) -> Result<(), ServiceError> {
    #[cfg(windows)]
    return windows::install(registration);
    #[cfg(not(windows))]
    {
        let _ = registration;
        Err(ServiceError::NotWindows)
    }
}

/// Stops a service and removes it.
///
/// # Errors
/// As [`install`].
pub fn remove(name: &str) -> Result<(), ServiceError> {
    #[cfg(windows)]
    return windows::remove(name);
    #[cfg(not(windows))]
    {
        let _ = name;
        Err(ServiceError::NotWindows)
    }
}

/// Runs `work` as the service `name`: the service manager hears that it runs, and that it has ended. Returns after that.
///
/// # Errors
/// The process was not started by the service manager, or this is not Windows.
pub fn run(name: &str, work: Work, stop: Stop) -> Result<(), ServiceError> {
    #[cfg(windows)]
    return windows::run(name, work, stop);
    #[cfg(not(windows))]
    {
        let _ = (name, work, stop);
        Err(ServiceError::NotWindows)
    }
}

#[cfg(all(test, not(windows)))]
mod tests {
    use super::*;

    #[test]
    fn other_systems_say_so() {
        assert!(matches!(remove("x"), Err(ServiceError::NotWindows)));
        assert!(matches!(run("x", Box::new(|| 0), Box::new(|| ())), Err(ServiceError::NotWindows)));
    }
}
