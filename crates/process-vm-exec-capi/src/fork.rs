//! A pointer that a forked child does not inherit: it finds null there.
//!
//! The page is wiped in the child by the kernel (`MADV_WIPEONFORK`, madvise(2)), whoever forks: fork(3), a bare
//! clone(2), or a library. pthread_atfork(3) would see the first of them only. Looking costs one load.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use process_vm_exec::Errno;

use crate::process::Process;

/// The page, once there is one. The child inherits it, and it is empty there.
static PAGE: AtomicPtr<AtomicPtr<Process>> = AtomicPtr::new(ptr::null_mut());

/// The state of this process, if it has one yet.
pub(crate) fn current() -> Option<&'static Process> {
    let page = PAGE.load(Ordering::Acquire);
    // SAFETY: the page is null, or mapped for good and starts with the pointer. That is null, or points to a value
    // that `set` has made live for ever.
    unsafe { page.as_ref()?.load(Ordering::Acquire).as_ref() }
}

/// Makes `process` the state of this process, unless another thread was faster: then it is that one's.
///
/// # Errors
/// That of mmap(2), `ENOMEM` usually.
pub(crate) fn set(process: Box<Process>) -> Result<&'static Process, Errno> {
    let page = page()?;
    let process = Box::into_raw(process);
    match page.compare_exchange(ptr::null_mut(), process, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: it comes from a box that nobody frees now.
        Ok(_) => Ok(unsafe { &*process }),
        Err(others) => {
            // SAFETY: it has just been taken out of its box and shown to nobody; `others` is as in `current`.
            unsafe {
                drop(Box::from_raw(process));
                Ok(&*others)
            }
        }
    }
}

fn page() -> Result<&'static AtomicPtr<Process>, Errno> {
    const LEN: usize = 4096;
    let known = PAGE.load(Ordering::Acquire);
    if !known.is_null() {
        // SAFETY: as in `current`.
        return Ok(unsafe { &*known });
    }
    // SAFETY: a new anonymous mapping, at an address of the kernel's choice; full of zeroes, so a null pointer.
    let new = unsafe {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let new = libc::mmap(ptr::null_mut(), LEN, access, flags, -1, 0);
        if new == libc::MAP_FAILED || libc::madvise(new, LEN, libc::MADV_WIPEONFORK) != 0 {
            return Err(Errno::NOMEM);
        }
        new.cast::<AtomicPtr<Process>>()
    };
    match PAGE.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: nobody unmaps it.
        Ok(_) => Ok(unsafe { &*new }),
        // SAFETY: nobody has seen `new`; `others` is as in `current`.
        Err(others) => unsafe {
            libc::munmap(new.cast(), LEN);
            Ok(&*others)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_does_not_find_its_parents_state() {
        assert!(Process::current().is_ok() && current().is_some());
        // SAFETY: the child only looks, and leaves by _exit(2).
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(i32::from(current().is_some()));
            }
            let mut status = -1;
            libc::waitpid(child, &raw mut status, 0);
            status
        };
        assert_eq!(status, 0);
        assert!(current().is_some(), "the parent's is still there");
    }
}
