//! What is told of threads of a live process.

use rustix::io::Errno;

use crate::arch::x86_64::Registers;
use crate::error::Error;
use crate::refusal::ThreadError;

/// What only a tracer can see of a thread: see [`LiveProcess::thread`](crate::LiveProcess::thread).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadState {
    /// Its registers. Those of a thread that waits in a system call have what the kernel knows it by in `rax`:
    /// `-EINTR` or one of the numbers from -512 on with which it is restarted.
    pub registers: Registers,
    /// Its area of restartable sequences.
    pub rseq: Rseq,
}

/// A thread's registration of restartable sequences (rseq(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rseq {
    /// The kernel does not tell: it is older than Linux 5.13, or has no restartable sequences.
    Unknown,
    /// There is none.
    None,
    /// The kernel keeps an area up to date.
    Registered {
        /// Where it is.
        addr: u64,
        /// Its length in bytes.
        len: u32,
        /// What stands before abort handlers.
        signature: u32,
    },
}

/// Why a thread cannot be asked.
pub(crate) fn refusal(tid: i32, errno: Errno, why: ThreadError) -> Error {
    Error::Thread { tid, why, errno }
}
