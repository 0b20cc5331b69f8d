//! What every engine does: take a context to the guest and back.

use std::fmt;

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub(crate) mod native;
pub(crate) mod ptrace;
pub(crate) mod rewrite;
pub(crate) mod trap;

use crate::arch::x86_64::Registers;
use crate::error::Error;
use crate::exit::{Arch, Fault, Syscall};
use crate::signal::SigInfo;

/// A place where a context runs: a task in the address space, seen through one engine. One context at a time uses
/// it, and keeps it from run to run; between runs it holds the context's state.
pub(crate) trait Seat: Send + Sync + fmt::Debug {
    /// Goes to the guest, and comes back when it has made a call, faulted, or been stopped. The guest goes on with
    /// all the state it left, but for `rax`.
    fn answer(&self, rax: u64) -> Event;

    /// Goes to the guest, and comes back, as [`answer`](Self::answer) does; the guest goes on with these registers.
    fn load(&self, registers: &Registers) -> Event;

    /// Reads the call that has just been reported, whose entry was `arch`'s. Into where it is to be: a processor
    /// that copies on what it has just stored, in pieces of another size, stalls.
    fn read_call(&self, arch: Arch, call: &mut Syscall);

    /// The registers that the guest left, of which `rax` may be out of date.
    fn registers(&self) -> Registers;

    /// The extended state that the guest left, [`xstate::size`](crate::arch::x86_64::xstate::size) bytes.
    fn xstate(&self) -> Result<Vec<u8>, Error>;

    /// Replaces the extended state; `area` has been validated.
    fn set_xstate(&self, area: &[u8]) -> Result<(), Error>;

    /// No context has run here: the extended state is the initial one.
    fn has_initial_xstate(&self) -> bool;

    /// Can this thread use it? Else it has to be left; its state can still be read.
    fn is_usable(&self) -> bool;

    /// Is this the process that has it, and not one that was forked from that? There the mailboxes are not mapped.
    fn is_ours(&self) -> bool {
        true
    }

    /// Makes the run that goes on, or else the next one, end with [`Event::Interrupted`].
    fn interrupt(&self);

    /// Kills the process that it is in.
    fn kill(&self);

    /// Was there an interrupt that no run has reported? It is forgotten.
    fn take_interrupt(&self) -> bool;
}

/// The call that these registers make by an entry of `arch`.
pub(crate) fn call_of(registers: &Registers, arch: Arch) -> Syscall {
    let [nr, args @ ..] = match arch {
        Arch::X86_64 => registers.call(),
        Arch::I386 => registers.i386_call(),
    };
    Syscall { nr, args, arch }
}

/// Why a guest came back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// It made a system call, which [`Seat::read_call`] tells.
    Call { arch: Arch, how: Called },
    /// An instruction faulted.
    Fault { rax: u64, fault: Fault },
    /// A signal came from outside.
    Signal { rax: u64, info: SigInfo },
    /// It was interrupted.
    Interrupted { rax: u64 },
    /// The process is dead.
    Died,
}

/// How a system call reached the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// By a signal or stop, so that rewriting the site could pay.
    Trapped,
    /// From a rewritten site.
    Rewritten,
}
