//! A guest that writes what the service task and executors report is not believed, and keeps nobody else.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use std::{fs, thread};

use iced_x86::code_asm::*;
use process_vm_exec::{
    AddressSpace, Context, DEFAULT_REGION, Engine, Error, Exit, Mapping, ServiceCalls, SignalSet, Sysno,
    WaitStatus,
};
use rustix::fs::MemfdFlags;
use rustix::thread::CpuSet;

use crate::common::{
    CODE, DATA, Guest, NR, PAGE, READ, READ_WRITE, alone, asm, asm_at, call_loop, claims, kill, pid_of,
    space, space_with, spin,
};

/// Where the library's region has what a guest can see of requests, and write of results and mailboxes.
const REGION: u64 = DEFAULT_REGION.start;
const REQUEST: u64 = REGION + (1 << 20);
const RESULT: u64 = REGION + (8 << 20);
const MAILBOXES: u64 = REGION + (32 << 20);
const ELSEWHERE: u64 = 0x5000_0000;

/// A context that answers each request itself, with a result of its own, as soon as it sees it.
fn forger(result: u64) -> impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    move |a| {
        let mut top = a.create_label();
        a.mov(rdi, REQUEST)?;
        a.mov(rsi, RESULT)?;
        a.mov(rdx, result)?;
        a.mov(rbx, DATA)?;
        a.mov(eax, dword_ptr(rdi))?;
        a.set_label(&mut top)?;
        a.inc(qword_ptr(rbx))?;
        a.mov(ecx, dword_ptr(rdi))?;
        a.cmp(ecx, eax)?;
        a.je(top)?;
        a.mov(eax, ecx)?;
        a.mov(qword_ptr(rsi + 8), rdx)?;
        a.mov(dword_ptr(rsi), ecx)?;
        a.jmp(top)
    }
}

/// A context that keeps the last report from being replaced.
fn hider(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut top = a.create_label();
    a.mov(rsi, RESULT)?;
    a.mov(rbx, DATA)?;
    a.mov(eax, dword_ptr(rsi))?;
    a.set_label(&mut top)?;
    a.inc(qword_ptr(rbx))?;
    for _ in 0..16 {
        a.mov(dword_ptr(rsi), eax)?;
    }
    a.jmp(top)
}

/// A `syscall; ret` in the resident code, which is at the same place in each space.
fn syscall_of_the_executor(engine: Engine) -> u64 {
    let probe = Guest::new(engine, spin);
    let mut page = [0; 4096];
    let code: Vec<u8> = (1..)
        .map_while(|n| probe.space.read(REGION + n * PAGE, &mut page).ok().map(|()| page))
        .flatten()
        .collect();
    let found = code.windows(3).position(|bytes| bytes == [0x0f, 0x05, 0xc3]).expect("syscall; ret");
    REGION + PAGE + found as u64
}

/// Runs a guest that reports something itself, which wakes nobody: so a signal wakes this thread until it has been seen.
/// Not an interrupt, to which the executor would report something else before anybody looks, where there is one processor.
fn run_until_seen(guest: &mut Guest) -> Exit {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler does nothing; nobody else here uses the signal.
    unsafe { libc::signal(libc::SIGUSR2, handler as libc::sighandler_t) };
    let is_seen = Arc::<AtomicBool>::default();
    let waker = {
        let is_seen = Arc::clone(&is_seen);
        // SAFETY: only asks which thread this is.
        let sleeper = unsafe { libc::pthread_self() };
        thread::spawn(move || {
            while !is_seen.load(Ordering::SeqCst) {
                // SAFETY: the thread lives: it waits for this one below.
                unsafe { libc::pthread_kill(sleeper, libc::SIGUSR2) };
                thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let exit = guest.run();
    is_seen.store(true, Ordering::SeqCst);
    waker.join().expect("the waker");
    exit
}

/// A guest that runs on a thread of its own until its space is gone.
struct Attacker {
    space: Arc<AddressSpace>,
    running: thread::JoinHandle<()>,
}

impl Attacker {
    /// Starts it, and waits until it attacks, which counts at [`DATA`].
    fn start(
        engine: Engine,
        build: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> Self {
        Self::start_in(Arc::new(space(engine, &asm(build))))
    }

    fn start_in(space: Arc<AddressSpace>) -> Self {
        let mut guest = Guest::in_space(Arc::clone(&space));
        let running = thread::spawn(move || while !matches!(guest.run(), Exit::Died(_)) {});
        let mut count = [0; 8];
        while count == [0; 8] {
            space.read(DATA, &mut count).expect("data");
        }
        Self { space, running }
    }

    /// Sees that the service task is late: it shares a processor with the attacker, and comes last there, while this
    /// thread looks on from another.
    fn delay_service(&self) {
        let pid = pid_of(&self.space);
        let here = rustix::thread::sched_getaffinity(None).expect("processors");
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| here.is_set(cpu));
        let (ours, theirs) = (cpus.next().expect("a processor"), cpus.next());
        let pin = |tid, cpu| {
            let mut set = CpuSet::new();
            set.set(cpu);
            let _ = rustix::thread::sched_setaffinity(tid, &set);
        };
        pin(None, ours);
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let tid = task.file_name().to_str().and_then(|name| name.parse().ok()).expect("a number");
            pin(rustix::process::Pid::from_raw(tid), theirs.unwrap_or(ours));
        }
        let none = libc::sched_param { sched_priority: 0 };
        // SAFETY: the parameters are valid for the call, which is about a task of ours.
        unsafe { libc::sched_setscheduler(pid, libc::SCHED_IDLE, &raw const none) };
    }

    fn end(self) {
        self.space.kill();
        self.running.join().expect("the attacker's thread");
    }
}

fn is_mapped(pid: i32, addr: u64) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().any(|line| line.starts_with(&format!("{addr:x}-")))
}

fn file(text: &[u8]) -> rustix::fd::OwnedFd {
    let memfd = rustix::fs::memfd_create("file", MemfdFlags::CLOEXEC).expect("a file");
    rustix::io::write(&memfd, text).expect("its text");
    memfd
}

/// What other spaces do meanwhile: all that once took a lock that spaces shared.
fn others_are_served(engine: Engine) {
    let mut other = Guest::new(engine, call_loop);
    let file = file(b"ours");
    other.space.map(Mapping::file(file.as_fd(), 0, PAGE, READ).at(ELSEWHERE)).expect("room for a file");
    let fork = other.space.fork().expect("a fork");
    assert!(pid_of(&fork) != 0);
    assert_eq!(other.call().nr, u64::from(NR));
}

claims! {
    fn what_has_been_unmapped_is_gone_when_unmap_says_so(engine) {
        for _ in 0..20 {
            let space = Arc::new(space(engine, &asm(forger(0))));
            space.map(Mapping::anonymous(PAGE, READ_WRITE).at(ELSEWHERE)).expect("what is to be unmapped");
            let attacker = Attacker::start_in(Arc::clone(&space));
            attacker.delay_service();
            let pid = pid_of(&space);
            assert!(is_mapped(pid, ELSEWHERE));
            if space.unmap(ELSEWHERE, PAGE).is_ok() {
                assert!(!is_mapped(pid, ELSEWHERE), "unmap returned before it had happened");
            }
            attacker.end();
        }
    }

    fn results_are_the_kernels(engine) {
        for _ in 0..100 {
            let attacker = Attacker::start(engine, forger(0xdead_beef));
            if let Ok(parent) = attacker.space.syscall(Sysno::getppid, [0; 6]) {
                assert_ne!(parent, 0xdead_beef);
            }
            if let Ok(addr) = attacker.space.map(Mapping::anonymous(PAGE, READ_WRITE)) {
                assert_ne!(addr, 0xdead_beef);
            }
            attacker.end();
        }
    }

    /// With the signature of the report that it repeats.
    fn a_report_is_good_for_one_request(engine) {
        for _ in 0..50 {
            let attacker = Attacker::start(engine, |a| {
                let (mut first, mut top) = (a.create_label(), a.create_label());
                a.mov(rdi, REQUEST)?;
                a.mov(rsi, RESULT)?;
                a.mov(rbx, DATA)?;
                // A report, and then the same for each request that follows.
                a.mov(ecx, dword_ptr(rdi))?;
                a.set_label(&mut first)?;
                a.inc(qword_ptr(rbx))?;
                a.mov(eax, dword_ptr(rsi))?;
                a.cmp(eax, ecx)?;
                a.je(first)?;
                a.mov(r8, qword_ptr(rsi + 8))?;
                a.mov(r9, qword_ptr(rsi + 16))?;
                a.set_label(&mut top)?;
                a.mov(ecx, dword_ptr(rdi))?;
                a.cmp(ecx, eax)?;
                a.je(top)?;
                a.mov(eax, ecx)?;
                a.mov(qword_ptr(rsi + 8), r8)?;
                a.mov(qword_ptr(rsi + 16), r9)?;
                a.mov(dword_ptr(rsi), ecx)?;
                a.jmp(top)
            });
            let mapping = |at| Mapping::anonymous(PAGE, READ_WRITE).at(at);
            attacker.space.map(mapping(ELSEWHERE)).expect("the report that is repeated");
            if let Ok(addr) = attacker.space.map(mapping(ELSEWHERE + PAGE)) {
                assert_eq!(addr, ELSEWHERE + PAGE);
            }
            attacker.end();
        }
    }

    /// An executor has no filter at first.
    fn an_executor_that_somebody_else_reports_runs_nothing(engine) {
        const FIRST_REPORT: u32 = 0x101;
        const ENTRY: u64 = CODE + 64;
        // The native engine runs contexts in its caller.
        if engine == Engine::Native {
            return;
        }
        for _ in 0..40 {
            let mut code = asm(|a| {
                let mut top = a.create_label();
                a.mov(rsi, MAILBOXES + (32 << 10))?;
                a.mov(rbx, DATA)?;
                a.set_label(&mut top)?;
                a.inc(qword_ptr(rbx))?;
                a.mov(dword_ptr(rsi), FIRST_REPORT)?;
                a.jmp(top)
            });
            code.resize(usize::try_from(ENTRY - CODE).expect("small"), 0);
            code.extend(asm_at(ENTRY, |a| {
                let mut top = a.create_label();
                a.mov(rbx, DATA + 8)?;
                a.set_label(&mut top)?;
                a.inc(qword_ptr(rbx))?;
                a.jmp(top)
            }));
            let attacker = Attacker::start_in(Arc::new(space(engine, &code)));
            let (pid, attacked) = (pid_of(&attacker.space), Arc::clone(&attacker.space));
            let second = thread::spawn(move || {
                let mut second = Context::new(ENTRY, 0);
                let _ = attacked.run(&mut second, &SignalSet::all());
            });
            let mut word = [0; 8];
            // Its command may never come to the second context: what the attacker writes is there instead.
            let patience = Instant::now() + Duration::from_secs(1);
            while word == [0; 8] && !second.is_finished() && Instant::now() < patience {
                if attacker.space.read(DATA + 8, &mut word).is_err() {
                    break;
                }
            }
            if word != [0; 8] {
                for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                    let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                    let filters = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
                    let is_service = task.file_name().to_str() == Some(pid.to_string().as_str());
                    if let (Some(filters), false) = (filters, is_service) {
                        assert_eq!(filters.trim(), "2", "an executor runs without its filter");
                    }
                }
            }
            attacker.end();
            second.join().expect("the second context's thread");
        }
    }

    /// The first run of a context waits for its task to begin.
    fn a_kill_ends_a_first_run_whose_beginning_a_guest_hides(engine) {
        // The native engine runs contexts in its caller.
        if engine == Engine::Native {
            return;
        }
        for _ in 0..3 {
            let attacker = Attacker::start(engine, hider);
            let mut second = Context::new(CODE, 0);
            let (interrupter, attacked) = (second.interrupter(), Arc::clone(&attacker.space));
            let running = thread::spawn(move || attacked.run(&mut second, &SignalSet::all()));
            // The more often it is hidden, the better: but it may be late.
            thread::sleep(Duration::from_millis(50));
            let patience = Instant::now() + Duration::from_secs(20);
            while !running.is_finished() {
                assert!(Instant::now() < patience, "the run goes on");
                interrupter.kill();
                thread::sleep(Duration::from_millis(1));
            }
            assert!(matches!(running.join(), Ok(Ok(Exit::Died(_)))));
            attacker.end();
        }
    }

    /// A process does not end before all have collected its tasks who trace any: its supervisor's threads do, when they run contexts
    /// the next time. So none of them may wait for the end before it has collected its own.
    fn a_forged_beginning_ends_the_run_also_of_who_traces_another_task_there(engine) {
        const CALLS: u64 = CODE + 0x400;
        const NONSENSE: u32 = 0x7777;
        /// Where the mailbox of the third context is.
        const ATTACKED: u64 = MAILBOXES + (64 << 10);
        if engine == Engine::Native {
            return;
        }
        let mut code = asm(|a| {
            let (mut top, mut again) = (a.create_label(), a.create_label());
            a.mov(rdi, ATTACKED)?;
            a.mov(rbx, DATA)?;
            a.set_label(&mut top)?;
            a.inc(qword_ptr(rbx))?;
            a.cmp(dword_ptr(rdi), 0)?;
            a.je(top)?;
            // It is about to begin.
            a.mov(ecx, 2000)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(rdi), NONSENSE)?;
            a.dec(ecx)?;
            a.jne(again)?;
            a.syscall()?;
            a.jmp(top)
        });
        code.resize(usize::try_from(CALLS - CODE).expect("small"), 0);
        code.extend(asm_at(CALLS, call_loop));
        for _ in 0..5 {
            let space = Arc::new(space(engine, &code));
            let (seated, is_seated) = mpsc::channel();
            let (go, may_go) = mpsc::channel();
            let (ended, end) = mpsc::channel();
            let attacked = Arc::clone(&space);
            let victim = thread::spawn(move || {
                let run = |ctx: &mut Context| attacked.run(ctx, &SignalSet::all());
                let mut first = Context::new(CALLS, 0);
                assert!(matches!(run(&mut first), Ok(Exit::Syscall)));
                seated.send(()).expect("who waits");
                may_go.recv().expect("the attacker");
                ended.send(run(&mut Context::new(CALLS, 0))).expect("who waits");
            });
            is_seated.recv().expect("a seat");
            let mut guest = Guest::in_space(Arc::clone(&space));
            let attacker = thread::spawn(move || {
                let exit = guest.run();
                (exit, guest)
            });
            let mut count = [0; 8];
            while count == [0; 8] {
                space.read(DATA, &mut count).expect("data");
            }
            go.send(()).expect("the victim");
            // Its tracer is elsewhere from here on, with its task in its hands.
            let (_, guest) = attacker.join().expect("the attacker");
            assert!(end.recv_timeout(Duration::from_secs(20)).expect("an end").is_ok());
            space.kill();
            victim.join().expect("the victim");
            drop(guest);
        }
    }

    /// Where contexts run under a tracer, they run at no other time: commands are not for those tasks, whoever writes them.
    fn a_command_that_a_guest_writes_makes_no_traced_task_run(engine) {
        const ANSWER: i32 = 7;
        const DONE: i32 = 1;
        const CALLS: u64 = CODE + 0x400;
        const UNSEEN: u64 = CODE + 0x800;
        /// What a mailbox has of the registers, and how they are loaded.
        const RIP: i32 = 0x400 + 7 * 8;
        const FLAVOUR: i32 = 0x1c0;
        if engine != Engine::Ptrace {
            return;
        }
        let mut code = asm(|a| {
            let mut top = a.create_label();
            a.mov(rdi, MAILBOXES + (32 << 10))?;
            a.mov(rbx, DATA)?;
            a.set_label(&mut top)?;
            a.inc(qword_ptr(rbx))?;
            for (place, value) in (0..).zip([UNSEEN, 0x33, 0x202, DATA + PAGE, 0x2b]) {
                a.mov(rax, value)?;
                a.mov(qword_ptr(rdi + (RIP + 8 * place)), rax)?;
            }
            a.mov(dword_ptr(rdi + FLAVOUR), 1)?;
            a.mov(ecx, dword_ptr(rdi))?;
            a.cmp(cl, DONE)?;
            a.jne(top)?;
            a.and(ecx, !0xff)?;
            a.or(ecx, ANSWER)?;
            a.mov(dword_ptr(rdi), ecx)?;
            a.inc(qword_ptr(rbx + 16))?;
            a.jmp(top)
        });
        let parts = [
            (CALLS, asm_at(CALLS, call_loop)),
            (
                UNSEEN,
                asm_at(UNSEEN, |a| {
                    let mut top = a.create_label();
                    a.mov(rbx, DATA + 8)?;
                    a.set_label(&mut top)?;
                    a.inc(qword_ptr(rbx))?;
                    a.jmp(top)
                }),
            ),
        ];
        for (at, part) in parts {
            code.resize(usize::try_from(at - CODE).expect("small"), 0);
            code.extend(part);
        }
        let (mut attacked, mut commands) = (0, 0);
        for _ in 0..40 {
            let attacker = Attacker::start_in(Arc::new(space(engine, &code)));
            let word = |at| {
                let mut word = [0; 8];
                attacker.space.read(at, &mut word).ok().map(|()| u64::from_ne_bytes(word))
            };
            let second = thread::spawn({
                let space = Arc::clone(&attacker.space);
                move || {
                    let mut second = Context::new(CALLS, 0);
                    // A task whose first report is not its own ends the space.
                    (0..3).all(|_| matches!(space.run(&mut second, &SignalSet::all()), Ok(Exit::Syscall)))
                }
            });
            attacked += u32::from(second.join().expect("its thread"));
            // For a task that runs now, this is long.
            thread::sleep(Duration::from_millis(2));
            assert_eq!(word(DATA + 8).unwrap_or(0), 0, "guest code ran that no run had begun");
            commands += word(DATA + 16).unwrap_or(0);
            attacker.end();
        }
        assert!(attacked > 0 && commands > 0, "{attacked} tasks, {commands} commands");
    }

    fn nobody_waits_for_a_space_that_hides_its_answers(engine) {
        for request in [
            |space: &AddressSpace| drop(space.fork()),
            |space: &AddressSpace| drop(space.map(Mapping::file(file(b"theirs").as_fd(), 0, PAGE, READ))),
        ] {
            let attacker = Attacker::start(engine, hider);
            let attacked = Arc::clone(&attacker.space);
            let asking = thread::spawn(move || request(&attacked));
            others_are_served(engine);
            // Its answer may have been seen all the same.
            attacker.end();
            asking.join().expect("the thread that has asked");
            others_are_served(engine);
        }
    }

    fn nobody_waits_for_a_space_that_has_been_stopped(engine) {
        let stopped = Arc::new(space(engine, &asm(spin)));
        let pid = pid_of(&stopped);
        kill(pid, libc::SIGSTOP);
        let is_done = Arc::new(AtomicBool::new(false));
        let asking: Vec<_> = [
            |space: &AddressSpace| drop(space.fork()),
            |space: &AddressSpace| drop(space.map(Mapping::file(file(b"theirs").as_fd(), 0, PAGE, READ))),
        ]
        .into_iter()
        .map(|request| {
            let (stopped, is_done) = (Arc::clone(&stopped), Arc::clone(&is_done));
            thread::spawn(move || {
                request(&stopped);
                is_done.store(true, Ordering::SeqCst);
            })
        })
        .collect();
        others_are_served(engine);
        assert!(!is_done.load(Ordering::SeqCst), "a stopped process does nothing");
        stopped.kill();
        asking.into_iter().for_each(|thread| thread.join().expect("the thread that has asked"));
        others_are_served(engine);
    }

    fn a_space_that_does_not_answer_in_time_is_killed(engine) {
        const LIMIT: Duration = Duration::from_millis(20);
        let space = AddressSpace::builder().engine(engine).time_limit(LIMIT).create().expect("a space");
        kill(pid_of(&space), libc::SIGSTOP);
        let error = space.map(Mapping::anonymous(PAGE, READ)).expect_err("it is stopped");
        assert!(matches!(error, Error::TimedOut { limit: LIMIT }), "{error}");
        let mut ctx = Context::new(CODE, 0);
        assert!(matches!(
            space.run(&mut ctx, &SignalSet::all()),
            Ok(Exit::Died(WaitStatus::Signaled(libc::SIGKILL)))
        ));
    }

    /// In the middle of the birth, or before, or after.
    fn a_fork_of_a_space_that_is_killed_meanwhile_leaves_nothing(engine) {
        alone(engine, module_path!(), "a_fork_of_a_space_that_is_killed_meanwhile_leaves_nothing", || {
            let keeper_of = |pid: i32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
                stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).expect("its parent").to_owned()
            };
            let probe = space(engine, &asm(spin));
            let keeper = keeper_of(pid_of(&probe));
            for round in 0..300 {
                let parent = Arc::new(space(engine, &asm(spin)));
                let killed = Arc::clone(&parent);
                let killer = thread::spawn(move || {
                    let start = std::time::Instant::now();
                    while start.elapsed() < Duration::from_micros(round) {}
                    killed.kill();
                });
                let fork = parent.fork();
                killer.join().expect("the killer");
                if let Ok(fork) = fork {
                    assert_eq!(fork.syscall(Sysno::getpid, [0; 6]).ok(), u64::try_from(pid_of(&fork)).ok());
                }
            }
            drop(probe);
            // The two templates stay. Who is still dying goes soon; a child that nobody knows would stay for ever.
            let children = format!("/proc/{keeper}/task/{keeper}/children");
            while fs::read_to_string(&children).expect("children").split_whitespace().count() > 2 {
                drop(space(engine, &asm(spin)).fork());
                thread::sleep(Duration::from_millis(1));
            }
        });
    }

    /// One that only sees the first of them sleep would let a guest take a wake-up that is another's.
    fn a_guest_that_sleeps_on_a_request_takes_nobodys_wake_up(engine) {
        if matches!(engine, Engine::Ptrace | Engine::Native) {
            return;
        }
        let syscall = syscall_of_the_executor(engine);
        let attacker = Attacker::start(engine, |a| {
            let mut top = a.create_label();
            a.mov(rsp, DATA + PAGE)?;
            a.mov(r14, syscall)?;
            a.mov(rbx, DATA)?;
            a.set_label(&mut top)?;
            a.inc(qword_ptr(rbx))?;
            a.mov(rdi, REQUEST)?;
            a.xor(esi, esi)?;
            a.mov(edx, dword_ptr(rdi))?;
            a.xor(r10d, r10d)?;
            a.mov(eax, 202)?;
            a.call(r14)?;
            a.jmp(top)
        });
        for _ in 0..200 {
            // The service task goes to sleep behind it.
            thread::sleep(Duration::from_micros(200));
            attacker.space.syscall(Sysno::getpid, [0; 6]).expect("an answer");
        }
        attacker.end();
    }

    /// It reports a call that it does not make, and spins: another space that its context goes to would wait for it.
    fn extended_state_that_a_guest_keeps_back_ends_its_space(engine) {
        const TRAPPED_CALL: i32 = 3;
        if matches!(engine, Engine::Ptrace | Engine::Native) {
            return;
        }
        let code = asm(|a| {
            let mut top = a.create_label();
            a.mov(rdi, MAILBOXES)?;
            a.mov(ecx, dword_ptr(rdi))?;
            a.and(ecx, !0xff)?;
            a.or(ecx, TRAPPED_CALL)?;
            a.mov(dword_ptr(rdi), ecx)?;
            a.set_label(&mut top)?;
            a.jmp(top)
        });
        let other = Guest::new(engine, spin);
        let mut guest = Guest::with_code(engine, &code);
        let exit = run_until_seen(&mut guest);
        assert!(matches!(exit, Exit::Syscall), "{exit:?}");
        let moved = other.space.run(&mut guest.ctx, &SignalSet::all());
        assert!(matches!(moved, Err(Error::Context(_))), "{moved:?}");
        guest.space.kill();
        assert!(matches!(guest.run(), Exit::Died(_)));
    }

    /// Breakpoints that are not there: whose fault comes late, a context that rewriting is about to send on, one would think.
    fn faults_that_a_guest_makes_up_end_its_run(engine) {
        const SIGNAL: i32 = 4;
        if matches!(engine, Engine::Ptrace | Engine::Native) {
            return;
        }
        // Where a mailbox has the registers, and what a signal's frame has told (`layout.rs`).
        const RIP: u64 = MAILBOXES + 0x400 + 7 * 8;
        const SEGMENT: u64 = RIP + 8;
        const TRAP: u64 = MAILBOXES + 0x188;
        const SIGINFO: u64 = MAILBOXES + 0x200;
        for segment in [0x33, 0x10] {
            let mut guest = Guest::new(engine, |a| {
                let (mut top, mut same) = (a.create_label(), a.create_label());
                a.mov(rdi, MAILBOXES)?;
                a.mov(r8, RIP)?;
                a.mov(r9, SEGMENT)?;
                a.mov(r10, TRAP)?;
                a.mov(r11, SIGINFO)?;
                a.set_label(&mut top)?;
                a.mov(ecx, dword_ptr(rdi))?;
                a.mov(qword_ptr(r8), 0x5000_0001)?;
                a.mov(qword_ptr(r9), segment)?;
                a.mov(qword_ptr(r10), 3)?;
                a.mov(dword_ptr(r11), libc::SIGTRAP)?;
                a.mov(dword_ptr(r11 + 8), 0x80)?;
                a.and(ecx, !0xff)?;
                a.or(ecx, SIGNAL)?;
                a.mov(dword_ptr(rdi), ecx)?;
                a.set_label(&mut same)?;
                a.cmp(ecx, dword_ptr(rdi))?;
                a.je(same)?;
                a.jmp(top)
            });
            let exit = run_until_seen(&mut guest);
            assert!(matches!(exit, Exit::Fault(_) | Exit::Died(_)), "{exit:?}");
        }
    }

    fn a_run_ends_when_its_space_is_killed(engine) {
        for by_context in [false, true] {
            let mut guest = Guest::new(engine, |a| {
                let mut top = a.create_label();
                a.mov(eax, NR)?;
                a.syscall()?;
                a.set_label(&mut top)?;
                a.mov(qword_ptr(rbx), 1)?;
                a.jmp(top)
            });
            guest.call();
            guest.regs().rbx = DATA;
            let (space, interrupter) = (Arc::clone(&guest.space), guest.ctx.interrupter());
            let running = thread::spawn(move || guest.run());
            let mut word = [0; 8];
            while word == [0; 8] {
                space.read(DATA, &mut word).expect("data");
            }
            if by_context { interrupter.kill() } else { space.kill() }
            assert!(matches!(running.join(), Ok(Exit::Died(WaitStatus::Signaled(libc::SIGKILL)))));
        }
    }

    fn a_run_ends_when_its_space_is_killed_though_the_service_task_has_ended(engine) {
        let code = asm(|a| {
            let mut top = a.create_label();
            a.mov(rbx, DATA)?;
            a.set_label(&mut top)?;
            a.mov(qword_ptr(rbx), 1)?;
            a.jmp(top)
        });
        let builder = AddressSpace::builder().engine(engine).service_calls(ServiceCalls::All);
        let mut guest = Guest::in_space(space_with(builder, &code));
        let others = guest.another(1);
        let running = thread::spawn(move || guest.run());
        while others.peek(DATA) == 0 {}
        let space = Arc::clone(&others.space);
        let status = format!("/proc/{}/status", pid_of(&space));
        // A filter that kills a thread for any call: `struct sock_filter`, and the `struct sock_fprog` that has it.
        const FILTER: u64 = DATA + 64;
        let kill_thread = u64::from(libc::BPF_RET | libc::BPF_K) | u64::from(libc::SECCOMP_RET_KILL_THREAD) << 32;
        for (at, word) in [(FILTER, kill_thread), (FILTER + 8, 1), (FILTER + 16, FILTER)] {
            others.poke(at, word);
        }
        space.syscall(Sysno::prctl, [libc::PR_SET_NO_NEW_PRIVS.unsigned_abs().into(), 1, 0, 0, 0, 0]).expect("prctl");
        let only_for_the_service_task = [libc::SECCOMP_SET_MODE_FILTER.into(), 0, FILTER + 8, 0, 0, 0];
        let asked = thread::spawn(move || space.syscall(Sysno::seccomp, only_for_the_service_task));
        let has_ended = |status: String| status.lines().any(|line| line.starts_with("State:\tZ"));
        let mut asked = Some(asked);
        while !fs::read_to_string(&status).is_ok_and(has_ended) {
            assert!(!running.is_finished(), "the filter kills one task");
            // It may get to say so before its next call.
            if let Some(asked) = asked.take_if(|asked| asked.is_finished()) {
                assert!(matches!(asked.join(), Ok(Ok(0))), "a filter is possible");
            }
            thread::yield_now();
        }
        others.space.kill();
        let died = running.join();
        assert!(matches!(died, Ok(Exit::Died(WaitStatus::Signaled(libc::SIGKILL)))), "{died:?}");
        if let Some(asked) = asked {
            assert!(matches!(asked.join(), Ok(Ok(0) | Err(Error::Dead))));
        }
    }

    /// It could, by the call with which executors set their own mask.
    fn a_guest_cannot_block_interrupts(engine) {
        if matches!(engine, Engine::Ptrace | Engine::Native) {
            return;
        }
        let syscall = syscall_of_the_executor(engine);
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.mov(eax, i32::try_from(libc::SYS_rt_sigprocmask).expect("a number"))?;
            a.mov(edi, libc::SIG_SETMASK)?;
            a.mov(rsi, DATA + 8)?;
            a.xor(edx, edx)?;
            a.mov(r10d, 8)?;
            a.mov(rcx, syscall)?;
            a.mov(rbx, DATA)?;
            a.mov(qword_ptr(rbx), 1)?;
            a.call(rcx)?;
            a.set_label(&mut top)?;
            a.jmp(top)
        });
        guest.poke(DATA + 8, u64::MAX);
        let (space, interrupter) = (Arc::clone(&guest.space), guest.ctx.interrupter());
        let running = thread::spawn(move || guest.run());
        let mut word = [0; 8];
        while word == [0; 8] && space.read(DATA, &mut word).is_ok() {}
        thread::sleep(Duration::from_millis(5));
        interrupter.interrupt();
        let exit = running.join().expect("the run");
        assert!(matches!(exit, Exit::Interrupted | Exit::Died(_)), "{exit:?}");
    }

    fn the_region_has_no_room_for_mappings(engine) {
        let guest = Guest::new(engine, spin);
        let maps = fs::read_to_string(format!("/proc/{}/maps", pid_of(&guest.space))).expect("maps");
        let mut next = REGION;
        for line in maps.lines() {
            let (range, _) = line.split_once(' ').expect("a range");
            let (start, end) = range.split_once('-').expect("two numbers");
            let number = |text| u64::from_str_radix(text, 16).expect("a number");
            if number(start) == next {
                next = number(end);
            }
        }
        assert_eq!(next, DEFAULT_REGION.end, "there is a gap");
        let near = guest.space.map(Mapping::anonymous(PAGE, READ).near(REGION + 0x8000));
        assert!(matches!(near, Err(Error::Reserved { .. })), "{near:?}");
        for (at, flags) in [(REGION, 0), (REGION - PAGE, libc::SHM_REMAP)] {
            let shmat = guest.space.syscall(Sysno::shmat, [0, at, u64::from(flags.unsigned_abs()), 0, 0, 0]);
            assert!(matches!(shmat, Err(Error::Reserved { .. })), "{shmat:?}");
        }
    }

    fn a_space_makes_the_calls_that_it_is_for(engine) {
        let confined = space(engine, &asm(spin));
        for call in [Sysno::openat, Sysno::socket, Sysno::kill, Sysno::ptrace, Sysno::execve, Sysno::pwrite64, Sysno::clone, Sysno::rt_sigprocmask, Sysno::sigaltstack] {
            let refused = confined.syscall(call, [0; 6]);
            assert!(matches!(refused, Err(Error::Confined { .. })), "{call}: {refused:?}");
        }
        let open = AddressSpace::builder()
            .engine(engine)
            .service_calls(ServiceCalls::All)
            .create()
            .expect("a space");
        let kind = [u64::from(libc::AF_UNIX.unsigned_abs()), u64::from(libc::SOCK_STREAM.unsigned_abs()), 0, 0, 0, 0];
        open.syscall(Sysno::socket, kind).expect("a socket");
        for call in [Sysno::fork, Sysno::vfork, Sysno::clone, Sysno::clone3, Sysno::exit, Sysno::exit_group, Sysno::execve] {
            let refused = open.syscall(call, [0; 6]);
            assert!(matches!(refused, Err(Error::EndOfTask { .. })), "{call}: {refused:?}");
        }
        open.syscall(Sysno::getpid, [0; 6]).expect("a number");
    }
}
