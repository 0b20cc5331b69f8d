//! The other ways into the kernel: none of them reaches the host.

use iced_x86::code_asm::*;
use process_vm_exec::{Arch, Exit};

use crate::common::{CODE, DATA, Guest, NR, claims, skip};
use crate::dispatch::is_unseen;

/// `exit` and `getpid` of the 32-bit table (arch/x86/entry/syscalls/syscall_32.tbl).
const I386_EXIT: u32 = 1;
const I386_GETPID: u32 = 20;
/// `__X32_SYSCALL_BIT`
const X32: u64 = 1 << 30;
const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;

claims! {
    planned;

    fn int_0x80_is_reported_with_its_own_abi_or_faults(engine) {
        for nr in [I386_GETPID, I386_EXIT, 0, u32::MAX] {
            let mut guest = Guest::new(engine, |a| {
                a.mov(eax, nr)?;
                a.int(0x80)?;
                a.mov(eax, NR)?;
                a.syscall()
            });
            let regs = guest.regs();
            (regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp) = (1, 2, 3, 4, 5, 6);
            match guest.run() {
                Exit::Syscall => {
                    let call = guest.ctx.syscall();
                    assert_eq!((call.arch, call.nr & 0xffff_ffff), (Arch::I386, u64::from(nr)));
                    assert_eq!(call.args, [1, 2, 3, 4, 5, 6]);
                    assert_eq!(guest.ctx.registers().rip, CODE + 7);
                    guest.ctx.set_return(Ok(0));
                    let next = guest.call();
                    assert_eq!((next.arch, next.nr), (Arch::X86_64, u64::from(NR)));
                }
                Exit::Fault(fault) => assert_eq!(fault.signal, libc::SIGSEGV, "{fault:?}"),
                other => panic!("{other:?}"),
            }
        }
    }

    fn sysenter_has_no_effect_on_the_host(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.mov(eax, I386_EXIT)?;
            a.sysenter()?;
            a.mov(eax, NR)?;
            a.syscall()
        });
        match guest.run() {
            Exit::Fault(_) => {}
            Exit::Syscall => {
                let call = guest.ctx.syscall();
                assert_eq!((call.arch, call.nr), (Arch::I386, u64::from(I386_EXIT)));
            }
            other => panic!("{other:?}"),
        }
        guest.regs().rip = CODE + 7;
        *guest.regs() = process_vm_exec::Registers { rip: CODE + 7, ..process_vm_exec::Registers::default() };
        assert_eq!(guest.call().nr, u64::from(NR));
    }

    fn numbers_of_the_x32_abi_keep_their_bit(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, ebx)?;
            a.syscall()?;
            a.jmp(top)
        });
        for nr in [X32, X32 | 39, X32 | 520] {
            guest.regs().rbx = nr;
            let call = guest.call();
            assert_eq!((call.nr, call.arch), (nr, Arch::X86_64));
        }
    }

    fn any_number_in_rax_is_reported_as_it_is(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(rax, rbx)?;
            a.syscall()?;
            a.jmp(top)
        });
        // 60 and 231 would end the task, 15 would pop a signal frame, 57 would fork, 62 would kill.
        for nr in [0, 15, 57, 58, 59, 60, 62, 231, 434, 511, 0x7fff_ffff, 0xffff_ffff, u64::MAX, 0xdead_beef_0000_0027] {
            guest.regs().rbx = nr;
            assert_eq!(guest.call().nr, nr, "{nr:#x}");
        }
    }

    fn every_number_up_to_five_hundred_is_only_reported(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, ebx)?;
            a.syscall()?;
            a.jmp(top)
        });
        for nr in (0..500).filter(|&nr| !is_unseen(nr)) {
            guest.regs().rbx = nr;
            assert_eq!(guest.call().nr, nr);
            guest.ctx.set_return(Ok(0));
        }
    }

    /// gettimeofday, time and getcpu at their fixed addresses: the kernel itself emulates these.
    fn the_vsyscall_page_does_not_answer_behind_the_supervisors_back(engine) {
        for (offset, nr) in [(0, 96), (0x400, 201), (0x800, 309)] {
            let mut guest = Guest::new(engine, |a| {
                a.mov(rdi, DATA)?;
                a.mov(rsi, DATA + 64)?;
                a.xor(edx, edx)?;
                a.mov(rax, VSYSCALL + offset)?;
                a.call(rax)?;
                a.mov(eax, NR)?;
                a.syscall()
            });
            match guest.run() {
                Exit::Syscall => assert_eq!(guest.ctx.syscall().nr, nr, "the call was answered by the host"),
                Exit::Fault(fault) => assert_eq!(fault.signal, libc::SIGSEGV, "{fault:?}"),
                other => panic!("{other:?}"),
            }
            assert_eq!(guest.peek(DATA), 0, "the host wrote into the guest");
        }
    }

    fn system_calls_from_the_vdso_are_the_guests_too(engine) {
        let guest = Guest::new(engine, |a| a.ud2());
        let Some(vdso) = guest.space.vdso() else { return skip("the kernel has no vDSO") };
        let mut text = vec![0; usize::try_from(vdso.end - vdso.start).expect("small")];
        guest.space.read(vdso.start, &mut text).expect("the vDSO is readable");
        assert_eq!(&text[..4], b"\x7fELF");
        let mut seen = 0;
        for at in text.windows(2).enumerate().filter(|(_, two)| *two == [0x0f, 0x05]).map(|(at, _)| at) {
            let mut one = guest.another(1);
            one.regs().rip = vdso.start + at as u64;
            one.regs().rax = u64::from(NR);
            match one.run() {
                Exit::Syscall => assert_eq!(one.ctx.syscall().nr, u64::from(NR)),
                other => panic!("{other:?} at +{at:#x}"),
            }
            seen += 1;
        }
        assert!(seen > 0, "a vDSO without a system call");
    }
}
