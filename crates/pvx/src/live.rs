//! The one way into a live process: all that `pvx` does there begins with [`attach`].

use std::{fmt, os::fd::AsFd};

use process_vm_exec::{
    Call, DescriptorError, Errno, Error, LiveProcess, LiveProcessBuilder, Mapping, Protection, Returned,
    Space,
};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

/// A process as it is named on a command line.
pub(crate) fn pid(word: &str) -> Result<i32, String> {
    word.parse().map_err(|_| "a process is named by its number, as `ps` lists it".to_owned())
}

/// What is needed to look at any process.
///
/// # Errors
/// If it is not there.
pub(crate) fn require_proc() -> anyhow::Result<()> {
    let is_there = std::path::Path::new("/proc/self/status").exists();
    anyhow::ensure!(is_there, "/proc is needed and is not there; mount it: mount -t proc proc /proc");
    Ok(())
}

/// Why a process cannot be attached to, and what to do about it, in one line.
#[derive(Debug)]
pub(crate) struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Puts an executor into the process `pid`, as `builder` says; [`leave`] takes it out again.
pub(crate) fn attach(pid: i32, builder: LiveProcessBuilder) -> Result<LiveProcess, Refusal> {
    require_proc().map_err(|error| Refusal(error.to_string()))?;
    let number = Pid::from_raw(pid.max(0));
    let number =
        number.ok_or_else(|| Refusal(format!("{pid} is no process; a process has a number from 1 on")))?;
    if number == getpid() {
        return Err(Refusal(format!("process {pid} is pvx itself; name another one")));
    }
    let target = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| {
        Refusal(match errno {
            Errno::SRCH => format!("there is no process {pid}; `ps` lists those that are there"),
            // What pidfd_open(2) says of threads that lead no process.
            Errno::INVAL | Errno::NOENT => format!("{pid} is a thread; name its process"),
            errno => format!("process {pid} cannot be opened: {errno}"),
        })
    })?;
    builder.attach(target.as_fd()).map_err(|error| match error {
        error @ Error::Attach { .. } => Refusal(error.to_string()),
        error @ Error::Exposed { .. } => {
            Refusal(format!("cannot attach to process {pid}: {}", explain(&error)))
        }
        error => Refusal(format!("cannot attach to process {pid}: {error}")),
    })
}

/// An error of the library's, with what to do about it here.
pub(crate) fn explain(error: &Error) -> String {
    match error {
        Error::Exposed { what, pid, uid } => format!(
            "pvx's {what} is not passed to process {pid}, whose user (uid {uid}) could take it there; use the process's \
             own (--files target, --directory target), or allow it (--expose)"
        ),
        Error::Descriptor { call, why: DescriptorError::Closes } => {
            format!("{call} would close descriptors of pvx's own; use the process's (--files target)")
        }
        error => error.to_string(),
    }
}

/// Where calls can be made: in a process, or, in tests, in a created space that stands for one.
pub(crate) trait Calls: std::ops::Deref<Target = Space> {
    /// Makes several calls, each whatever the results of those before.
    fn make(&self, calls: &[Call<'_>]) -> process_vm_exec::Result<Vec<Result<u64, Errno>>>;
}

impl Calls for LiveProcess {
    fn make(&self, calls: &[Call<'_>]) -> process_vm_exec::Result<Vec<Result<u64, Errno>>> {
        let results = self.batch(calls)?;
        // Descriptors that are pvx's now end with it.
        Ok(results.into_iter().map(|result| result.map(Returned::into_number)).collect())
    }
}

#[cfg(test)]
impl Calls for process_vm_exec::AddressSpace {
    fn make(&self, calls: &[Call<'_>]) -> process_vm_exec::Result<Vec<Result<u64, Errno>>> {
        self.batch(calls)
    }
}

/// Takes the executor out again, and waits for that: whoever looks at the process once pvx has ended, or attaches to it
/// next, finds nothing. Dropping the space would leave it to somebody else, a little later.
pub(crate) fn leave(process: LiveProcess) {
    // It can only fail because the process is gone, and all of ours with it.
    let _ = process.detach();
}

/// Has `len` bytes of zeroes in the space as long as `work` lasts; nothing for none. They go with the executor if pvx is
/// killed, unless they are so many that they have to be mapped.
pub(crate) fn with_scratch<T>(
    space: &Space,
    len: u64,
    work: impl FnOnce(u64) -> process_vm_exec::Result<T>,
) -> process_vm_exec::Result<T> {
    if len == 0 {
        return work(0);
    }
    match space.scratch(len) {
        Err(Error::TooMany(_)) => {}
        scratch => return work(scratch?.addr()),
    }
    let scratch = space.map(Mapping::anonymous(len, Protection::READ | Protection::WRITE))?;
    let done = work(scratch);
    let unmapped = space.unmap(scratch, len);
    let value = done?;
    unmapped.map(|()| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(pid: i32) -> String {
        attach(pid, LiveProcess::builder()).expect_err("it cannot be attached to").to_string()
    }

    #[test]
    fn a_process_is_named_by_a_number() {
        assert_eq!(pid("12"), Ok(12));
        assert!(pid("abc").is_err_and(|why| why.contains("number")));
    }

    #[test]
    fn pvx_itself_is_no_target_and_gets_no_advice_for_authors_of_programs() {
        let own = std::process::id();
        assert_eq!(refusal(own.cast_signed()), format!("process {own} is pvx itself; name another one"));
    }

    #[test]
    fn what_is_no_process_is_told_before_anything_is_touched() {
        // The kernel's limit for numbers of processes is 2^22 (proc(5), pid_max).
        assert!(refusal(i32::MAX).contains("there is no process"));
        assert!(refusal(0).contains("is no process"));
        assert!(refusal(-1).contains("is no process"));
    }
}
