// SPDX-License-Identifier: GPL-2.0-only

//! Copies from and to the memory that the task has at the time.

use core::mem::{size_of, size_of_val};
use kernel::{
    bindings,
    error::{code::EFAULT, Result},
};

/// Types that any bytes make a valid value of, and whose bytes are all initialised.
///
/// # Safety
///
/// That is so: no padding, no invariants. They consist of words of 8 bytes.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: An integer.
unsafe impl Plain for u64 {}
// SAFETY: An integer in an array.
unsafe impl Plain for bindings::sigset_t {}
// SAFETY: Integers, without padding between them.
unsafe impl Plain for bindings::sigcontext_64 {}
// SAFETY: Integers, without padding between them.
unsafe impl Plain for bindings::process_vm_exec_context {}

/// Reads a value. What `to` has after an error is unspecified.
pub(crate) fn read_into<T: Plain>(from: *const T, to: &mut T) -> Result {
    // SAFETY: `to` has that many words, and any bytes make a valid `T`; the address is checked by
    // the function.
    let done = unsafe {
        bindings::process_vm_exec_read_words(
            core::ptr::from_mut(to).cast(),
            from.cast(),
            size_of::<T>() / size_of::<u64>(),
        )
    };
    done.then_some(()).ok_or(EFAULT)
}

/// Writes a value.
pub(crate) fn write<T: Plain>(to: *mut T, value: &T) -> Result {
    write_start(to, value, size_of::<T>())
}

/// Writes the first `len` bytes of a value. `len` is a multiple of 8.
pub(crate) fn write_start<T: Plain>(to: *mut T, value: &T, len: usize) -> Result {
    let words = len.min(size_of::<T>()) / size_of::<u64>();
    // SAFETY: `value` has that many words, all initialised; the address is checked by the function.
    let done = unsafe {
        bindings::process_vm_exec_write_words(to.cast(), core::ptr::from_ref(value).cast(), words)
    };
    done.then_some(()).ok_or(EFAULT)
}

/// Reads bytes.
pub(crate) fn read_bytes(from: *const u8, to: &mut [u8]) -> Result {
    // SAFETY: `to` has that many bytes; the address is checked by the function.
    let left =
        unsafe { bindings::_copy_from_user(to.as_mut_ptr().cast(), from.cast(), size_of_val(to)) };
    if left != 0 {
        return Err(EFAULT);
    }
    Ok(())
}

/// Writes bytes.
pub(crate) fn write_bytes(to: *mut u8, from: &[u8]) -> Result {
    // SAFETY: `from` has that many bytes; the address is checked by the function.
    let left =
        unsafe { bindings::_copy_to_user(to.cast(), from.as_ptr().cast(), size_of_val(from)) };
    if left != 0 {
        return Err(EFAULT);
    }
    Ok(())
}

/// Writes a `siginfo_t`.
pub(crate) fn write_siginfo(
    to: *mut bindings::siginfo_t,
    info: &bindings::kernel_siginfo_t,
) -> Result {
    // SAFETY: `info` is valid; the address is checked by the function.
    let done = unsafe { bindings::process_vm_exec_write_siginfo(to, info) };
    done.then_some(()).ok_or(EFAULT)
}
