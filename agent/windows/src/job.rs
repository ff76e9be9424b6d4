//! All processes of a shell as one thing: bounded, and ended at once.

use crate::win::{done, own};
use std::{
    io,
    os::windows::io::{AsRawHandle, OwnedHandle},
    ptr::null,
};
use windows_sys::Win32::{
    Foundation::HANDLE,
    System::JobObjects::{
        AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_ACTIVE_PROCESS,
        JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION, JOB_OBJECT_LIMIT_JOB_MEMORY, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
        JOB_OBJECT_LIMIT_PROCESS_MEMORY, JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation,
        SetInformationJobObject, TerminateJobObject,
    },
};

/// What a shell may use.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Processes at once.
    pub processes: u32,
    /// Memory that one process may commit, in bytes.
    pub process_memory: usize,
    /// Memory that all of them may commit together, in bytes.
    pub memory: usize,
}

/// A job object. Every process that one within it starts is within it too; they end when the last handle is closed,
/// that is with the agent, however the agent ends.
pub(crate) struct Job(OwnedHandle);

impl Job {
    pub fn new(bounds: Bounds) -> io::Result<Self> {
        // SAFETY: no attributes and no name.
        let job = Self(own(unsafe { CreateJobObjectW(null(), null()) })?);
        let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_ACTIVE_PROCESS
            | JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION
            | JOB_OBJECT_LIMIT_JOB_MEMORY
            | JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
            | JOB_OBJECT_LIMIT_PROCESS_MEMORY;
        limits.BasicLimitInformation.ActiveProcessLimit = bounds.processes;
        limits.ProcessMemoryLimit = bounds.process_memory;
        limits.JobMemoryLimit = bounds.memory;
        let size = u32::try_from(size_of_val(&limits)).map_err(io::Error::other)?;
        // No limits of windows and clipboard: a job that has these cannot be within that of a container. A shell's token
        // reaches no desktop.
        let class = JobObjectExtendedLimitInformation;
        // SAFETY: the class is that of the structure.
        done(unsafe { SetInformationJobObject(job.0.as_raw_handle(), class, (&raw const limits).cast(), size) })?;
        Ok(job)
    }

    /// Takes a process in.
    pub fn take(&self, process: HANDLE) -> io::Result<()> {
        // SAFETY: both handles are open.
        done(unsafe { AssignProcessToJobObject(self.0.as_raw_handle(), process) })
    }

    /// Ends all of its processes.
    pub fn end(&self) {
        // SAFETY: the handle is open. A job without processes is one that has ended.
        unsafe { TerminateJobObject(self.0.as_raw_handle(), 1) };
    }
}
