//! Spaces that the supervisor makes: created, or forked.

use std::ops::Deref;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Pid;
use syscalls::Sysno;

use super::Space;
use super::builder::{AddressSpaceBuilder, Settings};
use super::inner::{Inner, Origin};
use crate::arch::x86_64::USER_END;
use crate::call::Call;
use crate::error::Result;
use crate::executor::keeper::Keeper;
use crate::executor::region::Region;
use crate::executor::service::Entry;
use crate::sync::lock;

/// An address space of its own, in which the supervisor runs code.
///
/// It starts empty: nothing is mapped but the vDSO and the executor's pages, in a [region](Space::region) that cannot
/// be changed. Code in it can ask the host kernel for nothing; every system call, fault and signal comes out of
/// [`run`](Space::run).
///
/// The space belongs to a process of the host that dies when the value is dropped, or when the supervisor ends in
/// whatever way.
///
/// ```
/// use process_vm_exec::{AddressSpace, Context, Exit, Mapping, Protection, SignalSet};
///
/// # fn main() -> process_vm_exec::Result<()> {
/// let space = AddressSpace::create()?;
/// let code = space.map(Mapping::anonymous(4096, Protection::READ | Protection::WRITE))?;
/// // mov $39, %eax; syscall; hlt
/// space.write(code, &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xf4])?;
/// space.protect(code, 4096, Protection::READ | Protection::EXEC)?;
///
/// let mut ctx = Context::new(code, 0);
/// let Exit::Syscall = space.run(&mut ctx, &SignalSet::all())? else { panic!() };
/// assert_eq!(ctx.syscall().nr, 39);
/// ctx.set_return(Ok(1));
/// let Exit::Fault(fault) = space.run(&mut ctx, &SignalSet::all())? else { panic!() };
/// assert_eq!((fault.signal, ctx.registers().rax), (libc::SIGSEGV, 1));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct AddressSpace {
    space: Space,
    keeper: Arc<Keeper>,
}

impl AddressSpace {
    /// An empty space with the best engine that works here.
    ///
    /// # Errors
    /// As for [`AddressSpaceBuilder::create`].
    pub fn create() -> Result<Self> {
        Self::builder().create()
    }

    /// To create a space with something else than the defaults.
    pub fn builder() -> AddressSpaceBuilder {
        AddressSpaceBuilder::default()
    }

    pub(super) fn with(region: Region, settings: Settings) -> Result<Self> {
        let keeper = Keeper::get(region)?;
        let (service, files) = keeper.create(settings.service_calls, settings.birth())?;
        let trampoline = settings.trampoline(region);
        let space =
            Space(Inner::new(Origin::Created(Arc::clone(&keeper)), service, settings, trampoline, files));
        Ok(Self { space, keeper })
    }

    /// A new space with a copy of this one's memory (shared mappings stay shared), engine and settings. Contexts
    /// stay here: [`Context::try_clone`](crate::Context::try_clone) makes some to run there.
    ///
    /// # Errors
    /// As for [`AddressSpaceBuilder::create`].
    pub fn fork(&self) -> Result<Self> {
        let Inner { service, settings, trampoline, files, .. } = &*self.space.0;
        // Those that come from now on the fork has, too, and does not know of.
        let files = lock(files).fork();
        let (service, trampoline) = trampoline.fork(|| self.keeper.fork(service, settings.birth()))?;
        let origin = Origin::Created(Arc::clone(&self.keeper));
        let fork = Inner::new(origin, service, *settings, trampoline, files);
        if let Some(rewriter) = fork.trampoline.rewriter() {
            rewriter.adopt(&fork);
        }
        Ok(Self { space: Space(fork), keeper: Arc::clone(&self.keeper) })
    }

    /// Removes all that is mapped but the vDSO and the executor's pages: the space is as one that has just been created, for
    /// less. Registered files, and how it was built, stay.
    ///
    /// No context may run here meanwhile. One that runs here afterwards finds nothing at its RIP, unless both have
    /// been set anew.
    ///
    /// ```
    /// use process_vm_exec::{AddressSpace, Mapping, Protection};
    ///
    /// # fn main() -> process_vm_exec::Result<()> {
    /// let space = AddressSpace::create()?;
    /// let page = space.map(Mapping::anonymous(4096, Protection::READ))?;
    /// space.clear()?;
    /// assert!(space.read(page, &mut [0]).is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Dead`](crate::Error::Dead) if its process is gone; [`Error::Space`](crate::Error::Space) if the kernel has no memory for what it takes, or the
    /// supervisor has sealed a mapping (mseal(2)).
    pub fn clear(&self) -> Result<()> {
        let inner = &*self.space.0;
        let mut kept: Vec<_> =
            [self.keeper.kernels_pages.clone(), Some(self.region())].into_iter().flatten().collect();
        kept.sort_by_key(|range| range.start);
        let starts = std::iter::once(0).chain(kept.iter().map(|range| range.end));
        let ends = kept.iter().map(|range| range.start).chain(std::iter::once(USER_END));
        let gaps = starts.zip(ends).filter(|(start, end)| start < end);
        let calls: Vec<_> =
            gaps.map(|(start, end)| Entry::new(libc::SYS_munmap, [start, end - start, 0, 0, 0, 0])).collect();
        let unmap = || {
            let results = inner.service.request(&calls)?;
            results.into_iter().try_for_each(|result| {
                result.map(drop).map_err(|errno| crate::Error::Space { call: "munmap", errno })
            })
        };
        match inner.trampoline.rewriter() {
            Some(rewriter) => rewriter.clear(unmap),
            None => unmap(),
        }
    }

    /// The host's process that the space belongs to; `None` once it is dead.
    pub fn pid(&self) -> Option<Pid> {
        self.executing()
    }

    /// Executes a system call in the space: system call mode. Addresses in it are the space's; descriptors are those
    /// of the space's service task, which has none that a guest could use.
    ///
    /// # Errors
    /// [`Error::Space`](crate::Error::Space) with the errno of the call; [`Error::Reserved`](crate::Error::Reserved) if it would change the executor's pages.
    pub fn syscall(&self, nr: Sysno, args: [u64; 6]) -> Result<u64> {
        self.space.call(&Call::with_args(nr, args))
    }

    /// Executes several system calls in order, each whatever the results of those before: with one hand-off, unless
    /// descriptors are passed.
    ///
    /// # Errors
    /// As for [`syscall`](Self::syscall), but errnos of calls are among the results. If one call would change the
    /// executor's pages, none is executed.
    pub fn batch(&self, calls: &[Call<'_>]) -> Result<Vec<std::result::Result<u64, Errno>>> {
        self.space.0.calls(calls)
    }

    /// With [`Rewriting::Planned`](crate::Rewriting::Planned): the supervisor has taken all plans back and applies no more, as it has to when a guest sets its GS base or
    /// is stepped through. From then on GS is the guest's, in forks as well.
    pub fn stop_plans(&self) {
        self.space.0.trampoline.stop_plans();
    }

    /// How many stretches of the guest's text the engine has rewritten now.
    pub fn rewritten_sites(&self) -> usize {
        self.space.0.trampoline.rewriter().map_or(0, |rewriter| rewriter.count())
    }
}

impl Deref for AddressSpace {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}
