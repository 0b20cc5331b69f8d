//! Calling a function in another space, as C does.

use rustix::io::Errno;
use syscalls::Sysno;

use super::live::LiveProcess;
use crate::call::Call;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::exit::{Exit, Syscall};
use crate::memory::{Mapping, Protection};
use crate::signal::SignalSet;

/// Which thread-local storage a called function finds: see [`LiveProcess::call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// One of its own: FS base points to zeroes, but for the pointer to itself that the ABI wants there. Enough for
    /// code that has no variables in it.
    Own,
    /// That of the target's main thread, which goes on using it: for functions that only read theirs, or while that
    /// thread is known to be still.
    Main,
}

/// Length of the stack.
const STACK: u64 = 256 << 10;
/// Length of the area of thread-local storage: some below its base, where the linker puts variables, some above.
const TLS: u64 = 64 << 10;
/// What is never mapped, on either side; the function returns to there.
const GUARD: u64 = 4096;

/// Pages for one call, unmapped afterwards.
struct Room<'a> {
    space: &'a LiveProcess,
    start: u64,
}

impl<'a> Room<'a> {
    const LEN: u64 = GUARD + STACK + TLS + GUARD;

    fn new(space: &'a LiveProcess) -> Result<Self> {
        let start = space.map(Mapping::anonymous(Self::LEN, Protection::empty()))?;
        let room = Self { space, start };
        space.protect(start + GUARD, STACK + TLS, Protection::READ | Protection::WRITE)?;
        Ok(room)
    }

    /// Where the function returns to.
    fn end(&self) -> u64 {
        self.start
    }

    fn stack_top(&self) -> u64 {
        self.start + GUARD + STACK
    }

    /// A thread pointer to zeroes, but for itself: `%fs:0` and `%fs:16` (x86-64 TLS ABI; glibc's `tcbhead_t`).
    fn thread_pointer(&self) -> Result<u64> {
        let base = self.stack_top() + TLS / 2;
        for at in [0, 16] {
            self.space.write(base + at, &base.to_ne_bytes())?;
        }
        Ok(base)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        // If the space is dead, so are its pages.
        let _ = self.space.unmap(self.start, Self::LEN);
    }
}

/// Calls the function at `addr`: see [`LiveProcess::call`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn call(
    space: &LiveProcess,
    addr: u64,
    args: &[u64],
    tls: Tls,
    main_fs_base: Option<u64>,
) -> Result<u64> {
    let mut padded = [0; 6];
    match padded.get_mut(..args.len()) {
        Some(given) => given.copy_from_slice(args),
        None => return Err(Error::Context("a function takes at most six integer arguments in registers")),
    }
    let room = Room::new(space)?;
    // As after a `call`: the return address on top, and 16 bytes aligned before it was pushed (System V ABI, 3.2.2).
    let sp = room.stack_top() - 64 - 8;
    space.write(sp, &room.end().to_ne_bytes())?;
    let mut ctx = Context::new(addr, sp);
    let registers = ctx.registers_mut();
    [registers.rdi, registers.rsi, registers.rdx, registers.rcx, registers.r8, registers.r9] = padded;
    registers.fs_base = match (tls, main_fs_base) {
        (Tls::Own, _) => room.thread_pointer()?,
        (Tls::Main, Some(base)) => base,
        (Tls::Main, None) => {
            return Err(Error::Context("the thread pointer of the target's main thread is not known"));
        }
    };
    loop {
        match space.run(&mut ctx, &SignalSet::all())? {
            Exit::Syscall => {
                // SAFETY: the caller promises that.
                let answer = unsafe { execute(space, ctx.syscall())? };
                ctx.set_return(answer);
            }
            Exit::Fault(fault) if fault.addr == room.end() && ctx.registers().rip == room.end() => {
                return Ok(ctx.registers().rax);
            }
            Exit::Signal(_) => {}
            exit => return Err(Error::Function { addr, exit: Box::new(exit) }),
        }
    }
}

/// Executes a call that the function makes.
///
/// # Safety
/// As for [`Call::with_descriptor_numbers`].
unsafe fn execute(space: &LiveProcess, call: &Syscall) -> Result<std::result::Result<u64, Errno>> {
    let Some(nr) = usize::try_from(call.nr).ok().and_then(Sysno::new) else { return Ok(Err(Errno::NOSYS)) };
    // SAFETY: the caller promises that.
    let call = unsafe { Call::with_descriptor_numbers(nr, call.args) };
    match space.syscall(&call) {
        Ok(result) => Ok(Ok(result.into_number())),
        Err(Error::Space { errno, .. }) => Ok(Err(errno)),
        Err(error @ (Error::Reserved { .. } | Error::EndOfTask { .. })) => Ok(Err(error.errno())),
        Err(error) => Err(error),
    }
}
