//! Address spaces in which the supervisor runs code: what those that it has made and those of live processes have in common.

mod builder;
mod created;
mod function;
mod inner;
mod live;
mod scratch;

use std::ops::Range;
use std::sync::Arc;

use rustix::process::Pid;
use syscalls::Sysno;

pub use self::builder::{AddressSpaceBuilder, LiveProcessBuilder, Rewriting};
pub use self::created::AddressSpace;
pub use self::function::Tls;
pub(crate) use self::inner::Inner;
use self::inner::Origin;
pub use self::live::LiveProcess;
pub use self::scratch::Scratch;
use crate::call::Call;
use crate::context::{Context, Home as _};
use crate::engine::{Called, Event};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::memory::{self, Mapping, Protection};
use crate::name::Engine;
use crate::signal::SignalSet;

/// Memory is copied in pieces of so many bytes: a process is kept from being reaped while it is named by its number.
const PIECE: usize = 4 << 20;

/// An address space with a task of this library in it: what an [`AddressSpace`] and a [`LiveProcess`] have in common. Both
/// dereference to it.
#[derive(Debug)]
pub struct Space(Arc<Inner>);

impl Space {
    /// The engine that runs contexts here.
    pub fn engine(&self) -> Engine {
        self.0.engine()
    }

    #[cfg(test)]
    pub(crate) fn service(&self) -> &crate::executor::service::Service {
        &self.0.service
    }

    /// The process that executes calls in the space, as this one's pid namespace knows it; `None` once it is dead.
    fn executing(&self) -> Option<Pid> {
        *self.0.service.life.pid()
    }

    /// The addresses that are reserved for the executor's pages. Nothing there can be mapped, unmapped or changed, by
    /// whatever call; contexts can read there what they like, and write what harms nobody but themselves.
    pub fn region(&self) -> Range<u64> {
        self.0.service.life.slot.region().range()
    }

    /// Where the kernel's vDSO is mapped (vdso(7)): for `AT_SYSINFO_EHDR`.
    pub fn vdso(&self) -> Option<Range<u64>> {
        match &self.0.origin {
            Origin::Created(keeper) => keeper.vdso.clone(),
            Origin::Attached(target) => target.vdso(),
        }
    }

    /// Maps memory and returns its address.
    ///
    /// # Errors
    /// [`Error::Space`] with the errno of mmap(2), [`Error::Reserved`] if the executor's pages would be replaced.
    pub fn map(&self, mapping: Mapping<'_>) -> Result<u64> {
        self.call(&mapping.call())
    }

    /// Removes what is mapped in `len` bytes from `addr` on (munmap(2)).
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    pub fn unmap(&self, addr: u64, len: u64) -> Result<()> {
        self.call(&Call::with_args(Sysno::munmap, [addr, len, 0, 0, 0, 0])).map(drop)
    }

    /// Changes what the guest may do with `len` bytes from `addr` on (mprotect(2)).
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    pub fn protect(&self, addr: u64, len: u64, protection: Protection) -> Result<()> {
        let args = [addr, len, u64::from(protection.bits()), 0, 0, 0];
        self.call(&Call::with_args(Sysno::mprotect, args)).map(drop)
    }

    /// Executes a call that makes no descriptors.
    fn call(&self, call: &Call<'_>) -> Result<u64> {
        self.0.call(call)?.map_err(|errno| Error::Space { call: call.nr().name(), errno })
    }

    /// Copies from the space's memory at `addr`, as far as the guest may read there.
    ///
    /// # Errors
    /// [`Error::Space`] with `EFAULT` if it may not read all of it; `buffer`'s contents are unspecified then.
    pub fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<()> {
        for (n, piece) in buffer.chunks_mut(PIECE).enumerate() {
            let pid = self.0.service.life.pid();
            memory::read(pid.ok_or(Error::Dead)?.as_raw_pid(), addr.wrapping_add((n * PIECE) as u64), piece)
                .map_err(|errno| Error::Space { call: "process_vm_readv", errno })?;
        }
        Ok(())
    }

    /// Copies `bytes` to the space's memory at `addr`, as far as the guest may write there: pages that it may only execute
    /// are written before `AddressSpace::protect`, or through another mapping of their file.
    ///
    /// # Errors
    /// [`Error::Space`] with `EFAULT` if it may not write all of it; what comes before that is written.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        for (n, piece) in bytes.chunks(PIECE).enumerate() {
            let pid = self.0.service.life.pid();
            memory::write(pid.ok_or(Error::Dead)?.as_raw_pid(), addr.wrapping_add((n * PIECE) as u64), piece)
                .map_err(|errno| Error::Space { call: "process_vm_writev", errno })?;
        }
        Ok(())
    }

    /// Kills the space's process, from any thread: calls and runs in it end. For a guest that an
    /// [`Interrupter`](crate::Interrupter) does not reach, because it has jumped into the executor's code to stay there. In
    /// a live process it removes the executor. Says nothing if it is dead already.
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Runs `ctx` until something happens that the supervisor has to know, and says what.
    ///
    /// `signals` are those that end the run and are reported, faults among them; others take their default action
    /// in the guest's process, as if it had no handler: nothing, or its death.
    ///
    /// Several threads may run contexts in one space at the same time, each its own.
    ///
    /// # Errors
    /// [`Error::Context`] if the context cannot be loaded; it is unchanged then. A guest brings that about, too: it jumps to
    /// where no code can be, and one of its registers is changed. The fault is the guest's then, as a jump to nowhere is.
    /// [`Error::TooMany`] or [`Error::Space`] if the context is new here and no task can be had for it.
    #[inline]
    pub fn run(&self, ctx: &mut Context, signals: &SignalSet) -> Result<Exit> {
        if let Some(status) = self.0.service.life.status() {
            return Ok(Exit::Died(status));
        }
        // How often a breakpoint that is gone by now has sent the context on. Only a guest that makes them up meets many.
        const MOST_TRIES: u32 = 1000;
        let mut tries = 0;
        loop {
            // Matched where it is: to move an event costs more than to find out which one it is.
            match ctx.enter(&self.0) {
                Ok(Event::Call { arch, how }) => {
                    ctx.called(arch);
                    ctx.count(how);
                    if how == Called::Trapped
                        && let Some(rewriter) = self.0.trampoline.rewriter()
                    {
                        ctx.move_with_text(|registers| rewriter.after_trap(&self.0, registers, arch));
                    }
                    return Ok(Exit::Syscall);
                }
                Ok(Event::Interrupted { rax }) => {
                    ctx.left(rax);
                    return Ok(Exit::Interrupted);
                }
                Ok(Event::Fault { rax, mut fault }) => {
                    ctx.left(rax);
                    if let Some(rewriter) = self.0.trampoline.rewriter() {
                        if tries < MOST_TRIES
                            && let Some(site) = rewriter.caused(&self.0, ctx.registers(), &fault)
                        {
                            tries += 1;
                            ctx.try_again_at(site);
                            if ctx.take_interrupt() {
                                return Ok(Exit::Interrupted);
                            }
                            continue;
                        }
                        rewriter.place(&mut fault);
                    }
                    self.0.before_step_is_seen(&fault);
                    if signals.contains(fault.signal) {
                        return Ok(Exit::Fault(fault));
                    }
                    return Ok(Exit::Died(self.0.die_of(fault.signal)));
                }
                Ok(Event::Signal { rax, info }) => {
                    ctx.left(rax);
                    if signals.contains(info.signal()) {
                        return Ok(Exit::Signal(info));
                    }
                    if let Some(status) = self.0.default_action(info.signal()) {
                        return Ok(Exit::Died(status));
                    }
                }
                Ok(Event::Died) | Err(Error::Dead) => return Ok(Exit::Died(self.0.end())),
                // Not the supervisor's registers, which have been loaded before, but what the guest has reported.
                Err(Error::Context(_)) if tries > 0 => return Ok(Exit::Died(self.0.end())),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if !self.0.service.life.slot.is_ours() {
            // It is the parent's, from which this process was forked.
            return;
        }
        self.0.service.life.kill();
        self.0.tracees.collect();
        // Another attachment may follow at once, and finds the target as it was.
        if let Origin::Attached(_) = self.0.origin {
            self.0.service.life.wait_for_end();
        }
    }
}
