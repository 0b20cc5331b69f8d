//! Interrupts: sticky, prompt, and none lost.

use std::{
    cell::Cell,
    fs,
    path::Path,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{AddressSpace, Engine, Exit, Interrupter, SignalSet};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::gettid,
};

use crate::common::{
    CODE, DATA, Guest, NR, Numbers, asm, call_loop, claims, kill, pid_of, soak, space_with, spin,
};

/// `top: add $1,%rbx; mov $NR,%eax; syscall; cmp %rax,%rbx; jne wrong; jmp top; wrong: ud2`
fn counted_calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    let mut wrong = a.create_label();
    a.set_label(&mut top)?;
    a.add(rbx, 1)?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.cmp(rax, rbx)?;
    a.jne(wrong)?;
    a.jmp(top)?;
    a.set_label(&mut wrong)?;
    a.ud2()
}

claims! {
    planned;

    fn an_interrupt_before_a_run_ends_it_at_once(engine) {
        let mut guest = Guest::new(engine, spin);
        for _ in 0..20 {
            guest.ctx.interrupter().interrupt();
            guest.interrupted();
            assert_eq!(guest.ctx.registers().rip, CODE);
        }
    }

    fn one_interrupt_ends_one_run(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        for _ in 0..50 {
            guest.ctx.interrupter().interrupt();
            guest.interrupted();
            guest.call();
            let count = guest.ctx.registers().rbx;
            guest.ctx.set_return(Ok(count));
            guest.call();
            let count = guest.ctx.registers().rbx;
            guest.ctx.set_return(Ok(count));
        }
    }

    fn an_interrupt_reaches_a_spinning_guest(engine) {
        let mut guest = Guest::new(engine, spin);
        for _ in 0..50 {
            guest.spin_for(Duration::from_millis(1));
            assert_eq!(guest.ctx.registers().rip, CODE);
        }
    }

    fn an_interrupt_for_one_context_leaves_the_others_alone(engine) {
        // Counts at DATA until it is told at DATA + 8 to make a call.
        let mut other = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.add(qword_ptr(DATA), 1)?;
            a.cmp(qword_ptr(DATA + 8), 0)?;
            a.je(top)?;
            a.mov(eax, NR)?;
            a.syscall()
        });
        let mut one = other.another(1);
        // One that waits for its first run, and one that has had it.
        for round in 0..10 {
            other.poke(DATA + 8, 0);
            other.regs().rip = CODE;
            let space = Arc::clone(&other.space);
            let running = thread::spawn(move || {
                other.call();
                other
            });
            let count = || {
                let mut bytes = [0; 8];
                space.read(DATA, &mut bytes).expect("the count");
                u64::from_ne_bytes(bytes)
            };
            // Interrupts that come to the wrong one find it running.
            let runs = |from: u64| {
                while count() < from + 1000 {
                    assert!(!running.is_finished(), "it was interrupted, round {round}");
                    thread::yield_now();
                }
            };
            for _ in 0..5 {
                runs(count());
                one.ctx.interrupter().interrupt();
            }
            runs(count());
            space.write(DATA + 8, &[1]).expect("the order to end");
            other = running.join().expect("a call, and no interrupt");
            one.interrupted();
        }
    }

    /// Its task is there a little before the context is in it.
    fn a_kill_ends_a_run_that_has_only_just_begun(engine) {
        if engine == Engine::Native {
            // Contexts run in their caller's task.
            return;
        }
        for _ in 0..40 {
            let mut guest = Guest::new(engine, spin);
            let (space, interrupter) = (Arc::clone(&guest.space), guest.ctx.interrupter());
            let tasks = format!("/proc/{}/task", pid_of(&space));
            let count = || fs::read_dir(&tasks).map_or(0, Iterator::count);
            let before = count();
            let running = thread::spawn(move || guest.run());
            while count() == before {}
            interrupter.kill();
            assert!(matches!(running.join(), Ok(Exit::Died(_))));
        }
    }

    /// At any moment of it, from anywhere.
    fn a_first_run_of_a_space_that_is_killed_ends_and_so_do_later_ones(engine) {
        let mut numbers = Numbers::new(3);
        for round in 0..300 {
            let mut guest = Guest::new(engine, spin);
            let pid = pid_of(&guest.space);
            let (ended, end) = mpsc::channel();
            let running = thread::spawn(move || {
                for _ in 0..2 {
                    ended.send(guest.space.run(&mut guest.ctx, &SignalSet::all())).expect("who waits");
                }
            });
            let delay = Duration::from_micros(numbers.below(400));
            let start = Instant::now();
            while start.elapsed() < delay {}
            kill(pid, libc::SIGKILL);
            for run in ["the first", "the second"] {
                let exit = end.recv_timeout(Duration::from_secs(20));
                assert!(matches!(exit, Ok(Ok(Exit::Died(_)))), "round {round}, {run}: {exit:?}");
            }
            running.join().expect("its thread");
        }
    }

    /// Not the one that it comes from, which takes its time to give up the extended state.
    fn a_kill_while_a_context_goes_to_another_space_ends_its_run_there(engine) {
        if matches!(engine, Engine::Ptrace | Engine::Native) {
            // Their tasks need not run for that.
            return;
        }
        let builder = AddressSpace::builder().engine(engine).time_limit(Duration::from_secs(100));
        let mut guest = Guest::in_space(space_with(builder, &asm(call_loop)));
        guest.call();
        let (left, interrupter) = (pid_of(&guest.space), guest.ctx.interrupter());
        let other = Guest::new(engine, spin);
        let signal = |signal| kill_process(Pid::from_raw(left).expect("a pid"), signal).expect("kill");
        let state = |stat: &Path| {
            let stat = fs::read_to_string(stat).unwrap_or_default();
            stat.rsplit(") ").next().and_then(|fields| fields.chars().next())
        };
        signal(Signal::STOP);
        let tasks = fs::read_dir(format!("/proc/{left}/task")).expect("its tasks");
        for task in tasks.map(|task| task.expect("a task").path().join("stat")) {
            while state(&task) != Some('T') {}
        }
        guest.regs().rip = CODE;
        let tid = AtomicI32::new(0);
        thread::scope(|scope| {
            let running = scope.spawn(|| {
                tid.store(gettid().as_raw_pid(), Ordering::SeqCst);
                other.space.run(&mut guest.ctx, &SignalSet::all())
            });
            let own = || format!("/proc/self/task/{}/stat", tid.load(Ordering::SeqCst));
            while state(Path::new(&own())) != Some('S') {}
            interrupter.kill();
            signal(Signal::CONT);
            assert!(matches!(running.join(), Ok(Ok(Exit::Died(_)))));
        });
        assert!(other.space.pid().is_none());
        assert_eq!(guest.space.pid().map(Pid::as_raw_pid), Some(left));
    }

    fn an_interrupter_outlives_its_context_and_means_no_other(engine) {
        let mut first = Guest::new(engine, call_loop);
        first.call();
        let interrupter = first.ctx.interrupter();
        let mut second = first.another(1);
        drop(first);
        interrupter.interrupt();
        // Where the first one ran, probably.
        for _ in 0..5 {
            second.call();
            interrupter.clone().interrupt();
        }
        drop(second);
        interrupter.interrupt();
    }

    fn single_interrupts_at_random_moments_are_all_reported(engine) {
        let mut guest = Guest::new(engine, spin);
        let interrupter = guest.ctx.interrupter();
        let reported = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, enough) = (Arc::clone(&reported), Arc::clone(&stop));
        let sender = thread::spawn(move || {
            let mut numbers = Numbers::new(1);
            let mut sent = 0;
            while !enough.load(Ordering::Relaxed) || sent == 0 {
                for _ in 0..numbers.below(3000) {
                    std::hint::spin_loop();
                }
                interrupter.interrupt();
                sent += 1;
                // One at a time: the next goes out when this one has been reported.
                while seen.load(Ordering::Acquire) < sent {
                    thread::yield_now();
                }
            }
            sent
        });
        let end = Instant::now() + soak();
        let mut count = 0;
        while Instant::now() < end {
            guest.interrupted();
            count += 1;
            reported.store(count, Ordering::Release);
        }
        // The sender waits for one more at most.
        stop.store(true, Ordering::Relaxed);
        let drain = Instant::now();
        while !sender.is_finished() && drain.elapsed() < Duration::from_secs(20) {
            guest.ctx.interrupter().interrupt();
            guest.interrupted();
            count += 1;
            reported.store(count, Ordering::Release);
        }
        sender.join().expect("the sender");
    }

    fn a_storm_of_interrupts_loses_none_and_changes_no_system_call(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        let reported = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let senders: Vec<_> = (0..8)
            .map(|seed| {
                let interrupter = guest.ctx.interrupter();
                let (reported, stop) = (Arc::clone(&reported), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut numbers = Numbers::new(seed);
                    while !stop.load(Ordering::Relaxed) {
                        let before = reported.load(Ordering::Acquire);
                        interrupter.interrupt();
                        while reported.load(Ordering::Acquire) == before && !stop.load(Ordering::Relaxed) {
                            thread::yield_now();
                        }
                        thread::sleep(Duration::from_micros(numbers.below(200)));
                    }
                })
            })
            .collect();
        let end = Instant::now() + soak();
        let (mut calls, mut interrupts) = (0, 0);
        while Instant::now() < end {
            match guest.run() {
                Exit::Syscall => {
                    calls += 1;
                    let nr = guest.ctx.syscall().nr;
                    let count = guest.ctx.registers().rbx;
                    assert_eq!((nr, count), (u64::from(NR), calls), "after {interrupts} interrupts");
                    guest.ctx.set_return(Ok(count));
                }
                Exit::Interrupted => {
                    interrupts += 1;
                    reported.store(interrupts, Ordering::Release);
                }
                other => panic!("{other:?} after {calls} calls and {interrupts} interrupts"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().expect("a sender");
        }
        assert!(interrupts > 0 && calls > 0, "{interrupts} interrupts, {calls} calls");
    }

    fn a_storm_over_a_spinning_guest_never_leaves_it_running(engine) {
        let mut guest = Guest::new(engine, spin);
        let stop = Arc::new(AtomicBool::new(false));
        let senders: Vec<_> = (0..8)
            .map(|_| {
                let (interrupter, stop) = (guest.ctx.interrupter(), Arc::clone(&stop));
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        interrupter.interrupt();
                        thread::sleep(Duration::from_micros(50));
                    }
                })
            })
            .collect();
        let end = Instant::now() + soak();
        while Instant::now() < end {
            guest.interrupted();
        }
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().expect("a sender");
        }
        // One more, with nobody else around: it has to be enough.
        guest.ctx.interrupter().interrupt();
        guest.interrupted();
    }

    /// Also while its thread has a context change from one space to another, which takes a lock.
    fn a_signal_handler_interrupts_the_run_of_its_own_thread(engine) {
        if matches!(engine, Engine::Ptrace | Engine::Native) {
            return;
        }
        thread_local! {
            static INTERRUPTER: Cell<*const Interrupter> = const { Cell::new(ptr::null()) };
        }
        extern "C" fn interrupt(_: libc::c_int) {
            // SAFETY: the thread that is interrupted here has put it there, and takes it away before it goes.
            if let Some(interrupter) = unsafe { INTERRUPTER.get().as_ref() } {
                interrupter.interrupt();
            }
        }
        let mut guest = Guest::new(engine, spin);
        let other = Guest::new(engine, spin);
        let interrupter = guest.ctx.interrupter();
        let handler: extern "C" fn(libc::c_int) = interrupt;
        // SAFETY: the handler does what a handler may; nobody else here uses the signal.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
        INTERRUPTER.set(&raw const interrupter);
        let stop = Arc::new(AtomicBool::new(false));
        let sender = {
            let stop = Arc::clone(&stop);
            // SAFETY: only asks which thread this is.
            let thread = unsafe { libc::pthread_self() };
            thread::spawn(move || {
                let mut numbers = Numbers::new(2);
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: the thread lives: it waits for this one below.
                    unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                    thread::sleep(Duration::from_micros(numbers.below(100)));
                }
            })
        };
        let end = Instant::now() + soak();
        for space in [&guest.space, &other.space].into_iter().cycle() {
            let exit = space.run(&mut guest.ctx, &SignalSet::all()).expect("a run");
            assert!(matches!(exit, Exit::Interrupted), "{exit:?}");
            if Instant::now() > end {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("the sender");
        INTERRUPTER.set(ptr::null());
    }
}
