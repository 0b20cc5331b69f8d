//! What the calling process has: its targets, and the watcher. A forked child has its own.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, Once};

use process_vm_exec::Errno;

use crate::fork;
use crate::host;
use crate::target::{Identity, Target};
use crate::watch::{Watch, lock};

/// The state of one process. It lives as long as that.
#[derive(Debug)]
pub(crate) struct Process {
    targets: Mutex<Vec<Arc<Target>>>,
    pub(crate) watch: Watch,
}

impl Process {
    /// This process's.
    ///
    /// # Errors
    /// If there is no memory, descriptor or thread for it.
    pub(crate) fn current() -> Result<&'static Self, Errno> {
        match fork::current() {
            Some(process) => Ok(process),
            None => Self::start(),
        }
    }

    #[cold]
    fn start() -> Result<&'static Self, Errno> {
        let process = fork::set(Box::new(Self { targets: Mutex::default(), watch: Watch::new()? }))?;
        process.watch.start(process)?;
        Ok(process)
    }

    /// The targets that are attached.
    pub(crate) fn targets(&self) -> Vec<Arc<Target>> {
        lock(&self.targets).clone()
    }

    /// The target that is `identity`, which `pidfd` refers to; attaches it if no thread has.
    pub(crate) fn target(&self, identity: Identity, pidfd: BorrowedFd<'_>) -> Result<Arc<Target>, Errno> {
        let mut targets = lock(&self.targets);
        targets.retain(|target| !target.is_gone());
        if let Some(target) = targets.iter().find(|target| target.identity == identity) {
            return Ok(Arc::clone(target));
        }
        let target = Arc::new(Target::attach(identity, pidfd)?);
        at_exit();
        targets.push(Arc::clone(&target));
        drop(targets);
        self.watch.wake();
        Ok(target)
    }

    /// The target has ended, or what is attached is not it any more.
    pub(crate) fn forget(&self, target: &Arc<Target>) {
        target.set_gone();
        lock(&self.targets).retain(|other| !Arc::ptr_eq(other, target));
    }
}

/// Has targets detached when the process exits: before it is gone, so that whoever has waited for it finds that done. And
/// before what the library itself does then, with what has been attached.
fn at_exit() {
    static ONCE: Once = Once::new();
    extern "C" fn detach_all() {
        let Some(process) = fork::current() else { return };
        // A thread that attaches a target right now must not keep the process from exiting.
        let Ok(mut targets) = process.targets.try_lock() else { return };
        let targets = std::mem::take(&mut *targets);
        // Those that other threads run in stay until the process ends.
        targets.into_iter().filter_map(Arc::into_inner).for_each(Target::detach);
    }
    ONCE.call_once(|| host::at_exit(detach_all));
}
