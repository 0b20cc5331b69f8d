//! Signals from outside: reported if asked for, of their usual effect if not, and none lost.

use std::{process, thread, time::Duration};

use iced_x86::code_asm::*;
use process_vm_exec::{Exit, Registers, SigInfo, SignalSet, WaitStatus};

use crate::common::{CODE, Guest, NR, Numbers, call_loop, claims, fill, kill, pid_of, spin};

fn my_pid() -> i32 {
    i32::try_from(process::id()).expect("a pid")
}

/// Sends a signal a little later, while the guest runs.
fn kill_soon(pid: i32, signal: i32) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        kill(pid, signal);
    })
}

/// Runs to a signal from outside.
#[track_caller]
fn signal(guest: &mut Guest) -> SigInfo {
    match guest.run() {
        Exit::Signal(info) => info,
        other => panic!("a signal was expected, not {other:?}"),
    }
}

/// Sends `signal` with `value`, as sigqueue(3) does.
fn queue(pid: i32, signal: i32, value: usize) {
    let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
    // SAFETY: sigqueue(3) copies its arguments; the pointer is a number to all involved.
    let result = unsafe { libc::sigqueue(pid, signal, value) };
    assert_eq!(result, 0, "sigqueue: {}", std::io::Error::last_os_error());
}

claims! {
    planned;

    fn a_signal_while_the_guest_runs_is_reported_with_its_sender(engine) {
        let mut guest = Guest::new(engine, spin);
        let mut numbers = Numbers::new(1);
        fill(guest.regs(), &mut numbers);
        let before = *guest.ctx.registers();
        for number in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGWINCH] {
            let sender = kill_soon(pid_of(&guest.space), number);
            let info = signal(&mut guest);
            sender.join().expect("the sender");
            assert_eq!((info.signal(), info.pid(), info.code()), (number, my_pid(), libc::SI_USER));
            let after = *guest.ctx.registers();
            assert_eq!(Registers { rflags: before.rflags, ..after }, before);
        }
    }

    fn a_signal_before_the_first_run_is_reported(engine) {
        let mut guest = Guest::new(engine, spin);
        kill(pid_of(&guest.space), libc::SIGUSR1);
        assert_eq!(signal(&mut guest).signal(), libc::SIGUSR1);
    }

    fn a_queued_value_arrives(engine) {
        let mut guest = Guest::new(engine, spin);
        guest.spin_for(Duration::from_millis(1));
        for (number, value) in [(libc::SIGUSR1, 0x1234_5678_9abc), (libc::SIGRTMIN() + 3, 7)] {
            queue(pid_of(&guest.space), number, value);
            let info = signal(&mut guest);
            assert_eq!((info.signal(), info.code(), info.pid()), (number, libc::SI_QUEUE, my_pid()));
            assert_eq!(info.value(), value as u64);
        }
    }

    fn signals_that_arrive_at_an_exit_are_all_reported_later(engine) {
        let mut guest = Guest::new(engine, call_loop);
        for round in 0..20 {
            guest.call();
            let mut expected: Vec<i32> = vec![libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGWINCH, libc::SIGALRM];
            expected.extend((0..6).map(|i| libc::SIGRTMIN() + i));
            for &number in &expected {
                kill(pid_of(&guest.space), number);
            }
            let mut seen = Vec::new();
            // The guest may make some calls in between, but not for ever.
            for _ in 0..100_000 {
                match guest.run() {
                    Exit::Signal(info) => seen.push(info.signal()),
                    Exit::Syscall => {}
                    other => panic!("{other:?}"),
                }
                if seen.len() == expected.len() {
                    break;
                }
            }
            seen.sort_unstable();
            expected.sort_unstable();
            assert_eq!(seen, expected, "round {round}");
        }
    }

    fn a_signal_among_system_calls_changes_none_of_them(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.add(rbx, 1)?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.jmp(top)
        });
        guest.call();
        let pid = pid_of(&guest.space);
        let sender = thread::spawn(move || {
            for _ in 0..200 {
                kill(pid, libc::SIGUSR1);
                thread::sleep(Duration::from_micros(300));
            }
        });
        let (mut calls, mut signals) = (1, 0);
        while signals == 0 || !sender.is_finished() {
            match guest.run() {
                Exit::Syscall => calls += 1,
                Exit::Signal(info) => {
                    assert_eq!(info.signal(), libc::SIGUSR1);
                    signals += 1;
                }
                other => panic!("{other:?}"),
            }
            let called = guest.ctx.registers().rbx;
            assert!(called == calls || called == calls + 1, "{called} calls made, {calls} reported");
        }
        sender.join().expect("the sender");
    }

    fn a_signal_that_is_not_asked_for_has_its_usual_effect(engine) {
        for number in [libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP, libc::SIGQUIT, libc::SIGRTMIN() + 1] {
            let mut guest = Guest::new(engine, spin);
            let sender = kill_soon(pid_of(&guest.space), number);
            let set = SignalSet::all().without(number);
            for _ in 0..2 {
                match guest.run_with(&set) {
                    Ok(Exit::Died(status)) => assert_eq!(status, WaitStatus::Signaled(number)),
                    other => panic!("signal {number}: {other:?}"),
                }
            }
            sender.join().expect("the sender");
        }
    }

    fn a_signal_that_is_ignored_by_default_leaves_the_run_alone(engine) {
        let mut guest = Guest::new(engine, spin);
        let set = SignalSet::empty();
        for number in [libc::SIGWINCH, libc::SIGURG, libc::SIGCHLD, libc::SIGCONT] {
            let sender = kill_soon(pid_of(&guest.space), number);
            let interrupter = guest.ctx.interrupter();
            let timer = thread::spawn(move || {
                thread::sleep(Duration::from_millis(15));
                interrupter.interrupt();
            });
            match guest.run_with(&set) {
                Ok(Exit::Interrupted) => {}
                other => panic!("signal {number}: {other:?}"),
            }
            sender.join().expect("the sender");
            timer.join().expect("the timer");
        }
    }

    fn a_fault_that_is_not_asked_for_kills_the_guest_by_its_signal(engine) {
        for number in [libc::SIGILL, libc::SIGSEGV] {
            let mut guest = Guest::new(engine, |a| {
                if number == libc::SIGILL { a.ud2() } else { a.hlt() }
            });
            for _ in 0..2 {
                match guest.run_with(&SignalSet::all().without(number)) {
                    Ok(Exit::Died(status)) => assert_eq!(status, WaitStatus::Signaled(number)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn a_fault_signal_from_outside_is_told_from_a_fault(engine) {
        let mut guest = Guest::new(engine, spin);
        guest.spin_for(Duration::from_millis(1));
        for number in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS] {
            let sender = kill_soon(pid_of(&guest.space), number);
            let info = signal(&mut guest);
            sender.join().expect("the sender");
            assert_eq!((info.signal(), info.pid()), (number, my_pid()));
            assert_eq!(guest.ctx.registers().rip, CODE);
        }
    }

    fn a_killed_guest_is_reported_dead_for_ever(engine) {
        let mut guest = Guest::new(engine, spin);
        let sender = kill_soon(pid_of(&guest.space), libc::SIGKILL);
        for _ in 0..3 {
            match guest.run() {
                Exit::Died(status) => assert_eq!(status, WaitStatus::Signaled(libc::SIGKILL)),
                other => panic!("{other:?}"),
            }
        }
        sender.join().expect("the sender");
        let mut other = guest.another(1);
        assert!(matches!(other.run(), Exit::Died(WaitStatus::Signaled(libc::SIGKILL))));
    }

    fn a_killed_guest_is_reported_to_each_thread_whatever_the_others_do(engine) {
        let mut one = Guest::new(engine, call_loop);
        let mut other = one.another(1);
        one.call();
        let pid = pid_of(&one.space);
        // This thread has run a context, and now does nothing but wait for the other one.
        let thread = thread::spawn(move || {
            other.call();
            kill(pid, libc::SIGKILL);
            loop {
                match other.run() {
                    Exit::Syscall => {}
                    Exit::Died(status) => break assert_eq!(status, WaitStatus::Signaled(libc::SIGKILL)),
                    other => panic!("{other:?}"),
                }
            }
        });
        thread.join().expect("the other thread");
        assert!(matches!(one.run(), Exit::Died(WaitStatus::Signaled(libc::SIGKILL))));
    }

    fn a_guest_killed_at_an_exit_is_reported_dead_at_the_next_run(engine) {
        let mut guest = Guest::new(engine, call_loop);
        guest.call();
        kill(pid_of(&guest.space), libc::SIGKILL);
        loop {
            match guest.run() {
                // The signal may take a moment.
                Exit::Syscall => {}
                Exit::Died(status) => break assert_eq!(status, WaitStatus::Signaled(libc::SIGKILL)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn a_dead_space_refuses_everything_with_an_error(engine) {
        let mut guest = Guest::new(engine, spin);
        kill(pid_of(&guest.space), libc::SIGKILL);
        assert!(matches!(guest.run(), Exit::Died(_)));
        assert!(guest.space.map(process_vm_exec::Mapping::anonymous(4096, crate::common::READ)).is_err());
        assert!(guest.space.syscall(process_vm_exec::Sysno::getpid, [0; 6]).is_err());
        assert!(guest.space.fork().is_err());
        assert!(guest.space.write(CODE, &[0]).is_err());
    }

    fn guests_killed_at_random_moments_give_died(engine) {
        let mut numbers = Numbers::new(9);
        for round in 0..40 {
            let mut guest = Guest::new(engine, call_loop);
            guest.call();
            let pid = pid_of(&guest.space);
            let delay = Duration::from_micros(numbers.below(3000));
            let killer = thread::spawn(move || {
                thread::sleep(delay);
                kill(pid, libc::SIGKILL);
            });
            loop {
                match guest.run() {
                    Exit::Syscall => guest.ctx.set_return(Ok(0)),
                    Exit::Died(status) => break assert_eq!(status, WaitStatus::Signaled(libc::SIGKILL)),
                    other => panic!("round {round}: {other:?}"),
                }
            }
            killer.join().expect("the killer");
            assert!(matches!(guest.run(), Exit::Died(WaitStatus::Signaled(libc::SIGKILL))));
        }
    }
}
