//! Memory of spaces: mapped, changed, copied.

use std::ffi::{c_int, c_void};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use process_vm_exec::{AddressSpace, Call, Errno, Error, RegisteredFile, Sysno};

use super::abi::{ANONYMOUS, Change, MAP, PROTECT, UNMAP};
use super::failure::{Failure, NULL, Outcome, result, status};
use super::space::space;
use crate::host;

/// The files that C has registered; their places here are their numbers.
static FILES: Mutex<Vec<RegisteredFile>> = Mutex::new(Vec::new());

fn files() -> std::sync::MutexGuard<'static, Vec<RegisteredFile>> {
    FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A descriptor of the caller's, which it lends for the call.
fn borrow<'a>(fd: c_int) -> Outcome<BorrowedFd<'a>> {
    host::borrow(fd).ok_or(Failure::Caller(Errno::BADF, "the descriptor is negative"))
}

/// Registers a file, whose descriptor is not closed meanwhile.
#[unsafe(no_mangle)]
extern "C" fn pvx_register_file(fd: c_int) -> c_int {
    let registered = borrow(fd).and_then(|fd| Ok(RegisteredFile::new(fd)?));
    let number = registered.map(|file| {
        let mut files = files();
        files.push(file);
        c_int::try_from(files.len() - 1).expect("there are few")
    });
    result(number, |errno| errno)
}

/// The call that makes a mapping, for a file to be added.
fn mmap(change: &Change, more_flags: c_int) -> Call<'static> {
    let numbers =
        [change.protection, change.flags | more_flags].map(|number| u64::from(number.cast_unsigned()));
    let args = [change.address, change.length, numbers[0], numbers[1], u64::MAX, change.offset];
    Call::with_args(Sysno::mmap, args)
}

/// The call that makes a mapping of memory, or of a registered file.
fn map_call(change: &Change) -> Outcome<Call<'static>> {
    if change.file == ANONYMOUS {
        return Ok(mmap(change, libc::MAP_ANONYMOUS));
    }
    let file = usize::try_from(change.file).ok().and_then(|number| files().get(number).copied());
    let file = file.ok_or(Failure::Caller(
        Errno::BADF,
        "the file is neither PVX_ANONYMOUS nor a number that pvx_register_file() has returned",
    ))?;
    Ok(mmap(change, 0).registered_file(4, file))
}

impl Change {
    fn call(&self) -> Outcome<Call<'static>> {
        let protection = u64::from(self.protection.cast_unsigned());
        match self.kind {
            MAP => map_call(self),
            UNMAP => Ok(Call::with_args(Sysno::munmap, [self.address, self.length, 0, 0, 0, 0])),
            PROTECT => Ok(Call::with_args(Sysno::mprotect, [self.address, self.length, protection, 0, 0, 0])),
            _ => Err(Failure::Caller(
                Errno::INVAL,
                "the kind of a change is none of PVX_MAP, PVX_UNMAP and PVX_PROTECT",
            )),
        }
    }
}

/// Makes changes, and stores what came of each.
pub(super) fn change(space: &AddressSpace, changes: &mut [Change]) -> Outcome<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let calls = changes.iter().map(Change::call).collect::<Outcome<Vec<_>>>()?;
    make(space, changes, &calls)
}

/// Makes changes by these calls, one for each.
fn make(space: &AddressSpace, changes: &mut [Change], calls: &[Call<'_>]) -> Outcome<()> {
    let mut first = Ok(());
    for ((change, call), result) in changes.iter_mut().zip(calls).zip(space.batch(calls)?) {
        change.result = match result {
            Ok(value) => value.cast_signed(),
            Err(errno) => {
                first = first.and(Err(Failure::Library(Error::Space { call: call.nr().name(), errno })));
                -i64::from(errno.raw_os_error())
            }
        };
    }
    first
}

/// # Safety
/// `values` points to `count` of them that nobody else uses meanwhile, or `count` is 0. Any bytes are a value.
pub(super) unsafe fn slice<'a, T>(values: *mut T, count: usize) -> Outcome<&'a mut [T]> {
    match count {
        0 => Ok(&mut []),
        _ if values.is_null() => Err(NULL),
        // SAFETY: by the contract.
        _ => Ok(unsafe { std::slice::from_raw_parts_mut(values, count) }),
    }
}

/// # Safety
/// `length` bytes at `bytes` may be read and nobody changes them meanwhile, or `length` is 0.
pub(super) unsafe fn bytes<'a>(bytes: *const c_void, length: usize) -> Outcome<&'a [u8]> {
    match length {
        0 => Ok(&[]),
        _ if bytes.is_null() => Err(NULL),
        // SAFETY: by the contract.
        _ => Ok(unsafe { std::slice::from_raw_parts(bytes.cast(), length) }),
    }
}

/// Makes changes of memory.
///
/// # Safety
/// `changed` is a space that lives; `changes` points to `count` of them.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_change(changed: *const AddressSpace, changes: *mut Change, count: usize) -> c_int {
    // SAFETY: as promised to this function.
    status(unsafe { space(changed) }.and_then(|space| change(space, unsafe { slice(changes, count) }?)))
}

/// Makes one change.
fn change_one(space: &AddressSpace, mut one: Change) -> Outcome<i64> {
    change(space, std::slice::from_mut(&mut one)).map(|()| one.result)
}

/// Maps memory, or a registered file.
///
/// # Safety
/// `mapped` is a space that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_map(
    mapped: *const AddressSpace,
    address: u64,
    length: u64,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: u64,
) -> i64 {
    let one = Change { kind: MAP, protection, flags, file, address, length, offset, result: 0 };
    // SAFETY: as promised to this function.
    result(unsafe { space(mapped) }.and_then(|space| change_one(space, one)), i64::from)
}

/// Maps any file.
///
/// # Safety
/// `mapped` is a space that lives; the descriptor is not closed meanwhile.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_map_fd(
    mapped: *const AddressSpace,
    address: u64,
    length: u64,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: u64,
) -> i64 {
    let mut one =
        Change { kind: MAP, protection, flags, file: ANONYMOUS, address, length, offset, result: 0 };
    // SAFETY: as promised to this function.
    let outcome = unsafe { space(mapped) }.and_then(|space| {
        let call = mmap(&one, 0).fd(4, borrow(fd)?);
        make(space, std::slice::from_mut(&mut one), &[call]).map(|()| one.result)
    });
    result(outcome, i64::from)
}

/// Removes what is mapped.
///
/// # Safety
/// `changed` is a space that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_unmap(changed: *const AddressSpace, address: u64, length: u64) -> c_int {
    // SAFETY: as promised to this function.
    status(unsafe { space(changed) }.and_then(|space| Ok(space.unmap(address, length)?)))
}

/// Changes what the guest may do with memory.
///
/// # Safety
/// `changed` is a space that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_protect(
    changed: *const AddressSpace,
    address: u64,
    length: u64,
    protection: c_int,
) -> c_int {
    let one = Change { kind: PROTECT, protection, flags: 0, file: 0, address, length, offset: 0, result: 0 };
    // SAFETY: as promised to this function.
    status(unsafe { space(changed) }.and_then(|space| change_one(space, one).map(drop)))
}

/// Copies from a space.
///
/// # Safety
/// `asked` is a space that lives; `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_read(
    asked: *const AddressSpace,
    address: u64,
    buffer: *mut c_void,
    length: usize,
) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe { space(asked) }.and_then(|space| {
        // SAFETY: as promised to this function. The kernel writes there; what was there does not matter.
        let buffer = unsafe { slice(buffer.cast(), length) }?;
        if buffer.is_empty() { Ok(()) } else { Ok(space.read(address, buffer)?) }
    });
    status(outcome)
}

/// Copies to a space.
///
/// # Safety
/// `changed` is a space that lives; `buffer` has `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_write(
    changed: *const AddressSpace,
    address: u64,
    buffer: *const c_void,
    length: usize,
) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe { space(changed) }.and_then(|space| {
        // SAFETY: as promised to this function.
        let buffer = unsafe { bytes(buffer, length) }?;
        if buffer.is_empty() { Ok(()) } else { Ok(space.write(address, buffer)?) }
    });
    status(outcome)
}

/// Executes a system call in a space.
///
/// # Safety
/// `asked` is a space that lives; `arguments` points to six numbers.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_syscall(asked: *const AddressSpace, number: i64, arguments: *const [u64; 6]) -> i64 {
    // SAFETY: as promised to this function.
    let outcome = unsafe { space(asked) }.and_then(|space| {
        // SAFETY: as promised to this function.
        let arguments = *unsafe { arguments.as_ref() }.ok_or(NULL)?;
        let call = usize::try_from(number).ok().and_then(Sysno::new);
        let call = call.ok_or(Failure::Caller(Errno::NOSYS, "there is no system call with this number"))?;
        Ok(space.syscall(call, arguments)?.cast_signed())
    });
    result(outcome, i64::from)
}
