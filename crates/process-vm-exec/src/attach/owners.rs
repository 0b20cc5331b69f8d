//! Whose things calls in a live process mean.

/// Whose descriptors, directory or signal handlers the calls in a live process mean: see
/// [`LiveProcessBuilder::files`](crate::LiveProcessBuilder::files) and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The calling process's, as a system call of its own would.
    Caller,
    /// The target's: shared with it, so that what the call changes, changes there.
    Target,
}

/// Whether what the caller has open may come where others can take it: see [`LiveProcessBuilder::exposure`](crate::LiveProcessBuilder::exposure).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// It is not passed to a process that has fewer rights.
    Refused,
    /// It is passed to any.
    Allowed,
}

/// Whose things calls in a live process mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owners {
    pub(crate) files: Owner,
    pub(crate) directory: Owner,
    pub(crate) handlers: Owner,
    pub(crate) exposure: Exposure,
}

impl Default for Owners {
    fn default() -> Self {
        let callers = Owner::Caller;
        Self { files: callers, directory: callers, handlers: callers, exposure: Exposure::Refused }
    }
}

impl Owners {
    /// What of the target an executor shares besides memory: flags of clone(2).
    pub(crate) fn shared(self) -> libc::c_int {
        let flag = |owner, flag| if owner == Owner::Target { flag } else { 0 };
        flag(self.files, libc::CLONE_FILES)
            | flag(self.directory, libc::CLONE_FS)
            | flag(self.handlers, libc::CLONE_SIGHAND)
    }
}
