//! Runs.

use std::ffi::c_int;
use std::ptr::NonNull;

use process_vm_exec::{AddressSpace, SignalSet};

use super::abi::{CExit, Change};
use super::context::{CContext, with};
use super::failure::{NULL, status};
use super::memory::{change, slice};
use super::space::space;

/// Makes changes, and runs a context.
///
/// # Safety
/// `home` is a space and `run` a context that live; `changes` points to `count` of them; `exit` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_run(
    home: *const AddressSpace,
    run: *const CContext,
    changes: *mut Change,
    count: usize,
    exit: *mut CExit,
) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(run, |context| {
            let (space, mut place) = (space(home)?, NonNull::new(exit).ok_or(NULL)?);
            change(space, slice(changes, count)?)?;
            let rewritten = context.calls().rewritten;
            let reason = space.run(context, &SignalSet::all())?;
            // Any bytes are a value of it.
            place.as_mut().store(&reason, context.syscall(), context.calls().rewritten != rewritten);
            Ok(())
        })
    };
    status(outcome)
}
