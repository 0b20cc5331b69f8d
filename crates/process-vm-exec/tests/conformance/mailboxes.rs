//! Guests that write into their own mailbox while the supervisor reads and writes there: what they forge has no effect
//! outside of their space.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{Context, DEFAULT_REGION, Engine, Exit, Interrupter, SignalSet, WaitStatus};

use crate::common::{
    CODE, CODE_LEN, DATA, Guest, NR, Numbers, PAGE, READ_EXEC, READ_WRITE, STACK_TOP, UNMAPPED, asm_at,
    claims, skip, soak,
};

/// The mailbox of a space's first executor, and what is where in it.
const MAILBOX: u64 = DEFAULT_REGION.start + (32 << 20);
const SIGINFO: u64 = MAILBOX + 0x200;
const XSTATE: u64 = MAILBOX + 0x1000;
/// In the standard format of XSAVE (Intel SDM volume 1, 13.4).
const MXCSR: u64 = 24;
const XMM0: u64 = 160;
const XSTATE_BV: u64 = 512;
const XCOMP_BV: u64 = 520;
/// What XRSTOR faults on.
const POISONS: [(u64, u64); 4] =
    [(MXCSR, u64::MAX), (XSTATE_BV, 1 << 62), (XCOMP_BV, 1 << 63), (XCOMP_BV + 48, 1)];

/// Where the attacker's code is.
const ATTACK: u64 = CODE + PAGE;
/// In XMM0 of the victim.
const MARK: u64 = 0x6d61_696c_626f_7821;

/// Loads XMM0 from DATA; then for ever a call, and a fault at the address in RDI.
fn victim(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.movdqu(xmm0, xmmword_ptr(DATA))?;
    a.set_label(&mut top)?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.mov(rax, qword_ptr(rdi))?;
    a.jmp(top)
}

/// Writes RBX to where RDI points, and what was there back, for ever.
fn attack(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rcx, qword_ptr(rdi))?;
    a.set_label(&mut top)?;
    for value in [rbx, rcx] {
        a.mov(qword_ptr(rdi), value)?;
        for _ in 0..8 {
            a.pause()?;
        }
    }
    a.jmp(top)
}

/// Does the engine pass state through memory of the guest?
fn has_mailboxes(engine: Engine) -> bool {
    let has = matches!(engine, Engine::Trap | Engine::Rewrite);
    if !has {
        skip(&format!("claims about mailboxes: {engine} passes nothing through memory that guests write"));
    }
    has
}

/// A victim that has made its first call, on its space's first executor.
fn guest(engine: Engine) -> Guest {
    let mut guest = Guest::new(engine, victim);
    guest.space.protect(CODE, CODE_LEN, READ_WRITE).expect("code");
    guest.space.write(ATTACK, &asm_at(ATTACK, attack)).expect("code");
    guest.space.protect(CODE, CODE_LEN, READ_EXEC).expect("code");
    guest.poke(DATA, MARK);
    guest.call();
    guest.ctx.xstate().expect("the extended state");
    assert_eq!(guest.peek(XSTATE + XMM0), MARK, "the extended state is elsewhere in mailboxes");
    guest
}

/// Another flow of control of a guest, that overwrites 8 bytes of the mailbox again and again.
struct Attacker {
    interrupter: Interrupter,
    running: JoinHandle<()>,
}

impl Attacker {
    fn start(guest: &Guest, addr: u64, value: u64) -> Self {
        let mut ctx = Context::new(ATTACK, STACK_TOP - PAGE);
        let registers = ctx.registers_mut();
        (registers.rdi, registers.rbx) = (addr, value);
        let (space, interrupter) = (Arc::clone(&guest.space), ctx.interrupter());
        let running = thread::spawn(move || {
            let _ = space.run(&mut ctx, &SignalSet::all());
        });
        let mut bytes = [0; 8];
        while guest.space.read(addr, &mut bytes).is_ok() && u64::from_ne_bytes(bytes) != value {}
        Self { interrupter, running }
    }

    fn stop(self) {
        self.interrupter.interrupt();
        self.running.join().expect("the attacker's supervisor does not panic");
    }
}

claims! {
    fn extended_state_that_a_guest_spoils_after_it_was_saved_can_be_loaded_elsewhere(engine) {
        if !has_mailboxes(engine) {
            return;
        }
        let mut elsewhere = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.jmp(top)
        });
        for (offset, value) in POISONS {
            let end = Instant::now() + soak() / 4;
            while Instant::now() < end {
                let mut guest = guest(engine);
                let attacker = Attacker::start(&guest, XSTATE + offset, value);
                for _ in 0..100 {
                    // Without an answer, the extended state is asked for anew.
                    if !matches!(guest.run(), Exit::Syscall | Exit::Fault(_)) {
                        break;
                    }
                    let Ok(area) = guest.ctx.xstate() else { break };
                    elsewhere.ctx.set_xstate(area).expect("an area that can be loaded");
                    assert_eq!(elsewhere.call().nr, u64::from(NR), "the other space runs with it");
                }
                attacker.stop();
            }
        }
    }

    fn extended_state_that_a_guest_spoils_before_it_is_loaded_kills_its_own_space_at_most(engine) {
        if !has_mailboxes(engine) {
            return;
        }
        let mut deaths = 0;
        for (offset, value) in POISONS {
            let end = Instant::now() + soak() / 4;
            while Instant::now() < end {
                let mut guest = guest(engine);
                let good = guest.ctx.xstate().expect("the extended state").to_vec();
                let attacker = Attacker::start(&guest, XSTATE + offset, value);
                for _ in 0..100 {
                    guest.ctx.set_xstate(&good).expect("its own state");
                    match guest.run() {
                        Exit::Syscall | Exit::Fault(_) => {}
                        Exit::Died(_) => {
                            deaths += 1;
                            break;
                        }
                        other => panic!("{other:?}"),
                    }
                }
                attacker.stop();
            }
        }
        assert_ne!(deaths, 0, "no guest spoilt anything in time");
        assert_eq!(guest(engine).run_on(), u64::from(NR));
    }

    fn a_forged_siginfo_is_a_signal_that_there_is_or_the_end_of_its_space(engine) {
        if !has_mailboxes(engine) {
            return;
        }
        let mut numbers = Numbers::new(1);
        let mut deaths = 0;
        let end = Instant::now() + soak();
        while Instant::now() < end {
            let mut guest = guest(engine);
            guest.regs().rdi = UNMAPPED;
            guest.fault();
            assert_eq!(guest.peek(SIGINFO + 16), UNMAPPED, "siginfo is elsewhere in mailboxes");
            // Number and errno, as one word.
            let forged = if numbers.below(2) == 0 { numbers.next() } else { numbers.below(70) };
            let attacker = Attacker::start(&guest, SIGINFO, forged);
            for _ in 0..100 {
                match guest.space.run(&mut guest.ctx, &SignalSet::all()).expect("a run") {
                    Exit::Syscall => {}
                    Exit::Fault(fault) => assert!((1..=64).contains(&fault.signal), "{fault:?}"),
                    Exit::Signal(info) => assert!((1..=64).contains(&info.signal()), "{info:?}"),
                    Exit::Died(WaitStatus::Signaled(1..=64)) => {
                        deaths += 1;
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            attacker.stop();
        }
        assert_ne!(deaths, 0, "no guest forged anything in time");
        assert_eq!(guest(engine).run_on(), u64::from(NR));
    }
}

impl Guest {
    /// The number of its next call: it is as if nothing had happened to others.
    fn run_on(&mut self) -> u64 {
        self.regs().rip = CODE;
        self.call().nr
    }
}
