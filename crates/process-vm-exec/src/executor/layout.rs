//! What lies where in the executor's pages, as offsets from the start of the [region](super::region) that they are in.
//!
//! Every space has the same layout. All of it but the code is a slot of one memory file, which the supervisor maps too:
//!
//! | part      | guest may | written by             |
//! |-----------|-----------|------------------------|
//! | code      | r-x       | nobody                 |
//! | control   | r--       | the supervisor         |
//! | result    | rw-       | the service task, which signs what it writes |
//! | mailboxes | rw-       | one executor each; the supervisor, to pass control |

/// Length of the region, and of a slot of the memory file. A power of two.
pub(crate) const SIZE: u64 = 256 << 20;

/// Offset of the code: before it in the executor's image is an ELF header page.
pub(crate) const CODE: u64 = 0x1000;

/// Offset, far behind the code, of what a thread of a live process executes when it makes calls for us, and the data of
/// that: see `attach/errand.rs`.
pub(crate) const ERRAND: u64 = 0x8_0000;

/// Offset of the control pages.
pub(crate) const CONTROL: u64 = 1 << 20;
/// Length of the control pages.
pub(crate) const CONTROL_LEN: u64 = RESULT - CONTROL;
/// Offset of the parameters.
pub(crate) const PARAMS: u64 = CONTROL + 0x4000;
/// Offset of what calls that the library makes itself point to.
pub(crate) const ARGUMENTS: u64 = CONTROL + 0x6000;
/// Offset of the commands to executors, [`COMMAND_STRIDE`] bytes each. Not a multiple of a page, as the mailboxes'
/// offset is: processors compare the low bits of addresses first when they look for a load's value among the stores
/// under way, and either side looks at one half's word just after it has written the other's.
pub(crate) const COMMANDS: u64 = CONTROL + 0x8_0800;
/// Length of one executor's commands. `MAILBOX_STRIDE / COMMAND_STRIDE` is a power of two: the executor's
/// code computes the address of one from the other.
pub(crate) const COMMAND_STRIDE: u64 = 512;

/// Offset of the service task's results; everything from here on is writable in the guest.
pub(crate) const RESULT: u64 = 8 << 20;
/// Offset of memory that calls in the service task may use for their buffers.
pub(crate) const SCRATCH: u64 = RESULT + 0x1_0000;

/// Offset of the results of a live process's thread.
pub(crate) const ERRAND_RESULT: u64 = RESULT + 0x2_0000;

/// Offset of memory that callers may use for the buffers of their calls, up to [`MAILBOXES`].
pub(crate) const BUFFERS: u64 = RESULT + 0x10_0000;

/// How far behind request and result of the service task those of a second one are: of an executor that shares things
/// with a live process.
pub(crate) const SHARER: u64 = 0x8000;

/// Offset of the mailboxes, [`MAILBOX_STRIDE`] bytes each.
pub(crate) const MAILBOXES: u64 = 32 << 20;
/// Length of one mailbox.
pub(crate) const MAILBOX_STRIDE: u64 = 32 << 10;
/// As many executors as one space can have.
pub(crate) const MAX_EXECUTORS: u64 = (SIZE - MAILBOXES) / MAILBOX_STRIDE;
const _: () = assert!(COMMANDS + MAX_EXECUTORS * COMMAND_STRIDE <= RESULT);

/// What the two sides of a hand-off write, in command and mailbox, request and result alike, is in so many bytes.
pub(crate) const HALF_LEN: usize = 512;
/// In each of them: the word that passes control. Supervisor and executor both write the one in the mailbox, beside which `rax`
/// of a call and of its answer lie: so one cache line goes there and back.
pub(crate) const WORD: u64 = 0;
/// Set while the writer of this half sleeps in a futex.
pub(crate) const SLEEPING: u64 = 0x100;
/// The processor that the writer of this half last waited on.
pub(crate) const CPU: u64 = 0x104;

/// For how many more waits the writer of this half does not yield: see [`super::handoff`].
pub(crate) const NO_YIELD: u64 = 0x110;
/// For how many waits it does not after the next yield that takes long.
pub(crate) const PENALTY: u64 = 0x114;

/// For how long the writer of this half does not look: see [`super::handoff::PAUSE`]. On a line that the other side does not
/// look at, as it changes with each wait.
pub(crate) const PAUSES: u64 = 0x1cc;

/// In a request: a single call, number and arguments; in a result, what came of it.
pub(crate) const ONE: u64 = 8;
/// In a result: the signature of all of it, see [`super::signature`].
pub(crate) const TAG: u64 = 16;
/// In a request: how many entries there are; 0 for a single call.
pub(crate) const COUNT: u64 = 4;
/// In a request the entries (number, six arguments, `param`), in a result their results, 64 bytes apart.
pub(crate) const ENTRIES: u64 = 0x200;
/// Length of an entry.
pub(crate) const ENTRY: usize = 64;
/// As many entries as one request can have.
pub(crate) const MAX_ENTRIES: usize = 128;

/// In a command: not zero ends the run.
pub(crate) const INTERRUPT: u64 = 0x140;
/// In a command: the executor's `stack_t`.
pub(crate) const ALTSTACK: u64 = 0x180;

/// In a mailbox: the signature of the executor's first report.
pub(crate) const STARTED_TAG: u64 = 0x80;
/// In a mailbox: how the executor came out of the guest, hence how it goes back: 0 by the trampoline, 1 by a signal.
/// Not on the line of [`SLEEPING`], which the supervisor reads each time: this is written at each exit.
pub(crate) const FLAVOUR: u64 = 0x1c0;
/// In a mailbox: the word of the last command, for the next report.
pub(crate) const COMMAND_WORD: u64 = 0x1c8;
/// In a mailbox: not zero when [`PENDING_SIGINFO`] holds a signal that arrived outside guest code.
pub(crate) const PENDING: u64 = 0x1c4;
/// In a mailbox: the guest's registers. The line of [`WORD`] has `rax` and the arguments once more, for the supervisor,
/// which looks at that line all the time: processors fetch the lines behind it too, so these are elsewhere.
pub(crate) const RECORD: u64 = 0x400;
/// In a mailbox: error code, trap number and fault address of the last signal (`struct sigcontext_64`).
pub(crate) const TRAP: u64 = 0x180;
/// In a mailbox: the `siginfo_t` of the last signal.
pub(crate) const SIGINFO: u64 = 0x200;
/// In a mailbox: the `siginfo_t` of a pending signal.
pub(crate) const PENDING_SIGINFO: u64 = 0x300;
/// In a mailbox: end of the stack that the executor uses outside signal handlers.
pub(crate) const STACK_TOP: u64 = 0x1000;
/// In a mailbox: room for extended state on its way from or to the supervisor.
pub(crate) const XSTATE: u64 = 0x1000;
/// Length of that room.
pub(crate) const XSTATE_LEN: u64 = 0x2000;
/// In a mailbox: the alternate signal stack, with room for two frames.
pub(crate) const SIGSTACK: u64 = 0x3000;
/// Its length.
pub(crate) const SIGSTACK_LEN: u64 = MAILBOX_STRIDE - SIGSTACK;

/// In the parameters: spin this many ticks of the TSC before sleeping.
pub(crate) const BUDGET_TICKS: u64 = 0;
/// In the parameters: after this many ticks, yield between looks.
pub(crate) const YIELD_TICKS: u64 = 8;
/// In the parameters: the state components that XSAVE and XRSTOR take.
pub(crate) const XMASK: u64 = 16;
/// In the parameters: not zero where Syscall User Dispatch is to be used.
pub(crate) const DISPATCH: u64 = 24;
/// In the parameters: not zero where executors are traced, and run contexts by that.
pub(crate) const TRACED: u64 = 28;
/// In the parameters: the signals that executors block.
pub(crate) const SIGMASK: u64 = 32;
/// In the parameters: the `sock_fprog` of the guest's filter.
pub(crate) const FILTER: u64 = 40;
/// In the parameters: the pid that the task's parent must have.
pub(crate) const PARENT: u64 = 56;
/// In the parameters: a yield that takes more ticks than this gave the processor to somebody else.
pub(crate) const PATIENCE_TICKS: u64 = 64;
/// In the parameters: the key with which the service task signs, until it has started.
pub(crate) const KEY: u64 = 72;
/// In the parameters: the filter's instructions.
pub(crate) const FILTER_CODE: u64 = 128;

/// Descriptor of the memory file in the keeper, the templates and service tasks. Guests have none. Before it is room for a
/// pair of sockets: see [`super::passage`].
pub(crate) const ARENA_FD: i32 = 2;

/// What the supervisor asks an executor for; the low byte of a command's word. No [`kind`] of report has the same number.
pub(crate) mod op {
    /// Go back to the guest with this `rax`, all else as it was.
    pub(crate) const ANSWER: u32 = 7;
    /// Go to the guest with these registers.
    pub(crate) const LOAD: u32 = 8;
    /// Save the extended state into the mailbox.
    pub(crate) const SAVE_XSTATE: u32 = 9;
    /// Load the extended state from the mailbox.
    pub(crate) const LOAD_XSTATE: u32 = 10;
}

/// What an executor reports; the low byte of a report's word.
pub(crate) mod kind {
    /// The command is done, or the executor has just started.
    pub(crate) const DONE: u32 = 1;
    /// The guest called through a rewritten site.
    pub(crate) const CALL: u32 = 2;
    /// The guest's system call raised `SIGSYS`.
    pub(crate) const TRAPPED_CALL: u32 = 3;
    /// A signal arrived in guest code, or while the guest was stopped.
    pub(crate) const SIGNAL: u32 = 4;
    /// The run was interrupted.
    pub(crate) const INTERRUPTED: u32 = 5;
    /// The executor's own code faulted: the guest tampered with it.
    pub(crate) const BROKEN: u32 = 6;
}

/// The word of a half whose task is dead. Its sequence number is never used.
pub(crate) const DEAD: u32 = !0;
