//! Rounds with a guest: system calls, faults, interrupts, changes and copies of its memory, and spaces made and dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use process_vm_exec::{AddressSpace, Context, Engine, Exit, Mapping, Protection, SignalSet};

use super::{
    case::{Placement, Rounds},
    cpus::Cpus,
};

/// `1: mov $110,%eax; syscall; jmp 1b`: 110 is `getppid`.
pub(super) const CALL_LOOP: &[u8] = &[0xb8, 110, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
/// What the supervisor answers.
pub(super) const ANSWER: u64 = 4242;
/// `1: mov (%rdi),%eax; jmp 1b`
const FAULT_LOOP: &[u8] = &[0x8b, 0x07, 0xeb, 0xfc];
/// The length of the instruction that faults there.
const FAULT_LEN: u64 = 2;
/// `1: pause; jmp 1b`
const SPIN: &[u8] = &[0xf3, 0x90, 0xeb, 0xfc];

const CODE: u64 = 0x10_0000;
const STACK: u64 = 0x20_0000;
const UNMAPPED: u64 = 0x30_0000;
const PAGE: u64 = 4096;

/// How long a guest has spun before it is interrupted: the supervisor has gone to sleep by then, as it has
/// in real use.
const BEFORE_INTERRUPT: Duration = Duration::from_micros(300);

/// An address space with one program, and its registers.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) space: AddressSpace,
    pub(super) ctx: Context,
}

impl Guest {
    pub(super) fn new(engine: Engine, program: &[u8]) -> Result<Self> {
        let space = AddressSpace::builder().engine(engine).create()?;
        let data = Protection::READ | Protection::WRITE;
        space.map(Mapping::anonymous(PAGE, data).at(CODE))?;
        space.map(Mapping::anonymous(PAGE, data).at(STACK))?;
        space.write(CODE, program)?;
        space.protect(CODE, PAGE, Protection::READ | Protection::EXEC)?;
        let mut ctx = Context::new(CODE, STACK + PAGE);
        ctx.registers_mut().rdi = UNMAPPED;
        Ok(Self { space, ctx })
    }

    /// One that has made its first call, where `placement` has guests.
    fn calling(engine: Engine, placement: Placement, cpus: &Cpus) -> Result<Self> {
        let mut guest = Self::new(engine, CALL_LOOP)?;
        guest.answer_one_call()?;
        cpus.pin_guest(guest.pid()?, placement)?;
        Ok(guest)
    }

    fn pid(&self) -> Result<i32> {
        Ok(self.space.pid().context("the guest has died")?.as_raw_pid())
    }

    /// One system call, answered.
    pub(super) fn answer_one_call(&mut self) -> Result<()> {
        match self.space.run(&mut self.ctx, &SignalSet::all())? {
            Exit::Syscall => self.ctx.set_return(Ok(ANSWER)),
            other => bail!("a system call was expected, not {other:?}"),
        }
        Ok(())
    }

    /// One page fault, stepped over.
    fn step_over_one_fault(&mut self) -> Result<()> {
        match self.space.run(&mut self.ctx, &SignalSet::all())? {
            Exit::Fault(fault) if fault.addr == UNMAPPED => self.ctx.registers_mut().rip += FAULT_LEN,
            other => bail!("a page fault was expected, not {other:?}"),
        }
        Ok(())
    }
}

pub(super) fn syscall_rounds(engine: Engine, placement: Placement, cpus: &Cpus) -> Result<Rounds> {
    let mut guest = Guest::calling(engine, placement, cpus)?;
    Ok(Box::new(move |rounds| timed(rounds, || guest.answer_one_call())))
}

pub(super) fn fault_rounds(engine: Engine, placement: Placement, cpus: &Cpus) -> Result<Rounds> {
    let mut guest = Guest::new(engine, FAULT_LOOP)?;
    guest.step_over_one_fault()?;
    cpus.pin_guest(guest.pid()?, placement)?;
    Ok(Box::new(move |rounds| timed(rounds, || guest.step_over_one_fault())))
}

pub(super) fn create_rounds(engine: Engine, placement: Placement, cpus: &Cpus) -> Result<Rounds> {
    let cpus = cpus.clone();
    Ok(Box::new(move |rounds| {
        cpus.spread(placement, || {
            timed(rounds, || {
                drop(AddressSpace::builder().engine(engine).create()?);
                Ok(())
            })
        })?
    }))
}

pub(super) fn interrupt_rounds(engine: Engine, placement: Placement, cpus: &Cpus) -> Result<Rounds> {
    let mut guest = Guest::new(engine, SPIN)?;
    let interrupter = guest.ctx.interrupter();
    interrupter.interrupt();
    guest.space.run(&mut guest.ctx, &SignalSet::all())?;
    cpus.pin_guest(guest.pid()?, placement)?;

    let epoch = Instant::now();
    let sent_ns = Arc::new(AtomicU64::new(0));
    let (arm, armed) = mpsc::channel::<()>();
    let sent = Arc::clone(&sent_ns);
    thread::spawn(move || {
        for () in armed {
            thread::sleep(BEFORE_INTERRUPT);
            sent.store(ns_since(epoch), Ordering::Release);
            interrupter.interrupt();
        }
    });
    Ok(Box::new(move |rounds| {
        let mut total_ns = 0;
        for _ in 0..rounds {
            arm.send(())?;
            match guest.space.run(&mut guest.ctx, &SignalSet::all())? {
                Exit::Interrupted => {}
                other => bail!("an interrupt was expected, not {other:?}"),
            }
            total_ns += ns_since(epoch).saturating_sub(sent_ns.load(Ordering::Acquire));
        }
        Ok(total_ns as f64 / f64::from(rounds))
    }))
}

/// What a supervisor that answers mmap(2) and munmap(2) has done in the space: the guest has just stopped.
pub(super) fn map_rounds(engine: Engine, placement: Placement, cpus: &Cpus) -> Result<Rounds> {
    const LEN: u64 = 64 << 10;
    let mut guest = Guest::calling(engine, placement, cpus)?;
    Ok(Box::new(move |rounds| {
        timed_after(rounds, &mut guest, |guest| {
            let mapping = Mapping::anonymous(LEN, Protection::READ | Protection::WRITE);
            let addr = guest.space.map(mapping.at(UNMAPPED))?;
            Ok(guest.space.unmap(addr, LEN)?)
        })
    }))
}

/// Such as the arguments of a call: 64 bytes of the guest's, which has just stopped.
pub(super) fn copy_rounds(engine: Engine, placement: Placement, cpus: &Cpus) -> Result<Rounds> {
    let mut guest = Guest::calling(engine, placement, cpus)?;
    guest.space.write(STACK, &[1; 64])?;
    Ok(Box::new(move |rounds| {
        timed_after(rounds, &mut guest, |guest| Ok(guest.space.read(STACK, &mut [0; 64])?))
    }))
}

/// Does `round` so many times, each after a call of the guest's that is not timed. Returns the average in nanoseconds.
fn timed_after(
    rounds: u32,
    guest: &mut Guest,
    mut round: impl FnMut(&mut Guest) -> Result<()>,
) -> Result<f64> {
    let mut taken = Duration::ZERO;
    for _ in 0..rounds {
        guest.answer_one_call()?;
        let start = Instant::now();
        round(guest)?;
        taken += start.elapsed();
    }
    Ok(taken.as_secs_f64() * 1e9 / f64::from(rounds))
}

/// Does `round` so many times and returns the average in nanoseconds.
pub(super) fn timed(rounds: u32, mut round: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..rounds {
        round()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds))
}

fn ns_since(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
