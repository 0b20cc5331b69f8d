//! Both segment bases belong to the context, whoever sets them.

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{Engine, SignalSet};
use raw_cpuid::CpuId;

use crate::common::{CODE, DATA, Guest, NR, claims, skip};

/// Somewhere in user space, nothing mapped.
const FAR: u64 = 0x5555_1234_5670;

/// Can guests read and write the bases themselves?
fn has_fsgsbase() -> bool {
    CpuId::new().get_extended_feature_info().is_some_and(|info| info.has_fsgsbase())
}

/// `top: store both bases; mov $NR,%eax; syscall; jmp top`
fn store_and_call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.rdfsbase(rbx)?;
    a.mov(qword_ptr(DATA), rbx)?;
    a.rdgsbase(rbx)?;
    a.mov(qword_ptr(DATA + 8), rbx)?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.jmp(top)
}

claims! {
    planned;

    fn bases_that_the_supervisor_sets_are_seen_by_the_guest(engine) {
        if !has_fsgsbase() {
            return skip("no FSGSBASE");
        }
        let mut guest = Guest::new(engine, store_and_call);
        for round in 0..20 {
            let (fs_base, gs_base) = (FAR + round * 8, FAR * 2 / 3 + round);
            (guest.regs().fs_base, guest.regs().gs_base) = (fs_base, gs_base);
            guest.call();
            assert_eq!((guest.peek(DATA), guest.peek(DATA + 8)), (fs_base, gs_base), "round {round}");
            let regs = guest.ctx.registers();
            assert_eq!((regs.fs_base, regs.gs_base), (fs_base, gs_base), "round {round}");
        }
    }

    fn bases_that_the_guest_sets_are_seen_by_the_supervisor_and_stay(engine) {
        if !has_fsgsbase() {
            return skip("no FSGSBASE");
        }
        let mut guest = Guest::new(engine, |a| {
            a.mov(rax, FAR)?;
            a.wrfsbase(rax)?;
            a.mov(rax, FAR + 0x1000)?;
            a.wrgsbase(rax)?;
            store_and_call(a)
        });
        for round in 0..200 {
            guest.call();
            let regs = guest.ctx.registers();
            assert_eq!((regs.fs_base, regs.gs_base), (FAR, FAR + 0x1000), "round {round}");
            assert_eq!((guest.peek(DATA), guest.peek(DATA + 8)), (FAR, FAR + 0x1000), "round {round}");
        }
    }

    fn bases_that_nobody_set_are_zero(engine) {
        if !has_fsgsbase() {
            return skip("no FSGSBASE");
        }
        let mut guest = Guest::new(engine, store_and_call);
        for round in 0..20 {
            guest.poke(DATA, 1);
            guest.poke(DATA + 8, 1);
            guest.call();
            assert_eq!(guest.peek(DATA), 0, "round {round}");
            // Under `rewrite` GS is the trampoline's until the guest sets it: the one thing that a guest can see.
            if engine != Engine::Rewrite {
                assert_eq!(guest.peek(DATA + 8), 0, "round {round}");
            }
            let regs = guest.ctx.registers();
            assert_eq!((regs.fs_base, regs.gs_base), (0, 0), "round {round}");
        }
    }

    fn memory_is_reached_through_both_bases(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(rbx, qword_ptr(0x10).fs())?;
            a.mov(rbp, qword_ptr(0x10).gs())?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.jmp(top)
        });
        guest.poke(DATA + 0x10, 11);
        guest.poke(DATA + 0x110, 22);
        (guest.regs().fs_base, guest.regs().gs_base) = (DATA, DATA + 0x100);
        for _ in 0..20 {
            guest.call();
            assert_eq!((guest.ctx.registers().rbx, guest.ctx.registers().rbp), (11, 22));
        }
    }

    fn bases_of_two_contexts_in_one_space_do_not_mix(engine) {
        if !has_fsgsbase() {
            return skip("no FSGSBASE");
        }
        let mut one = Guest::new(engine, store_and_call);
        let mut other = one.another(1);
        (one.regs().fs_base, one.regs().gs_base) = (FAR, FAR + 8);
        (other.regs().fs_base, other.regs().gs_base) = (FAR + 16, 0);
        for round in 0..20 {
            one.call();
            assert_eq!((one.peek(DATA), one.peek(DATA + 8)), (FAR, FAR + 8), "round {round}");
            other.call();
            assert_eq!((other.peek(DATA), other.peek(DATA + 8)), (FAR + 16, 0), "round {round}");
        }
    }

    /// GS may be any number while the guest makes system calls through rewritten sites.
    fn a_guest_that_changes_gs_between_calls_finds_each_value_again(engine) {
        if !has_fsgsbase() {
            return skip("no FSGSBASE");
        }
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.mov(r12, FAR)?;
            a.set_label(&mut top)?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.rdgsbase(rbx)?;
            a.add(r12, 0x10)?;
            a.wrgsbase(r12)?;
            a.jmp(top)
        });
        guest.call();
        for round in 1..200 {
            guest.call();
            assert_eq!(guest.ctx.registers().gs_base, FAR + round * 0x10, "round {round}");
            if round > 1 {
                assert_eq!(guest.ctx.registers().rbx, FAR + (round - 1) * 0x10, "round {round}");
            }
        }
    }

    fn a_base_that_is_not_canonical_never_runs(engine) {
        let mut guest = Guest::new(engine, store_and_call);
        for base in [0x8000_0000_0000, 0x1234_5678_9abc_def0] {
            for in_fs in [true, false] {
                let mut ctx = process_vm_exec::Context::new(CODE, crate::common::STACK_TOP);
                if in_fs { ctx.registers_mut().fs_base = base } else { ctx.registers_mut().gs_base = base }
                let result = guest.space.run(&mut ctx, &SignalSet::all());
                assert!(result.is_err(), "{base:#x}: {result:?}");
            }
        }
        guest.call();
    }

    fn segments_that_no_user_code_has_never_run(engine) {
        let guest = Guest::new(engine, store_and_call);
        for (code, stack) in [(0x10, 0x18), (0, 0), (0x33, 0x18), (0x08, 0x2b), (0xffff, 0x2b)] {
            let mut ctx = process_vm_exec::Context::new(CODE, crate::common::STACK_TOP);
            (ctx.registers_mut().cs, ctx.registers_mut().ss) = (code, stack);
            let result = guest.space.run(&mut ctx, &SignalSet::all());
            let ran = matches!(result, Ok(process_vm_exec::Exit::Syscall));
            assert!(!ran || ctx.registers().cs == 0x33, "cs {code:#x} ss {stack:#x}: {result:?}");
        }
        let mut after = guest.another(1);
        after.call();
    }
}
