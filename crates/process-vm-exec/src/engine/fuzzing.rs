//! What the supervisor makes of an executor's mailbox, where a guest may have written anything; and the filter of
//! executors.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::trap::{ExecutorSeat, Trampoline};
use super::{Event, Seat};
use crate::arch::x86_64::xstate;
use crate::executor::arena::Arena;
use crate::executor::life::Life;
use crate::executor::region::Region;
use crate::executor::task::Executor;
use crate::executor::{code, filter};
use crate::exit::{Arch, Syscall, WaitStatus};

/// A mailbox whose process is dead, so that nothing waits for it.
#[derive(Debug)]
pub struct Mailbox {
    life: Arc<Life>,
}

impl Default for Mailbox {
    fn default() -> Self {
        let slot = Arc::new(
            Arena::new(Region::DEFAULT).and_then(|arena| arena.slot()).expect("memory for mailboxes"),
        );
        let life = Arc::new(Life::new(slot));
        life.executors.store(1, Ordering::SeqCst);
        life.die(WaitStatus::Signaled(libc::SIGKILL));
        Self { life }
    }
}

impl Mailbox {
    /// Reads everything that a run may read of a mailbox that begins with `bytes` and whose word is `word`.
    ///
    /// # Panics
    /// If what was read is not what the rest of the crate relies on.
    pub fn read(&self, bytes: &[u8], word: u32) {
        let executor = Executor::without_task(Arc::clone(&self.life));
        executor.fill_mailbox(bytes);
        let (report, area) = executor.reported(word);
        xstate::validate(&area).expect("an area that can be loaded");
        let seat = ExecutorSeat::new(executor, Trampoline::Unused);
        match seat.event(report) {
            Event::Call { arch, .. } => {
                let mut call = Syscall { nr: 0, args: [0; 6], arch: Arch::X86_64 };
                seat.read_call(arch, &mut call);
                assert_eq!(call.arch, arch);
            }
            Event::Fault { fault, .. } => assert!((1..=64).contains(&fault.signal), "{fault:?}"),
            Event::Signal { info, .. } => assert!((1..=64).contains(&info.signal()), "{info:?}"),
            Event::Interrupted { .. } | Event::Died => {}
        }
        let _ = seat.registers();
    }
}

/// The filter of executors, as `code`, `jt`, `jf` and `k` of each instruction; and where their code is.
pub fn executor_filter() -> (Vec<(u16, u8, u8, u32)>, Range<u64>) {
    let filter = filter::executor(Region::DEFAULT).into_iter();
    (
        filter.map(|instruction| (instruction.code, instruction.jt, instruction.jf, instruction.k)).collect(),
        code::range(Region::DEFAULT),
    )
}
