//! Contexts: their registers and extended state.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use process_vm_exec::{Context, Errno, Interrupter, xstate_size};

use super::abi::CRegisters;
use super::failure::{Failure, NULL, Outcome, status};
use super::space::store;

/// A context as C has it.
#[derive(Debug)]
pub(super) struct CContext {
    context: UnsafeCell<Context>,
    /// Somebody has the context: another thread, or the one that a signal handler has interrupted.
    is_used: AtomicBool,
    interrupter: Interrupter,
}

impl CContext {
    fn new(context: Context) -> Self {
        let interrupter = context.interrupter();
        Self { context: UnsafeCell::new(context), is_used: AtomicBool::new(false), interrupter }
    }

    /// Uses the context, if nobody else does.
    #[inline]
    fn with<T>(&self, work: impl FnOnce(&mut Context) -> Outcome<T>) -> Outcome<T> {
        if self.is_used.swap(true, Ordering::Acquire) {
            return Err(Failure::Caller(Errno::BUSY, "another thread runs or uses the context"));
        }
        // SAFETY: whoever sets `is_used` has the context until it is cleared.
        let outcome = work(unsafe { &mut *self.context.get() });
        self.is_used.store(false, Ordering::Release);
        outcome
    }
}

/// Uses the context that a pointer of the caller's means.
///
/// # Safety
/// It is null, or one that [`pvx_context_create`] or [`pvx_context_clone`] has given and [`pvx_context_free`] has not been given.
#[inline]
pub(super) unsafe fn with<T>(
    context: *const CContext,
    work: impl FnOnce(&mut Context) -> Outcome<T>,
) -> Outcome<T> {
    // SAFETY: by the contract it is null or points to a context that lives; all there is is behind `is_used`, or may be shared.
    unsafe { context.as_ref() }.ok_or(NULL)?.with(work)
}

/// Creates a context whose registers are all 0.
///
/// # Safety
/// `created` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_context_create(created: *mut *mut CContext) -> c_int {
    // SAFETY: as promised to this function.
    unsafe { store(created, || Ok(CContext::new(Context::new(0, 0)))) }
}

/// Creates a context with the state of another.
///
/// # Safety
/// `original` is a context that lives; `created` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_context_clone(original: *const CContext, created: *mut *mut CContext) -> c_int {
    // SAFETY: as promised to this function.
    unsafe { store(created, || with(original, |context| Ok(CContext::new(context.try_clone()?)))) }
}

/// Frees a context.
///
/// # Safety
/// `freed` is null, or a context that lives and nobody uses any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_context_free(freed: *mut CContext) {
    if !freed.is_null() {
        // SAFETY: `store` made the box, and by the contract nobody else has it.
        drop(unsafe { Box::from_raw(freed) });
    }
}

/// The registers of a context.
///
/// # Safety
/// `asked` is a context that lives; `registers` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_get_registers(asked: *const CContext, registers: *mut CRegisters) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(asked, |context| {
            let place = NonNull::new(registers).ok_or(NULL)?;
            place.write(context.registers().into());
            Ok(())
        })
    };
    status(outcome)
}

/// Sets the registers of a context.
///
/// # Safety
/// `changed` is a context that lives; `registers` may be read.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_set_registers(changed: *const CContext, registers: *const CRegisters) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(changed, |context| {
            let registers = registers.as_ref().ok_or(NULL)?;
            *context.registers_mut() = registers.registers();
            Ok(())
        })
    };
    status(outcome)
}

/// Sets `rax`.
///
/// # Safety
/// `changed` is a context that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_set_return(changed: *const CContext, value: i64) -> c_int {
    // SAFETY: as promised to this function.
    status(unsafe {
        with(changed, |context| {
            context.set_return(Ok(value.cast_unsigned()));
            Ok(())
        })
    })
}

/// Length in bytes of the extended state.
#[unsafe(no_mangle)]
extern "C" fn pvx_xstate_size() -> usize {
    xstate_size()
}

/// Copies the extended state of a context.
///
/// # Safety
/// `asked` is a context that lives; `area` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_get_xstate(asked: *const CContext, area: *mut c_void, length: usize) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(asked, |context| {
            let state = context.xstate()?;
            let place = NonNull::new(area.cast::<u8>()).ok_or(NULL)?;
            std::ptr::copy_nonoverlapping(state.as_ptr(), place.as_ptr(), state.len().min(length));
            Ok(())
        })
    };
    status(outcome)
}

/// Sets the extended state of a context.
///
/// # Safety
/// `changed` is a context that lives; `area` has `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_set_xstate(changed: *const CContext, area: *const c_void, length: usize) -> c_int {
    /// The legacy area and the header of XSAVE: what follows is there if the header says so.
    const LEAST: usize = 576;
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(changed, |context| {
            if !(LEAST..=xstate_size()).contains(&length) {
                let words = "the extended state is shorter than 576 bytes or longer than pvx_xstate_size()";
                return Err(Failure::Caller(Errno::INVAL, words));
            }
            let given = NonNull::new(area.cast_mut().cast::<u8>()).ok_or(NULL)?;
            let mut state = vec![0; xstate_size()];
            std::ptr::copy_nonoverlapping(given.as_ptr(), state.as_mut_ptr(), length);
            Ok(context.set_xstate(&state)?)
        })
    };
    status(outcome)
}

/// Ends a run of a context. For signal handlers, too: it takes no lock and no memory, and leaves `errno` alone.
///
/// # Safety
/// `interrupted` is a context that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_interrupt(interrupted: *const CContext) -> c_int {
    // SAFETY: by the contract it is null or points to a context that lives; an interrupter may be shared.
    let Some(context) = (unsafe { interrupted.as_ref() }) else { return -libc::EFAULT };
    // SAFETY: errno(3) of the calling thread is an int that it may read and write.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    context.interrupter.interrupt();
    // SAFETY: as above.
    unsafe { *errno = before };
    0
}
