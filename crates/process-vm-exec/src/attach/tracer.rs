//! Threads of ours that trace others: the kernel ends that with the thread, whatever went wrong.

use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crate::stat::Stat;

/// One of them.
#[derive(Debug, Default)]
pub(super) struct Tracer {
    tid: AtomicI32,
}

impl Tracer {
    /// The calling thread is the one.
    pub(super) fn begin(&self) {
        self.tid.store(rustix::thread::gettid().as_raw_pid(), Ordering::Relaxed);
    }

    /// Waits until the thread, which has been joined, traces nobody: it is joined before the kernel lets its tracees go
    /// (`exit_mm` and `exit_notify` in kernel/exit.c), and until then nobody else can trace them.
    pub(super) fn wait_until_it_traces_nobody(&self) {
        const NAP: Duration = Duration::from_micros(10);
        while Stat::of(self.tid.load(Ordering::Relaxed)).is_some_and(Stat::may_trace) {
            thread::sleep(NAP);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;
    use crate::ptrace::seize;

    /// The calling thread has many descriptors of its own from here on, so that it takes long to end.
    fn take_long_to_end() {
        // SAFETY: the thread uses no descriptor of others, and they use none of its.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0, "unshare");
        let null = File::open("/dev/null").expect("/dev/null");
        let copies = std::iter::from_fn(|| null.try_clone().ok());
        copies.take(20_000).for_each(std::mem::forget);
    }

    #[test]
    fn whom_an_ended_thread_has_traced_another_one_can_trace() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("a child");
        let pid = child.id().cast_signed();
        for round in 0..200 {
            let tracer = Tracer::default();
            let work = || {
                tracer.begin();
                take_long_to_end();
                seize(pid)
            };
            let seized = thread::scope(|scope| scope.spawn(work).join().expect("the tracer"));
            assert_eq!(seized, Ok(()), "round {round}");
            tracer.wait_until_it_traces_nobody();
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("its status");
    }
}
