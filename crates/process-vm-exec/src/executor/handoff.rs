//! The hand-off: passing control between two tasks that share memory, for less than a system call.
//!
//! Each side owns one *half*: a word that passes control, a flag that says "I sleep", and the processor that it last
//! waited on. Only its owner writes a half. To pass control, a side writes its word and then, if the other sleeps,
//! wakes it. To wait, a side looks at the other's word: it spins while the other runs on another processor, yields
//! when both are on one or the other has been silent for a while, and when its budget is spent says that it sleeps,
//! looks once more, and sleeps in a futex.
//!
//! No wake-up is lost: the write of the word comes before the look at the flag, the write of the flag before the
//! last look at the word, both in one total order (`SeqCst`), so one of the two sides sees the other's write.
//! `tests/handoff_model.rs` has loom try every interleaving. The executor's side is the same in `code.S`.

use super::sync::{AtomicU32, Ordering};

/// One side's half of a mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Half<'a> {
    /// Passes control. A futex.
    pub word: &'a AtomicU32,
    /// Not zero while the owner sleeps, or is about to.
    pub sleeping: &'a AtomicU32,
    /// The processor on which the owner last waited.
    pub cpu: &'a AtomicU32,
}

/// What waiting needs from the machine.
pub trait Machine {
    /// Sleep until woken, unless the word is not `value` any more. May return at any time.
    fn sleep(&self, word: &AtomicU32, value: u32);
    /// Wake whoever sleeps on the word.
    fn wake(&self, word: &AtomicU32);
    /// A wait begins: the current time in ticks of no particular length, and the processor.
    fn now(&self) -> (u64, u32);
    /// Give the processor to another task.
    fn give_way(&self);
    /// For how many ticks to spin without yielding, and for how many to stay awake.
    fn budget(&self) -> Budget;
}

/// How long a wait stays awake, in the machine's ticks.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// After this the waiter yields between looks.
    pub spin: u64,
    /// After this it sleeps.
    pub awake: u64,
}

/// Looks at the word before the clock is read for the first time: most answers come sooner.
const QUICK_LOOKS: u32 = if cfg!(loom) { 1 } else { 100 };

/// Passes control: `value` becomes our word.
#[inline]
pub fn pass(machine: &impl Machine, mine: Half<'_>, other: Half<'_>, value: u32) {
    mine.word.swap(value, Ordering::SeqCst);
    if other.sleeping.load(Ordering::SeqCst) != 0 {
        machine.wake(mine.word);
    }
}

/// Waits until the other's word is not `seen` any more, and returns it.
#[inline]
pub fn wait(machine: &impl Machine, mine: Half<'_>, other: Half<'_>, seen: u32) -> u32 {
    for _ in 0..QUICK_LOOKS {
        let word = other.word.load(Ordering::Acquire);
        if word != seen {
            return word;
        }
    }
    wait_longer(machine, mine, other, seen)
}

fn wait_longer(machine: &impl Machine, mine: Half<'_>, other: Half<'_>, seen: u32) -> u32 {
    let budget = machine.budget();
    let (start, mut cpu) = machine.now();
    let mut waited = 0;
    mine.cpu.store(cpu, Ordering::Relaxed);
    while waited <= budget.awake {
        if other.cpu.load(Ordering::Relaxed) == cpu || waited >= budget.spin {
            machine.give_way();
        }
        for _ in 0..if cfg!(loom) { 1 } else { 8 } {
            let word = other.word.load(Ordering::Acquire);
            if word != seen {
                return word;
            }
            super::sync::pause();
        }
        let (now, now_on) = machine.now();
        if now_on != cpu {
            cpu = now_on;
            mine.cpu.store(cpu, Ordering::Relaxed);
        }
        waited = now.wrapping_sub(start);
    }
    sleep(machine, mine, other, seen)
}

fn sleep(machine: &impl Machine, mine: Half<'_>, other: Half<'_>, seen: u32) -> u32 {
    // Our word may have been passed to a sleeper whose flag a guest has cleared: wake it whatever the flag says.
    machine.wake(mine.word);
    mine.sleeping.swap(1, Ordering::SeqCst);
    loop {
        let word = other.word.load(Ordering::SeqCst);
        if word != seen {
            mine.sleeping.store(0, Ordering::Relaxed);
            return word;
        }
        machine.sleep(other.word, seen);
    }
}
