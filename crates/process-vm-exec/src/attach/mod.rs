//! Live processes: getting an executor into one that nobody prepared, and out again.

/// Whose descriptors, directory or signal handlers the calls in a live process mean: see
/// [`Builder::files`](crate::Builder::files) and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The calling process's, as a system call of its own would.
    Caller,
    /// The target's: shared with it, so that what the call changes, changes there.
    Target,
}

/// Which thread-local storage a called function finds: see [`AddressSpace::call`](crate::AddressSpace::call).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// An empty one of its own: FS base points to zeroes. Enough for code that uses none.
    Own,
    /// That of the target's main thread, which goes on using it: for functions that only read theirs, or while that
    /// thread is known to be still.
    Main,
}
