//! Guests that attack the executor in their own space hurt nobody but themselves.

use std::{fs, os::fd::AsFd, sync::Arc, thread, time::Duration};

use iced_x86::code_asm::*;
use process_vm_exec::{
    Engine, Error, Exit, Mapping, Protection, RegisteredFile, Registers, SignalSet, Sysno,
};
use rustix::fs::MemfdFlags;

use crate::common::{CODE, Guest, NR, Numbers, PAGE, STACK_TOP, call_loop, claims, fill, kill, pid_of};

/// The executor's pages.
const RESERVED: std::ops::Range<u64> = process_vm_exec::DEFAULT_REGION;
/// No attack may keep the supervisor for longer.
const PATIENCE: Duration = Duration::from_millis(4);
const ATTACKS: u64 = 60;

/// Mapped ranges of the executor, with their `rwxp` as /proc/PID/maps has it.
fn executor_pages(pid: i32) -> Vec<(u64, u64, String)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let parse = |line: &str| -> Option<(u64, u64, String)> {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?, words.next()?.to_owned()))
    };
    maps.lines().filter_map(parse).filter(|(start, ..)| RESERVED.contains(start)).collect()
}

/// Runs a guest that may do anything, for a while. What comes out does not matter; that it comes does.
fn run_for_a_while(guest: &mut Guest) {
    for _ in 0..3 {
        let interrupter = guest.ctx.interrupter();
        let timer = thread::spawn(move || {
            thread::sleep(PATIENCE);
            interrupter.interrupt();
        });
        let _ = guest.space.run(&mut guest.ctx, &SignalSet::all());
        timer.join().expect("the timer");
    }
}

/// A new guest works, whatever an old one did.
fn assert_others_are_well(engine: Engine) {
    let mut guest = Guest::new(engine, |a| {
        a.mov(eax, NR)?;
        a.syscall()
    });
    assert_eq!(guest.call().nr, u64::from(NR));
}

/// `rep stosb`, then a call.
fn scribble(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.rep().stosb()?;
    a.mov(eax, NR)?;
    a.syscall()
}

claims! {
    fn jumps_into_the_executors_code_end(engine) {
        let mut numbers = Numbers::new(1);
        for _ in 0..ATTACKS {
            let mut guest = Guest::new(engine, |a| { a.mov(eax, NR)?; a.syscall() });
            guest.call();
            let text: Vec<_> = executor_pages(pid_of(&guest.space)).into_iter().filter(|(.., rights)| rights.contains('x')).collect();
            assert!(!text.is_empty(), "the executor has no code");
            let (start, end, _) = &text[usize::try_from(numbers.below(text.len() as u64)).expect("small")];
            fill(guest.regs(), &mut numbers);
            guest.regs().rip = start + numbers.below((end - start).min(PAGE));
            run_for_a_while(&mut guest);
        }
        assert_others_are_well(engine);
    }

    /// With every number that a filter may let through in RAX.
    fn every_system_call_instruction_of_the_executor_is_harmless(engine) {
        let mut numbers = Numbers::new(2);
        let probe = Guest::new(engine, |a| a.nop());
        let mut sites = Vec::new();
        for (start, end, rights) in executor_pages(pid_of(&probe.space)) {
            let mut bytes = vec![0; usize::try_from(end - start).expect("small")];
            if rights.contains('x') && probe.space.read(start, &mut bytes).is_ok() {
                let found = bytes.windows(2).enumerate().filter(|(_, two)| *two == [0x0f, 0x05]);
                sites.extend(found.map(|(at, _)| start + at as u64));
            }
        }
        let me = u64::from(std::process::id());
        assert!(!sites.is_empty(), "the executor makes no system call");
        for site in sites {
            for nr in [9, 10, 15, 24, 35, 39, 56, 57, 59, 60, 62, 110, 200, 202, 231, 234, 257, 310, 311, 434, 435] {
                let mut guest = Guest::new(engine, |a| { a.mov(eax, NR)?; a.syscall() });
                guest.call();
                fill(guest.regs(), &mut numbers);
                // kill, tkill and tgkill of the supervisor would be the worst.
                *guest.regs() = Registers {
                    rip: site, rax: nr, rdi: me, rsi: if nr == 234 { me } else { 9 }, rdx: 9, ..*guest.ctx.registers()
                };
                run_for_a_while(&mut guest);
            }
        }
        assert_others_are_well(engine);
    }

    fn scribbling_over_all_that_is_writable_ends(engine) {
        for seed in 0..12 {
            let mut numbers = Numbers::new(seed);
            let mut guest = Guest::new(engine, scribble);
            guest.call();
            for (start, end, rights) in executor_pages(pid_of(&guest.space)) {
                if !rights.starts_with("rw") {
                    continue;
                }
                *guest.regs() = Registers {
                    rip: CODE, rdi: start, rcx: end - start, rax: numbers.next(), ..Registers::default()
                };
                run_for_a_while(&mut guest);
            }
        }
        assert_others_are_well(engine);
    }

    fn random_words_in_the_executors_pages_do_not_confuse_the_supervisor(engine) {
        let mut numbers = Numbers::new(3);
        for _ in 0..ATTACKS {
            let mut guest = Guest::new(engine, |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.mov(qword_ptr(rdi), rsi)?;
                a.mov(eax, NR)?;
                a.syscall()?;
                a.jmp(top)
            });
            guest.regs().rdi = crate::common::DATA;
            guest.call();
            let writable: Vec<_> = executor_pages(pid_of(&guest.space)).into_iter().filter(|(.., rights)| rights.starts_with("rw")).collect();
            assert!(!writable.is_empty(), "the executor has no memory");
            for _ in 0..4 {
                let (start, end, _) = &writable[usize::try_from(numbers.below(writable.len() as u64)).expect("small")];
                guest.regs().rdi = start + 8 * numbers.below((end - start) / 8);
                guest.regs().rsi = match numbers.below(4) { 0 => 0, 1 => u64::MAX, 2 => numbers.below(16), _ => numbers.next() };
                run_for_a_while(&mut guest);
            }
        }
        assert_others_are_well(engine);
    }

    /// Another flow of control of the same guest attacks while this one runs.
    fn scribbling_while_another_context_runs_ends(engine) {
        for seed in 0..4 {
            let mut numbers = Numbers::new(seed);
            let mut victim = Guest::new(engine, |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.mov(eax, NR)?;
                a.syscall()?;
                a.jmp(top)?;
                a.nops_with_size(7)?;
                scribble(a)
            });
            victim.call();
            let mut attacker = victim.another(1);
            let entry = CODE + 16;
            let pid = pid_of(&victim.space);
            let running = thread::spawn(move || {
                for _ in 0..20 {
                    let interrupter = victim.ctx.interrupter();
                    let timer = thread::spawn(move || {
                        thread::sleep(PATIENCE);
                        interrupter.interrupt();
                    });
                    for _ in 0..50 {
                        if victim.space.run(&mut victim.ctx, &SignalSet::all()).is_err() {
                            break;
                        }
                    }
                    timer.join().expect("the timer");
                }
            });
            for (start, end, rights) in executor_pages(pid) {
                if rights.starts_with("rw") {
                    *attacker.regs() = Registers {
                        rip: entry, rdi: start, rcx: end - start, rax: numbers.next(), ..Registers::default()
                    };
                    run_for_a_while(&mut attacker);
                }
            }
            // Whatever it was left in, it can be ended.
            if fs::metadata(format!("/proc/{pid}")).is_ok() {
                // SAFETY: kill(2) takes two integers and touches no memory of this process.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            running.join().expect("the supervisor does not panic");
        }
        assert_others_are_well(engine);
    }

    /// The header of the message in which a file comes is spoilt, and its receipt is claimed all the same.
    fn a_file_that_a_guest_does_not_take_goes_to_no_other(engine) {
        const HEADER: u64 = RESERVED.start + (8 << 20) + 0x1_0000;
        const RESULTS: u64 = RESERVED.start + (8 << 20) + 0x200;
        const ELSEWHERE: u64 = 0x5000_0000;
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.mov(rdi, HEADER)?;
            a.mov(rsi, RESULTS)?;
            a.set_label(&mut top)?;
            // More vectors than there can be (recvmsg(2), EMSGSIZE).
            a.mov(qword_ptr(rdi + 24), -1)?;
            for result in 0..3 {
                a.mov(qword_ptr(rsi + 64 * result), 1)?;
            }
            a.jmp(top)
        });
        let other = Guest::new(engine, call_loop);
        let file = |text: &[u8]| {
            let memfd = rustix::fs::memfd_create("file", MemfdFlags::CLOEXEC).expect("a file");
            rustix::io::write(&memfd, text).expect("its text");
            memfd
        };
        let (theirs, ours) = (file(b"theirs"), file(b"ours!!"));
        let mapping = |file| Mapping::file(file, 0, PAGE, Protection::READ).at(ELSEWHERE);
        let interrupter = guest.ctx.interrupter();
        let attacked = Arc::clone(&guest.space);
        let running = thread::spawn(move || guest.space.run(&mut guest.ctx, &SignalSet::all()));
        let mut word = [0; 4];
        while word != [0xff; 4] {
            attacked.read(HEADER + 24, &mut word).expect("what it writes");
        }
        for _ in 0..200 {
            let _ = attacked.map(mapping(theirs.as_fd()));
            other.space.map(mapping(ours.as_fd())).expect("room for a file");
            let mut text = [0; 6];
            other.space.read(ELSEWHERE, &mut text).expect("its text");
            assert_eq!(&text, b"ours!!");
        }
        interrupter.interrupt();
        let _ = running.join().expect("the guest");
        assert_others_are_well(engine);
    }

    /// The header has no room for descriptors: what is registered then does not arrive, and is not thought to have.
    fn a_registered_file_that_a_guest_does_not_take_is_not_another(engine) {
        const HEADER: u64 = RESERVED.start + (8 << 20) + 0x1_0000;
        const ELSEWHERE: u64 = 0x5000_0000;
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.mov(rdi, HEADER)?;
            a.set_label(&mut top)?;
            a.mov(qword_ptr(rdi + 40), 0)?;
            a.jmp(top)
        });
        let file = |text: &[u8]| {
            let memfd = rustix::fs::memfd_create("file", MemfdFlags::CLOEXEC).expect("a file");
            rustix::io::write(&memfd, text).expect("its text");
            memfd
        };
        let registered = RegisteredFile::new(file(b"registered")).expect("room");
        let passed = file(b"passed----");
        let interrupter = guest.ctx.interrupter();
        let attacked = Arc::clone(&guest.space);
        let running = thread::spawn(move || guest.space.run(&mut guest.ctx, &SignalSet::all()));
        thread::sleep(Duration::from_millis(20));
        let text = || {
            let mut text = [0; 10];
            attacked.read(ELSEWHERE, &mut text).expect("its text");
            text
        };
        let mut refused = 0;
        for _ in 0..100 {
            let first = Mapping::file(passed.as_fd(), 0, PAGE, Protection::READ).at(ELSEWHERE);
            if attacked.map(first).is_ok() {
                assert_eq!(&text(), b"passed----");
            }
            match attacked.map(Mapping::registered(registered, 0, PAGE, Protection::READ).at(ELSEWHERE)) {
                Ok(_) => assert_eq!(&text(), b"registered"),
                Err(_) => refused += 1,
            }
        }
        interrupter.interrupt();
        let _ = running.join().expect("the guest");
        // It can have had no part in what is right again.
        attacked.map(Mapping::registered(registered, 0, PAGE, Protection::READ).at(ELSEWHERE)).expect("a mapping");
        assert_eq!(&text(), b"registered", "after {refused} refusals");
        assert_others_are_well(engine);
    }

    /// Whose child is made by another clone than its own, or never, if one believes the guest.
    fn a_guest_that_lies_about_its_fork_has_no_part_in_other_spaces(engine) {
        const RESULTS: u64 = RESERVED.start + (8 << 20) + 0x200;
        for _ in 0..30 {
            let mut guest = Guest::new(engine, |a| {
                let mut top = a.create_label();
                a.mov(rsi, RESULTS)?;
                a.set_label(&mut top)?;
                a.mov(qword_ptr(rsi), 1)?;
                a.jmp(top)
            });
            let attacked = Arc::clone(&guest.space);
            let interrupter = guest.ctx.interrupter();
            let running = thread::spawn(move || guest.space.run(&mut guest.ctx, &SignalSet::all()));
            let mut word = [0; 8];
            while word != [1, 0, 0, 0, 0, 0, 0, 0] {
                attacked.read(RESULTS, &mut word).expect("what it writes");
            }
            let fork = attacked.fork();
            // In the slot that the fork would have had.
            let mut other = Guest::new(engine, call_loop);
            let pid = pid_of(&other.space);
            assert_eq!(other.space.syscall(Sysno::getpid, [0; 6]).ok(), u64::try_from(pid).ok());
            for _ in 0..20 {
                assert_eq!(other.call().nr, u64::from(NR));
                other.ctx.set_return(Ok(0));
            }
            drop(fork);
            interrupter.interrupt();
            let _ = running.join().expect("the guest");
        }
    }

    fn random_contexts_run_or_are_refused(engine) {
        const TASK_END: u64 = 0x7fff_ffff_f000;
        let mut numbers = Numbers::new(4);
        let (mut ran, mut refused) = (0, 0);
        for _ in 0..200 {
            let mut guest = Guest::new(engine, |a| { a.mov(eax, NR)?; a.syscall() });
            fill(guest.regs(), &mut numbers);
            let code_segment = if numbers.below(2) == 0 { 0x33 } else { 0x23 };
            let mut pick = |usual: u64| match numbers.below(8) {
                0 => numbers.next(),
                1 => numbers.next() >> 17,
                _ => usual,
            };
            let chosen = Registers {
                rip: pick(CODE),
                rsp: pick(STACK_TOP),
                rflags: pick(0x202),
                cs: pick(code_segment),
                ss: pick(0x2b),
                fs_base: pick(0),
                gs_base: pick(0),
                ..*guest.ctx.registers()
            };
            *guest.regs() = chosen;
            let can_run = chosen.rip < 1 << 47
                && chosen.fs_base < TASK_END
                && chosen.gs_base < TASK_END
                && (chosen.cs == 0x33 || chosen.cs == 0x23 && chosen.rip < 1 << 32)
                && chosen.ss == 0x2b;
            match guest.space.run(&mut guest.ctx, &SignalSet::all()) {
                Ok(Exit::Syscall | Exit::Fault(_)) if can_run => ran += 1,
                Err(Error::Context(_)) if !can_run => refused += 1,
                other => panic!("{other:?} for {chosen:#x?}"),
            }
            // Neither has done the space any harm.
            *guest.regs() = Registers { rip: CODE, rsp: STACK_TOP, ..Registers::default() };
            assert_eq!(guest.call().nr, u64::from(NR));
        }
        assert!(ran > 20 && refused > 20, "{ran} ran, {refused} were refused");
        assert_others_are_well(engine);
    }

    fn a_guest_cannot_reach_the_supervisor_by_signals(engine) {
        // The guest's own kill is a request to the supervisor, and nothing else.
        let mut guest = Guest::new(engine, |a| {
            a.mov(edi, u32::MAX)?;
            a.mov(esi, libc::SIGKILL)?;
            a.mov(eax, 62)?;
            a.syscall()
        });
        let call = guest.call();
        assert_eq!((call.nr, call.args[1]), (62, 9));
        kill(pid_of(&guest.space), 0);
    }
}
