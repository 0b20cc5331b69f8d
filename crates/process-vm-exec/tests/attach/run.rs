//! Run mode and calls of functions in a live process.

use process_vm_exec::{
    Context, Error, Exit, LiveProcess, Mapping, Owner, Protection, SignalSet, Tls, WaitStatus,
};

use crate::{
    common::{Execute as _, attached, attached_with, rounds, turn},
    target::{Linked, Target},
    trace::assert_no_trace,
};

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);
const READ_EXEC: Protection = Protection::READ.union(Protection::EXEC);
const PAGE: u64 = 4096;

fn with_space(linked: Linked, body: impl FnOnce(&mut Target, &LiveProcess)) {
    let _turn = turn();
    let Some(mut target) = Target::start_linked(linked, &["--workers=spin,nanosleep,rseq,tick"]) else {
        return;
    };
    let space = attached(target.pid());
    body(&mut target, &space);
    space.detach().expect("detaching");
    assert_no_trace(target.pid());
    target.quit();
}

/// Code in a page of the target's.
fn call(space: &LiveProcess, addr: u64, args: &[u64], tls: Tls) -> process_vm_exec::Result<u64> {
    // SAFETY: no function that is called here makes calls with descriptors.
    unsafe { space.call(addr, args, tls) }
}

fn code(space: &LiveProcess, bytes: &[u8]) -> u64 {
    let page = space.map(Mapping::anonymous(PAGE, READ_WRITE)).expect("a page");
    space.write(page, bytes).expect("code is written");
    space.protect(page, PAGE, READ_EXEC).expect("code is protected");
    page
}

#[test]
fn code_runs_to_its_system_calls() {
    with_space(Linked::Dynamically, |_, space| {
        // top: mov $7777, %eax; syscall; inc %rbx; jmp top
        let page = code(space, &[0xb8, 0x61, 0x1e, 0, 0, 0x0f, 0x05, 0x48, 0xff, 0xc3, 0xeb, 0xf4]);
        let mut ctx = Context::new(page, 0);
        for round in rounds(10_000) {
            ctx.registers_mut().rdi = u64::from(round);
            let exit = space.run(&mut ctx, &SignalSet::all()).expect("it runs");
            assert!(matches!(exit, Exit::Syscall), "{exit:?}");
            assert_eq!((ctx.syscall().nr, ctx.syscall().args[0]), (7777, u64::from(round)));
            assert_eq!(ctx.registers().rbx, u64::from(round));
            ctx.set_return(Ok(0));
        }
        drop(ctx);
        space.unmap(page, PAGE).expect("munmap");
    });
}

/// A signal's default action would end the executor and leave its pages.
#[test]
fn a_fault_that_nobody_asks_for_ends_the_attachment_and_leaves_nothing() {
    let _turn = turn();
    let Some(mut target) = Target::start(&["--workers=spin,nanosleep,tick"]) else { return };
    for _ in 0..10 {
        let space = attached(target.pid());
        // mov 8, %rax
        let page = code(&space, &[0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0]);
        let exit = space.run(&mut Context::new(page, 0), &SignalSet::empty()).expect("it runs");
        assert!(matches!(exit, Exit::Died(WaitStatus::Signaled(libc::SIGSEGV))), "{exit:?}");
        assert!(matches!(space.detach(), Err(Error::Dead)));
        assert_no_trace(target.pid());
    }
    target.report();
    target.quit();
}

#[test]
fn code_runs_to_its_faults() {
    with_space(Linked::Dynamically, |target, space| {
        // mov (%rdi), %rax; mov %rax, 8
        let page = code(space, &[0x48, 0x8b, 0x07, 0x48, 0x89, 0x04, 0x25, 8, 0, 0, 0]);
        let mut ctx = Context::new(page, 0);
        ctx.registers_mut().rdi = target.first.number("word");
        let exit = space.run(&mut ctx, &SignalSet::all()).expect("it runs");
        let Exit::Fault(fault) = exit else { panic!("{exit:?}") };
        assert_eq!((fault.signal, fault.addr), (libc::SIGSEGV, 8));
        // The first instruction read the target's memory.
        assert_eq!(ctx.registers().rax, 0x0123_4567_89ab_cdef);
        assert_eq!(ctx.registers().rip, page + 3);
        drop(ctx);
        space.unmap(page, PAGE).expect("munmap");
    });
}

/// Text of the target is never rewritten: its own threads run it too.
#[test]
fn text_of_the_target_stays_as_it_is() {
    with_space(Linked::Statically, |target, space| {
        let function = target.first.number("getpid");
        let mut before = [0; 32];
        space.read(function, &mut before).expect("its text");
        let stack = space.map(Mapping::anonymous(16 * PAGE, READ_WRITE)).expect("a stack");
        for _ in rounds(20) {
            let mut ctx = Context::new(function, stack + 16 * PAGE - 8);
            let exit = space.run(&mut ctx, &SignalSet::all()).expect("it runs");
            assert!(matches!(exit, Exit::Syscall), "{exit:?}");
            assert_eq!(ctx.syscall().nr, 39, "getpid");
        }
        let mut after = [0; 32];
        space.read(function, &mut after).expect("its text");
        assert_eq!(before, after);
        space.unmap(stack, 16 * PAGE).expect("munmap");
    });
}

#[test]
fn code_faults_into_the_executors_handlers_whosever_calls_mean() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,tick"]) else { return };
    let builder = LiveProcess::builder().handlers(Owner::Target);
    let space = attached_with(builder, target.pid());
    // ud2
    let page = code(&space, &[0x0f, 0x0b]);
    let mut ctx = Context::new(page, 0);
    let exit = space.run(&mut ctx, &SignalSet::all());
    assert!(matches!(exit, Ok(Exit::Fault(fault)) if fault.signal == libc::SIGILL), "{exit:?}");
    drop(ctx);
    space.unmap(page, PAGE).expect("munmap");
    space.detach().expect("detaching");
    assert_no_trace(target.pid());
    target.quit();
}

fn functions_are_called(linked: Linked) {
    with_space(linked, |target, space| {
        let first = target.first.clone();
        for tls in [Tls::Own, Tls::Main] {
            let call = |name: &str, args: &[u64]| call(space, first.number(name), args, tls);
            assert_eq!(call("add", &[1, 10, 100, 1000, 10_000, 100_000]).expect("add"), 654_321);
            assert_eq!(call("stack", &[512]).expect("stack"), 511 * 512 / 2, "an aligned stack");
            for round in 0..200 {
                assert_eq!(call("add", &[round, 1, 0, 0, 0, 0]).expect("add"), round + 2);
            }
            let executor = space.execute(process_vm_exec::Sysno::getpid, [0; 6]).expect("getpid");
            assert_eq!(call("getpid", &[]).expect("getpid"), executor, "its calls are executed in the space");
        }
        let call = |name: &str, tls| call(space, first.number(name), &[], tls).expect("a function");
        assert_ne!(first.number("fs_base"), 0);
        assert_eq!(call("fs", Tls::Main), first.number("fs_base"));
        assert_eq!(call("tls", Tls::Main), first.number("magic"));
        // %fs:0 is the thread pointer itself, as the ABI has it.
        assert!(![0, first.number("fs_base")].contains(&call("fs", Tls::Own)));
        // What functions left of theirs is gone the next time, and the target's own is as it was.
        assert_eq!(target.report().number("magic"), first.number("magic"));
    });
}

#[test]
fn functions_of_a_dynamic_program_are_called() {
    functions_are_called(Linked::Dynamically);
}

#[test]
fn functions_of_a_static_program_are_called() {
    functions_are_called(Linked::Statically);
}

#[test]
fn a_function_that_forks_or_exits_is_told_that_it_cannot() {
    with_space(Linked::Dynamically, |_, space| {
        let code = space.map(Mapping::anonymous(PAGE, READ_WRITE)).expect("room");
        // mov %edi,%eax; syscall; ret
        space.write(code, &[0x89, 0xf8, 0x0f, 0x05, 0xc3]).expect("code");
        space.protect(code, PAGE, READ_EXEC).expect("code");
        for nr in [libc::SYS_fork, libc::SYS_exit] {
            let result = call(space, code, &[nr.unsigned_abs()], Tls::Own).expect("it returns");
            assert_eq!(result.cast_signed(), -i64::from(libc::EOPNOTSUPP));
        }
        space.unmap(code, PAGE).expect("room");
    });
}

#[test]
fn a_function_that_faults_is_told() {
    with_space(Linked::Dynamically, |target, space| {
        let (fault, add) = (target.first.number("fault"), target.first.number("add"));
        let word = target.first.number("word");
        for _ in rounds(50) {
            match call(space, fault, &[8], Tls::Own) {
                Err(Error::Function { addr, exit }) if addr == fault => {
                    let exit = format!("{exit:?}");
                    assert!(exit.starts_with("Fault") && exit.contains("addr: 8,"), "{exit}");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(
                call(space, fault, &[word], Tls::Own).expect("a readable word"),
                0x0123_4567_89ab_cdef
            );
            assert_eq!(call(space, add, &[1, 0, 0, 0, 0, 0], Tls::Own).expect("add"), 1);
        }
        target.report();
    });
}
