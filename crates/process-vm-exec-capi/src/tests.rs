//! Claims about runs, in spaces that are created: they need no other process to attach to.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use process_vm_exec::{AddressSpace, Call, Errno, Mapping, Protection, ServiceCalls, SigInfo, SignalSet};

use crate::abi::{Bases, SigContext};
use crate::fpstate::{FpState, LEGACY_LEN};
use crate::own;
use crate::process::Process;
use crate::run::{Frame, Guest, run_in, syscall_in};
use crate::watch::Slot;

/// `mov $39, %eax; syscall; mov %eax, %ebx; mov $110, %eax; syscall; hlt`.
const TWO_CALLS: &[u8] = &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x89, 0xc3, 0xb8, 110, 0, 0, 0, 0x0f, 0x05, 0xf4];
/// `mov %eax, 0x10`.
const BAD_WRITE: &[u8] = &[0x89, 0x04, 0x25, 0x10, 0, 0, 0];
/// `jmp .`.
const SPIN: &[u8] = &[0xeb, 0xfe];
/// `movq %xmm0, %rax; mov $7, %ebx; movq %rbx, %xmm0; syscall; movq %xmm0, %rax; syscall`.
const USE_XMM0: &[u8] = &[
    0x66, 0x48, 0x0f, 0x7e, 0xc0, 0xbb, 7, 0, 0, 0, 0x66, 0x48, 0x0f, 0x6e, 0xc3, 0x0f, 0x05, 0x66, 0x48,
    0x0f, 0x7e, 0xc0, 0x0f, 0x05,
];
/// `rdfsbase %rbx; rdgsbase %r12; syscall`.
const READ_BASES: &[u8] = &[0xf3, 0x48, 0x0f, 0xae, 0xc3, 0xf3, 0x49, 0x0f, 0xae, 0xcc, 0x0f, 0x05];

/// Faults end runs; signals from elsewhere do not.
fn faults() -> SignalSet {
    SignalSet::empty().with(libc::SIGSEGV).with(libc::SIGBUS)
}

/// A context in a space of its own.
struct Caller {
    space: AddressSpace,
    guest: Guest,
    slot: std::sync::Arc<Slot>,
    frame: Frame,
}

impl Caller {
    fn new(code: &[u8]) -> Self {
        Self::in_space(AddressSpace::create().expect("a space"), code)
    }

    fn in_space(space: AddressSpace, code: &[u8]) -> Self {
        let at = space.map(Mapping::anonymous(4096, Protection::READ | Protection::WRITE)).expect("memory");
        space.write(at, code).expect("written");
        space.protect(at, 4096, Protection::READ | Protection::EXEC).expect("protected");
        let guest = Guest::new();
        let slot = std::sync::Arc::new(guest.slot());
        Process::current().expect("a process").watch.add(slot.clone());
        let context = SigContext { rip: at, cs: 0x33, ..<_>::default() };
        let frame = Frame { context, bases: Bases::default(), fpstate: None };
        Self { space, guest, slot, frame }
    }

    fn run(&mut self, signals: SignalSet) -> Result<SigInfo, Errno> {
        let watch = &Process::current().expect("a process").watch;
        run_in(&self.space, &mut self.guest, &mut self.frame, signals, (&self.slot, watch))
    }

    fn rax_after_run(&mut self) -> u64 {
        let info = self.run(faults()).expect("it runs");
        assert_eq!(info.signal(), libc::SIGSYS);
        self.frame.context.rax
    }
}

/// Calls are executed in a created space, which has no descriptors that could be meant.
fn in_created(space: &AddressSpace) -> impl FnOnce(&Call<'_>) -> process_vm_exec::Result<u64> {
    move |call| space.syscall(call.nr(), call.args())
}

#[test]
fn a_run_ends_with_the_system_call_and_goes_on_with_its_answer() {
    let mut caller = Caller::new(TWO_CALLS);
    let start = caller.frame.context.rip;
    assert_eq!(caller.rax_after_run(), 39);
    assert_eq!(caller.frame.context.rip, start + 7);
    caller.frame.context.rax = 1234;
    assert_eq!(caller.rax_after_run(), 110);
    assert_eq!(caller.frame.context.rbx, 1234);
    let info = caller.run(faults()).expect("it faults");
    assert_eq!((info.signal(), caller.frame.context.trapno), (libc::SIGSEGV, 13));
}

#[test]
fn a_system_call_is_reported_as_syscall_user_dispatch_has_it() {
    let mut caller = Caller::new(TWO_CALLS);
    let info = caller.run(faults()).expect("it runs");
    let bytes = info.as_bytes();
    assert_eq!((info.signal(), info.code(), info.errno()), (libc::SIGSYS, 2, 0));
    assert_eq!(info.addr(), caller.frame.context.rip);
    assert_eq!(bytes[24..28], 39u32.to_ne_bytes());
    assert_eq!(bytes[28..32], 0xc000_003eu32.to_ne_bytes());
}

#[test]
fn registers_that_the_caller_changes_between_runs_are_loaded() {
    let mut caller = Caller::new(TWO_CALLS);
    let start = caller.frame.context.rip;
    caller.rax_after_run();
    (caller.frame.context.rip, caller.frame.context.r12) = (start, 55);
    assert_eq!(caller.rax_after_run(), 39);
    assert_eq!(caller.frame.context.r12, 55);
}

#[test]
fn a_fault_tells_address_and_access() {
    let mut caller = Caller::new(BAD_WRITE);
    let info = caller.run(faults()).expect("it faults");
    assert_eq!((info.signal(), info.code(), info.addr()), (libc::SIGSEGV, 1, 0x10));
    let SigContext { trapno, err, cr2, .. } = caller.frame.context;
    assert_eq!((trapno, err, cr2), (14, 0b110, 0x10));
}

#[test]
fn what_no_processor_can_load_is_refused_and_nothing_changes() {
    let mut caller = Caller::new(TWO_CALLS);
    let good = caller.frame.context;
    for bad in [SigContext { cs: 8, ..good }, SigContext { rip: 1 << 63, ..good }] {
        caller.frame.context = bad;
        assert_eq!(caller.run(faults()).map(|info| info.signal()), Err(Errno::INVAL));
        assert_eq!(caller.frame.context, bad);
    }
    caller.frame.context = good;
    assert_eq!(caller.rax_after_run(), 39);
}

#[test]
fn without_fpstate_vector_registers_stay_from_run_to_run() {
    let mut caller = Caller::new(USE_XMM0);
    assert_eq!(caller.rax_after_run(), 0);
    assert_eq!(caller.rax_after_run(), 7);
}

#[test]
fn fpstate_is_loaded_and_stored() {
    let mut caller = Caller::new(USE_XMM0);
    let mut bytes = vec![0; LEGACY_LEN];
    bytes[24..28].copy_from_slice(&0x1f80u32.to_ne_bytes());
    bytes[160] = 99;
    caller.frame.fpstate = Some(FpState { bytes });
    assert_eq!(caller.rax_after_run(), 99);
    let state = caller.frame.fpstate.as_mut().expect("it is there");
    assert_eq!(state.bytes[160], 7);
    state.bytes[160] = 98;
    assert_eq!(caller.rax_after_run(), 98);
}

#[test]
fn segment_bases_are_those_that_are_given() {
    let mut caller = Caller::new(READ_BASES);
    caller.frame.bases = Bases { fs: 0x1234_5000, ..own::bases() };
    caller.rax_after_run();
    assert_eq!(caller.frame.context.rbx, 0x1234_5000);
    assert_ne!(own::bases().fs, 0);
    let mut caller = Caller::new(READ_BASES);
    caller.frame.bases = own::bases();
    caller.rax_after_run();
    assert_eq!(caller.frame.context.rbx, own::bases().fs);
}

#[test]
fn system_calls_are_executed_in_the_space() {
    let space = AddressSpace::builder().service_calls(ServiceCalls::All).create().expect("a space");
    let executed = |nr: i64, rdi: u64| {
        let mut context = SigContext { rax: nr.cast_unsigned(), rdi, ..<_>::default() };
        syscall_in(in_created(&space), &mut context).expect("the space lives");
        context.rax.cast_signed()
    };
    assert_eq!(executed(libc::SYS_getpid, 0), i64::from(space.pid().expect("a live space").as_raw_pid()));
    assert_eq!(executed(libc::SYS_close, 9999), -i64::from(libc::EBADF));
    assert_eq!(executed(100_000, 0), -i64::from(libc::ENOSYS));
    assert_eq!(executed(libc::SYS_munmap, 0x7000_0000_0000), -i64::from(libc::EINVAL), "rsi is 0");
}

#[test]
fn threads_run_in_one_space_at_the_same_time() {
    let mut caller = Caller::new(TWO_CALLS);
    thread::scope(|scope| {
        let space = &caller.space;
        let (start, watch) = (caller.frame.context, &Process::current().expect("a process").watch);
        for _ in 0..3 {
            scope.spawn(move || {
                let mut guest = Guest::new();
                let slot = guest.slot();
                for _ in 0..100 {
                    let mut frame = Frame { context: start, bases: Bases::default(), fpstate: None };
                    run_in(space, &mut guest, &mut frame, faults(), (&slot, watch)).expect("it runs");
                    assert_eq!(frame.context.rax, 39);
                }
            });
        }
    });
    assert_eq!(caller.rax_after_run(), 39);
}

#[test]
fn a_space_that_dies_during_a_run_is_no_process() {
    let mut caller = Caller::new(SPIN);
    let pid = caller.space.pid().expect("a live space").as_raw_pid();
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        // SAFETY: only sends a signal.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    });
    assert_eq!(caller.run(faults()).map(|info| info.signal()), Err(Errno::SRCH));
    killer.join().expect("it has killed");
    let mut context = SigContext { rax: 39, ..<_>::default() };
    assert_eq!(syscall_in(in_created(&caller.space), &mut context), Err(Errno::SRCH));
}

/// Runs the ignored test `name` in a process of its own, one thread of the test's and all signals of `blocked`
/// blocked in all of them: the harness has threads that would take signals for the process.
fn passes_alone(name: &str, blocked: &[i32]) {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--ignored", "--exact", &format!("tests::{name}"), "--test-threads=1"]);
    let blocked = blocked.to_vec();
    // SAFETY: between fork and exec only calls that may be made there (signal-safety(7)).
    unsafe {
        command.pre_exec(move || {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for &signal in &blocked {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
            Ok(())
        });
    }
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{:?}: {said}", output.status);
}

/// Sends this thread or its process a signal, after a while.
fn send_later(signal: i32, to: To) -> thread::JoinHandle<()> {
    // SAFETY: asks for a number.
    let [pid, tid] = unsafe { [libc::getpid(), libc::gettid()] };
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        // SAFETY: these only send a signal.
        unsafe {
            match to {
                To::Process => libc::kill(pid, signal),
                To::Thread => libc::tgkill(pid, tid, signal),
            }
        };
    })
}

#[derive(Clone, Copy)]
enum To {
    Process,
    Thread,
}

#[test]
fn a_blocked_signal_of_the_mask_ends_the_run_and_is_taken() {
    passes_alone("alone_a_signal_ends_a_run", &[libc::SIGUSR1, libc::SIGUSR2]);
}

#[test]
#[ignore = "started by a_blocked_signal_of_the_mask_ends_the_run_and_is_taken"]
fn alone_a_signal_ends_a_run() {
    let mask = faults().with(libc::SIGUSR1);
    let mut caller = Caller::new(SPIN);
    for to in [To::Process, To::Thread, To::Process] {
        let start = Instant::now();
        let sender = send_later(libc::SIGUSR1, to);
        let info = caller.run(mask).expect("it is interrupted");
        let spin = caller.frame.context.rip;
        assert!(start.elapsed() >= Duration::from_millis(50));
        assert_eq!((info.signal(), info.pid().cast_unsigned()), (libc::SIGUSR1, std::process::id()));
        sender.join().expect("it has sent");
        assert_eq!(crate::signals::pending(), 0);
        caller.frame.context.rip = spin;
    }
    // One that pends already: before the code runs.
    let mut caller = Caller::new(TWO_CALLS);
    let before = caller.frame.context.rip;
    send_later(libc::SIGUSR1, To::Thread).join().expect("it has sent");
    assert_eq!(caller.run(mask).map(|info| info.signal()), Ok(libc::SIGUSR1));
    assert_eq!(caller.frame.context.rip, before);
    // One that is not in the mask stays.
    send_later(libc::SIGUSR2, To::Process).join().expect("it has sent");
    assert_eq!(caller.run(mask).map(|info| info.signal()), Ok(libc::SIGSYS));
    assert_eq!(crate::signals::pending(), 1 << (libc::SIGUSR2 - 1));
}

#[test]
fn a_signal_outside_the_mask_takes_its_usual_course() {
    passes_alone("alone_a_handler_runs", &[]);
}

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: i32) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// Installs [`count`].
fn catch(signal: i32, flags: i32) {
    // SAFETY: the handler only counts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

#[test]
#[ignore = "started by a_signal_outside_the_mask_takes_its_usual_course"]
fn alone_a_handler_runs() {
    // From outside: the handler runs, and the run goes on until something else ends it.
    catch(libc::SIGUSR1, 0);
    let mut caller = Caller::new(SPIN);
    let pid = caller.space.pid().expect("a live space").as_raw_pid();
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(150));
        assert_eq!(HANDLED.load(Ordering::SeqCst), 1, "while the run goes on");
        // SAFETY: only sends a signal.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    });
    let sender = send_later(libc::SIGUSR1, To::Thread);
    assert_eq!(caller.run(faults()).map(|info| info.signal()), Err(Errno::SRCH));
    sender.join().expect("it has sent");
    killer.join().expect("it has seen the handler run");

    // From the code: the caller's handler runs, and says whether the call is restarted.
    catch(libc::SIGSEGV, 0);
    let mut caller = Caller::new(BAD_WRITE);
    let outcome = caller.run(SignalSet::empty());
    assert_eq!(outcome.map(|info| info.signal()), Err(Errno::INTR));
    assert_eq!((HANDLED.load(Ordering::SeqCst), caller.frame.context.cr2), (2, 0x10));
    // And a run that it does not concern is possible afterwards.
    assert_eq!(caller.run(faults()).map(|info| info.addr()), Ok(0x10));
}
