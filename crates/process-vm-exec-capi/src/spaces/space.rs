//! Spaces: made, forked, cleared, killed and freed.

use std::ffi::c_int;
use std::ptr::NonNull;

use libc::pid_t;
use process_vm_exec::{AddressSpace, Errno};

use super::abi::Options;
use super::failure::{Failure, NULL, Outcome, status};

/// The space that a pointer of the caller's means.
///
/// # Safety
/// It is null, or one that [`pvx_space_create`] or [`pvx_space_fork`] has given and [`pvx_space_free`] has not been given.
pub(super) unsafe fn space<'a>(space: *const AddressSpace) -> Outcome<&'a AddressSpace> {
    // SAFETY: by the contract it is null or points to a space that lives; spaces are shared, never changed.
    unsafe { space.as_ref() }.ok_or(NULL)
}

/// Stores a new object, which is the caller's from then on.
///
/// # Safety
/// `place` is null, or may be written.
pub(super) unsafe fn store<T>(place: *mut *mut T, make: impl FnOnce() -> Outcome<T>) -> c_int {
    let Some(place) = NonNull::new(place) else { return status(Err(NULL)) };
    status(make().map(|made| {
        // SAFETY: by the contract it may be written.
        unsafe { place.write(Box::into_raw(Box::new(made))) };
    }))
}

/// The options that a pointer of the caller's means; the fields that the caller knows and this library does not must be 0, as in
/// clone3(2).
///
/// # Safety
/// `options` is null, or points to as many bytes as its first field says.
unsafe fn options(options: *const Options) -> Outcome<Options> {
    const KNOWN: usize = size_of::<Options>();
    /// A page: nobody has more of them.
    const LONGEST: usize = 4096;
    let mut known = Options::default();
    let Some(given) = NonNull::new(options.cast_mut()) else { return Ok(known) };
    // SAFETY: by the contract it has at least this field.
    let size = unsafe { (&raw const (*given.as_ptr()).size).read() };
    if !(size_of::<usize>()..=LONGEST).contains(&size) {
        return Err(Failure::Caller(
            Errno::INVAL,
            "the size of the options is not sizeof(struct pvx_options)",
        ));
    }
    // SAFETY: by the contract it has `size` bytes; any bytes are a value of all fields.
    let rest = unsafe {
        std::ptr::copy_nonoverlapping(given.as_ptr().cast::<u8>(), (&raw mut known).cast(), size.min(KNOWN));
        std::slice::from_raw_parts(given.as_ptr().cast::<u8>(), size).get(KNOWN..).unwrap_or_default()
    };
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Failure::Caller(
            Errno::TOOBIG,
            "this library does not know all of the options: it is older than pvx.h",
        ));
    }
    Ok(known)
}

/// Creates a space.
///
/// # Safety
/// `created` may be written; `options` is null, or points to as many bytes as its first field says.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_create(given: *const Options, created: *mut *mut AddressSpace) -> c_int {
    // SAFETY: as promised to this function.
    unsafe { store(created, || Ok(options(given)?.builder()?.create()?)) }
}

/// Creates a space with a copy of another's memory.
///
/// # Safety
/// `parent` is a space that lives; `created` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_fork(parent: *const AddressSpace, created: *mut *mut AddressSpace) -> c_int {
    // SAFETY: as promised to this function.
    unsafe { store(created, || Ok(space(parent)?.fork()?)) }
}

/// Removes all that is mapped in a space.
///
/// # Safety
/// `cleared` is a space that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_clear(cleared: *const AddressSpace) -> c_int {
    // SAFETY: as promised to this function.
    status(unsafe { space(cleared) }.and_then(|space| Ok(space.clear()?)))
}

/// Kills a space with everything that runs there.
///
/// # Safety
/// `killed` is a space that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_kill(killed: *const AddressSpace) -> c_int {
    // SAFETY: as promised to this function.
    status(unsafe { space(killed) }.map(|space| space.kill()))
}

/// Frees a space. Contexts that ran there stay.
///
/// # Safety
/// `freed` is null, or a space that lives and nobody uses any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_free(freed: *mut AddressSpace) {
    if !freed.is_null() {
        // SAFETY: `store` made the box, and by the contract nobody else has it.
        drop(unsafe { Box::from_raw(freed) });
    }
}

/// The process of a space.
///
/// # Safety
/// `asked` is a space that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_pid(asked: *const AddressSpace) -> pid_t {
    // SAFETY: as promised to this function.
    let pid = unsafe { space(asked) }.and_then(|space| {
        space.pid().map(|pid| pid.as_raw_pid()).ok_or(Failure::Library(process_vm_exec::Error::Dead))
    });
    super::failure::result(pid, |errno| errno)
}

/// The library's own addresses in a space.
///
/// # Safety
/// `asked` is a space that lives; `start` and `length` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_region(
    asked: *const AddressSpace,
    start: *mut u64,
    length: *mut u64,
) -> c_int {
    // SAFETY: as promised to this function.
    status(unsafe { space(asked) }.and_then(|space| unsafe { store_range(space.region(), start, length) }))
}

/// Where the vDSO is in a space.
///
/// # Safety
/// `asked` is a space that lives; `start` and `length` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_vdso(asked: *const AddressSpace, start: *mut u64, length: *mut u64) -> c_int {
    let none = Failure::Caller(Errno::NOENT, "this kernel gives no vDSO");
    // SAFETY: as promised to this function.
    let vdso = unsafe { space(asked) }.and_then(|space| space.vdso().ok_or(none));
    // SAFETY: as promised to this function.
    status(vdso.and_then(|range| unsafe { store_range(range, start, length) }))
}

/// # Safety
/// `start` and `length` are null, or may be written.
unsafe fn store_range(range: std::ops::Range<u64>, start: *mut u64, length: *mut u64) -> Outcome<()> {
    let (Some(start), Some(length)) = (NonNull::new(start), NonNull::new(length)) else { return Err(NULL) };
    // SAFETY: by the contract they may be written.
    unsafe {
        start.write(range.start);
        length.write(range.end - range.start);
    }
    Ok(())
}
