//! What becomes of an error: a negative number for the caller, and words for who asks.

use std::cell::RefCell;
use std::ffi::{c_char, c_int};

use process_vm_exec::{Errno, Error};

thread_local! {
    /// The last failure of this thread.
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Why a function of the interface failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The library says so.
    Library(Error),
    /// The caller has made a mistake.
    Caller(Errno, &'static str),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

/// A pointer of the caller's is null.
pub(super) const NULL: Failure = Failure::Caller(Errno::FAULT, "a pointer is null");

/// What a function of the interface came to.
pub(super) type Outcome<T> = Result<T, Failure>;

/// The same as C has it: `value`, or a negative error number whose words are kept.
pub(super) fn result<T: From<i8>>(outcome: Outcome<T>, negative: impl Fn(c_int) -> T) -> T {
    match outcome {
        Ok(value) => value,
        Err(failure) => negative(-keep(&failure)),
    }
}

/// The same for those that return an `int`, 0 if all is well.
pub(super) fn status(outcome: Outcome<()>) -> c_int {
    match outcome {
        Ok(()) => 0,
        Err(failure) => -keep(&failure),
    }
}

/// Keeps the words; the error's number.
fn keep(failure: &Failure) -> c_int {
    let (errno, words) = match failure {
        Failure::Library(error) => (error.errno(), error.to_string()),
        Failure::Caller(errno, words) => (*errno, (*words).to_owned()),
    };
    // A thread that ends has none any more.
    let _ = LAST.try_with(|last| last.replace(words));
    errno.raw_os_error()
}

/// Copies the last failure of this thread, in words.
///
/// # Safety
/// `buffer` has room for `size` bytes, or `size` is 0.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_error(buffer: *mut c_char, size: usize) -> usize {
    let words = LAST.try_with(|last| last.borrow().clone()).unwrap_or_default();
    if size != 0 && !buffer.is_null() {
        let copied = words.len().min(size - 1);
        // SAFETY: the buffer has room for that many bytes and the null byte; the words are elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(words.as_ptr(), buffer.cast(), copied);
            buffer.add(copied).write(0);
        }
    }
    words.len()
}
