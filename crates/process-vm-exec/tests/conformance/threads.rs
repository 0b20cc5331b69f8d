//! Many threads in one space, each with a context of its own; contexts that move among threads.

use std::{
    sync::{Arc, Barrier, mpsc},
    thread,
    time::{Duration, Instant},
};

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{AddressSpace, Context, Error, Exit, SignalSet};

use crate::common::{CODE, DATA, Guest, NR, STACK_TOP, asm, call_loop, claims, soak, space};

/// A sum that grows by R12 in RBX and on the stack, told at each call.
fn sums(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.push(0)?;
    a.set_label(&mut top)?;
    a.add(rbx, r12)?;
    a.add(qword_ptr(rsp), r12)?;
    a.mov(rdi, rbx)?;
    a.mov(rsi, qword_ptr(rsp))?;
    a.movq(xmm7, rbx)?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.movq(rdx, xmm7)?;
    a.cmp(rdx, rbx)?;
    a.je(top)?;
    a.ud2()
}

/// One more round of [`sums`], checked.
#[track_caller]
fn add_once(guest: &mut Guest, step: u64, round: u64) {
    let call = guest.call();
    assert_eq!(call.args[..2], [step * round; 2], "step {step}, round {round}");
    guest.ctx.set_return(Ok(round));
}

claims! {
    planned;

    fn thirty_two_threads_run_in_one_space(engine) {
        let first = Guest::new(engine, sums);
        let start = Arc::new(Barrier::new(32));
        let threads: Vec<_> = (1..=32)
            .map(|number| {
                let (mut guest, start) = (first.another(number), Arc::clone(&start));
                guest.regs().r12 = number;
                thread::spawn(move || {
                    start.wait();
                    for round in 1..=100 {
                        add_once(&mut guest, number, round);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("a thread");
        }
    }

    fn two_guests_in_one_space_really_run_at_once(engine) {
        let mut waiting = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.pause()?;
            a.cmp(dword_ptr(DATA), 0)?;
            a.je(top)?;
            a.mov(eax, NR)?;
            a.syscall()?;
            // Second entry point, at a place that the loop above does not depend on.
            a.nops_with_size(16)?;
            a.mov(dword_ptr(DATA), 1)?;
            a.mov(eax, NR + 1)?;
            a.syscall()
        });
        let mut waking = waiting.another(1);
        waking.regs().rip = CODE + 2 + 8 + 2 + 7;
        let waiter = thread::spawn(move || {
            let nr = waiting.call().nr;
            assert_eq!(nr, u64::from(NR));
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        assert_eq!(waking.call().nr, u64::from(NR) + 1);
        waiter.join().expect("the waiter");
    }

    fn a_context_moves_among_threads(engine) {
        let mut guest = Guest::new(engine, sums);
        guest.regs().r12 = 3;
        for round in 1..=60 {
            guest = thread::spawn(move || {
                add_once(&mut guest, 3, round);
                guest
            })
            .join()
            .expect("a thread");
        }
    }

    fn a_guest_stands_still_when_the_thread_that_ran_it_ends(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.mov(eax, NR)?;
            a.syscall()?;
            a.set_label(&mut top)?;
            a.add(qword_ptr(DATA), 1)?;
            a.jmp(top)
        });
        let guest = thread::spawn(move || {
            guest.call();
            guest
        })
        .join()
        .expect("a thread");
        thread::sleep(Duration::from_millis(20));
        assert_eq!(guest.peek(DATA), 0, "the guest ran on its own");
    }

    fn contexts_are_passed_around_a_ring_of_threads(engine) {
        const THREADS: usize = 4;
        const ROUNDS: u64 = 50;
        let first = Guest::new(engine, sums);
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<(Guest, u64)>()).unzip();
        let (done, finished) = mpsc::channel();
        for (index, receiver) in receivers.into_iter().enumerate() {
            let (next, done) = (senders[(index + 1) % THREADS].clone(), done.clone());
            thread::spawn(move || {
                for (mut guest, round) in receiver {
                    let step = guest.ctx.registers().r12;
                    add_once(&mut guest, step, round);
                    if round == ROUNDS { done.send(()).expect("the test") } else { next.send((guest, round + 1)).expect("a thread") }
                }
            });
        }
        for number in 1..=8 {
            let mut guest = first.another(number);
            guest.regs().r12 = number;
            senders[0].send((guest, 1)).expect("a thread");
        }
        for _ in 0..8 {
            finished.recv_timeout(Duration::from_secs(60)).expect("every context comes around");
        }
    }

    fn a_context_can_change_its_space(engine) {
        let code = asm(sums);
        let spaces = [space(engine, &code), space(engine, &code)];
        let mut ctx = Context::new(CODE, STACK_TOP);
        ctx.registers_mut().r12 = 5;
        // In turn: registers travel with the context, memory stays with each space.
        for round in 1..=10u64 {
            let space = &spaces[usize::from(round % 2 == 0)];
            match space.run(&mut ctx, &SignalSet::all()).expect("a run") {
                Exit::Syscall => assert_eq!(ctx.syscall().args[0], 5 * round),
                other => panic!("round {round}: {other:?}"),
            }
        }
    }

    fn a_context_outlives_its_space_or_says_what_went_with_that(engine) {
        let code = asm(call_loop);
        let (first, second) = (space(engine, &code), space(engine, &code));
        let mut ctx = Context::new(CODE, STACK_TOP);
        ctx.registers_mut().r12 = 5;
        let area = ctx.xstate().expect("the initial state").to_vec();
        let run = |space: &AddressSpace, ctx: &mut Context| match space.run(ctx, &SignalSet::all()) {
            Ok(Exit::Syscall) => Ok(ctx.registers().r12),
            Err(Error::Context(why)) => Err(why),
            other => panic!("{other:?}"),
        };
        assert_eq!(run(&first, &mut ctx), Ok(5));
        drop(first);
        // Some engines keep the extended state in the space.
        if let Err(why) = run(&second, &mut ctx) {
            assert!(why.contains("extended state"), "{why}");
            ctx.set_xstate(&area).expect("a state of this processor");
            assert_eq!(run(&second, &mut ctx), Ok(5));
        }
        assert_eq!(run(&second, &mut Context::new(CODE, STACK_TOP)), Ok(0), "the second space lives");
    }

    fn a_space_can_be_dropped_by_another_thread_than_made_it(engine) {
        for _ in 0..10 {
            let mut guest = Guest::new(engine, sums);
            guest.call();
            thread::spawn(move || drop(guest)).join().expect("a thread");
        }
    }

    fn more_contexts_than_threads_take_turns_in_one_space(engine) {
        let first = Guest::new(engine, sums);
        let mut guests: Vec<_> = (1..=40).map(|number| first.another(number)).collect();
        for (step, guest) in (1..).zip(&mut guests) {
            guest.regs().r12 = step;
        }
        for round in 1..=10 {
            for (step, guest) in (1..).zip(&mut guests) {
                add_once(guest, step, round);
            }
        }
    }

    fn contexts_and_threads_come_and_go(engine) {
        let first = Guest::new(engine, sums);
        let end = Instant::now() + soak();
        let mut number = 0;
        while Instant::now() < end {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    number = number % 60 + 1;
                    let mut guest = first.another(number);
                    guest.regs().r12 = number;
                    let step = number;
                    thread::spawn(move || (1..=3).for_each(|round| add_once(&mut guest, step, round)))
                })
                .collect();
            for thread in threads {
                thread.join().expect("a thread");
            }
        }
    }

    fn contexts_in_different_spaces_run_at_once(engine) {
        let threads: Vec<_> = (1..=8)
            .map(|step| {
                thread::spawn(move || {
                    let mut guest = Guest::new(engine, sums);
                    guest.regs().r12 = step;
                    (1..=100).for_each(|round| add_once(&mut guest, step, round));
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("a thread");
        }
    }
}
