//! The hand-off: passing control between two tasks that share memory, for less than a system call.
//!
//! Each side owns one *half*: a word that passes control, a flag that says "I sleep", and the processor that it last
//! waited on. Only its owner writes a half. To pass control, a side writes its word and then, if the other sleeps,
//! wakes it. To wait, a side looks at the other's word: it spins while the other runs on another processor, yields
//! when both are on one or the other has been silent for a while, and when its budget is spent says that it sleeps,
//! looks once more, and sleeps in a futex.
//!
//! The two words may be one: whoever has control writes it, and waits until it is something else again. That is faster, as one
//! cache line moves there and back, and each side reads and writes it while it has it. But who reports a death writes there
//! without having control, and may be overwritten: then the machine knows that the wait is in vain. A service task has a
//! word of its own, which no guest can write.
//!
//! Yielding is the fastest way between two tasks on one processor, as long as they are alone there. Where others
//! want to run, a yield is answered by their time slices, while a wake-up lets the woken task run soon: after a yield
//! that took long, a side does without for some waits. On one processor they are twice as many each time, as whoever wants to
//! run goes on wanting that. A yield that did not take long makes them fewer by an eighth: one in a while does not, although others are there.
//!
//! No wake-up is lost: the write of the word comes before the look at the flag, the write of the flag before the
//! last look at the word, and both writes are full barriers, so one of the two sides sees the other's write.
//! The tests have loom try every interleaving. The executor's side is the same in `code.S`.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::arch::x86_64::full_barrier;

/// A word in shared memory.
pub(crate) trait Word {
    /// Its value. Everything that its writer wrote before is seen too.
    fn look(&self) -> u32;
    /// Writes it. A full barrier: what follows happens after everybody can see the value.
    fn publish(&self, value: u32);
    /// Writes it, in no particular order with anything else.
    fn note(&self, value: u32);
}

impl Word for AtomicU32 {
    #[inline]
    fn look(&self) -> u32 {
        self.load(Ordering::Acquire)
    }

    /// Not an exchange: between the writes before it and itself, the other side's look could take the line away.
    #[inline]
    fn publish(&self, value: u32) {
        self.store(value, Ordering::Release);
        full_barrier();
    }

    #[inline]
    fn note(&self, value: u32) {
        self.store(value, Ordering::Relaxed);
    }
}

/// One side's half of a mailbox.
#[derive(Debug)]
pub(crate) struct Half<'a, W = AtomicU32> {
    /// Passes control. A futex. The other half may have the same.
    pub(crate) word: &'a W,
    /// Not zero while the owner sleeps, or is about to.
    pub(crate) sleeping: &'a W,
    /// The processor on which the owner last waited.
    pub(crate) cpu: &'a W,
    /// For how many more waits the owner does not yield.
    pub(crate) no_yield: &'a W,
    /// For how many it does not after the next yield that takes long.
    pub(crate) penalty: &'a W,
    /// For how long the owner pauses before its first look: see [`PAUSE`].
    pub(crate) pauses: &'a W,
}

/// What waiting needs from the machine.
pub(crate) trait Machine<W = AtomicU32> {
    /// Sleep until woken, unless the word is not `value` any more. May return at any time.
    fn sleep(&self, word: &W, value: u32);
    /// Wake whoever sleeps on the word.
    fn wake(&self, word: &W);
    /// Is there nothing to wait for any more? Asked before each sleep; then the wait ends with the word that it began
    /// with.
    fn is_in_vain(&self) -> bool {
        false
    }
    /// The current time in ticks of no particular length, and the processor.
    fn now(&self) -> (u64, u32);
    /// Give the processor to another task.
    fn give_way(&self);
    /// How long to wait awake.
    fn budget(&self) -> Budget;
}

/// How long a wait stays awake, in the machine's ticks, and how often it looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Looks before the clock is read for the first time: most answers come sooner.
    pub(crate) quick_looks: u32,
    /// Looks between two readings of the clock after that.
    pub(crate) looks: u32,
    /// After this the waiter yields between looks.
    pub(crate) spin: u64,
    /// After this it sleeps.
    pub(crate) awake: u64,
    /// A yield that takes longer gave the processor to somebody else.
    pub(crate) patience: u64,
}

/// For at least so many waits a side does not yield after a yield that took long.
pub(crate) const FEWEST_WAITS_WITHOUT_YIELD: u32 = 1 << 6;
/// And for so many at most. A yield costs a time slice of some milliseconds then, these waits some microseconds each.
pub(crate) const MOST_WAITS_WITHOUT_YIELD: u32 = 1 << 14;

/// So much of [`Half::pauses`] is one `pause` instruction. A wait that finds an answer at its first look takes 1 off, one that
/// looks too early adds this: so about one first look in five is too early. Such a look moves the line away from the side that
/// is about to write it. To pause for too long costs the rest of that time, each time: with 16 instead of 4, a round trip took a tenth
/// longer.
pub(crate) const PAUSE: u32 = 1 << 2;
/// No more than ten pauses, also where a guest has written the count. Where an answer takes longer than these, looks do not matter.
pub(crate) const MOST_PAUSES: u32 = 10 * PAUSE;

/// Passes control (`value` becomes our word), and waits until it comes back: until the other's word is not `seen` any
/// more. Returns that.
#[inline]
pub(crate) fn call<W: Word>(
    machine: &impl Machine<W>,
    mine: &Half<'_, W>,
    other: &Half<'_, W>,
    value: u32,
    seen: u32,
) -> u32 {
    let passed = pass(machine, mine, other, value);
    wait(machine, mine, other, seen, passed)
}

/// What has been done about the other side's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// It said that it sleeps, and was woken.
    Woken,
    /// It did not say so.
    Quietly,
}

/// Passes control: `value` becomes our word.
#[inline]
fn pass<W: Word>(machine: &impl Machine<W>, mine: &Half<'_, W>, other: &Half<'_, W>, value: u32) -> Passed {
    mine.word.publish(value);
    if other.sleeping.look() == 0 {
        return Passed::Quietly;
    }
    machine.wake(mine.word);
    Passed::Woken
}

/// Waits until the other's word is not `seen` any more, and returns it. It is `seen` if the wait has become in vain.
#[inline]
pub(crate) fn wait<W: Word>(
    machine: &impl Machine<W>,
    mine: &Half<'_, W>,
    other: &Half<'_, W>,
    seen: u32,
    passed: Passed,
) -> u32 {
    // Between tasks of one processor an answer cannot come before it is given away.
    if other.cpu.look() != mine.cpu.look() {
        let pauses = mine.pauses.look().min(MOST_PAUSES);
        for _ in 0..pauses / PAUSE {
            std::hint::spin_loop();
        }
        let word = other.word.look();
        if word != seen {
            mine.pauses.note(pauses.saturating_sub(1));
            return word;
        }
        mine.pauses.note(pauses + PAUSE);
        for _ in 0..machine.budget().quick_looks {
            let word = other.word.look();
            if word != seen {
                return word;
            }
            // A look takes the line from the other side, which may be about to write it: not too often.
            std::hint::spin_loop();
        }
    }
    wait_longer(machine, mine, other, seen, passed)
}

fn wait_longer<W: Word>(
    machine: &impl Machine<W>,
    mine: &Half<'_, W>,
    other: &Half<'_, W>,
    seen: u32,
    passed: Passed,
) -> u32 {
    let budget = machine.budget();
    let (start, mut cpu) = machine.now();
    note_processor(mine, cpu);
    let mut waited = 0;
    while waited <= budget.awake {
        if other.cpu.look() == cpu || waited >= budget.spin {
            match mine.no_yield.look() {
                0 => {}
                waits => {
                    mine.no_yield.note(waits - 1);
                    break;
                }
            }
            let (before, _) = machine.now();
            machine.give_way();
            let (after, _) = machine.now();
            if after.wrapping_sub(before) > budget.patience {
                punish(mine, other, cpu);
                waited = u64::MAX;
            } else {
                forgive(mine);
            }
        } else {
            std::hint::spin_loop();
        }
        for _ in 0..budget.looks {
            let word = other.word.look();
            if word != seen {
                return word;
            }
        }
        let (now, now_on) = machine.now();
        cpu = now_on;
        note_processor(mine, cpu);
        waited = waited.max(now.wrapping_sub(start));
    }
    if passed == Passed::Quietly {
        // To a sleeper whose flag a guest has cleared, perhaps.
        machine.wake(mine.word);
    }
    sleep(machine, mine, other, seen)
}

/// A yield took long. If both sides are on one processor, somebody else wants that. If not, the host of a virtual machine may
/// have taken it away, and waking a sleeper on another processor costs more than some yields.
fn punish<W: Word>(mine: &Half<'_, W>, other: &Half<'_, W>, cpu: u32) {
    if other.cpu.look() != cpu {
        return mine.no_yield.note(FEWEST_WAITS_WITHOUT_YIELD);
    }
    let waits = mine.penalty.look().max(FEWEST_WAITS_WITHOUT_YIELD);
    mine.no_yield.note(waits);
    mine.penalty.note(waits.saturating_mul(2).min(MOST_WAITS_WITHOUT_YIELD));
}

/// A yield did not take long.
fn forgive<W: Word>(mine: &Half<'_, W>) {
    let penalty = mine.penalty.look();
    if penalty >= FEWEST_WAITS_WITHOUT_YIELD {
        mine.penalty.note(penalty - penalty / 8);
    }
}

/// Written only when it changes: the other side has the line, and should keep it.
fn note_processor<W: Word>(mine: &Half<'_, W>, cpu: u32) {
    if mine.cpu.look() != cpu {
        mine.cpu.note(cpu);
    }
}

fn sleep<W: Word>(machine: &impl Machine<W>, mine: &Half<'_, W>, other: &Half<'_, W>, seen: u32) -> u32 {
    mine.sleeping.publish(1);
    loop {
        let word = other.word.look();
        if word != seen {
            mine.sleeping.note(0);
            return word;
        }
        if machine.is_in_vain() {
            mine.sleeping.note(0);
            return seen;
        }
        machine.sleep(other.word, seen);
    }
}

#[cfg(test)]
mod model {
    //! Every interleaving of the two sides, by loom.

    use std::cell::Cell;

    use loom::sync::atomic::{AtomicU32, Ordering, fence};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::{Budget, Half, Machine, Passed, Word};

    impl Word for AtomicU32 {
        fn look(&self) -> u32 {
            self.load(Ordering::Acquire)
        }

        fn publish(&self, value: u32) {
            self.store(value, Ordering::Release);
            fence(Ordering::SeqCst);
        }

        fn note(&self, value: u32) {
            self.store(value, Ordering::Relaxed);
        }
    }

    /// Futexes with nothing but their contract: the look and the sleep are one step for those who wake.
    #[derive(Default)]
    struct Futexes {
        lock: Mutex<()>,
        woken: Condvar,
    }

    /// Where a side runs: always on one processor, or on this one and the other by turns.
    #[derive(Clone, Copy)]
    enum Place {
        Stays(u32),
        Moves,
    }

    /// The machine as one side sees it. Neither time nor place is loom's: they are not what is modelled.
    struct Model {
        futexes: Arc<Futexes>,
        place: Place,
        /// The other side's process is known to be dead, or about to be. Only where that is what a test is about: each
        /// look is something to interleave.
        is_over: Option<Arc<AtomicU32>>,
        /// One tick for each time it is asked, so that every wait soon sleeps.
        clock: Cell<u32>,
    }

    impl Machine<AtomicU32> for Model {
        fn sleep(&self, word: &AtomicU32, value: u32) {
            let lock = self.futexes.lock.lock().unwrap();
            if word.load(Ordering::Acquire) == value {
                drop(self.futexes.woken.wait(lock).unwrap());
            }
        }

        fn wake(&self, _: &AtomicU32) {
            let _lock = self.futexes.lock.lock().unwrap();
            self.futexes.woken.notify_all();
        }

        fn is_in_vain(&self) -> bool {
            self.is_over.as_ref().is_some_and(|is_over| is_over.load(Ordering::SeqCst) != 0)
        }

        fn now(&self) -> (u64, u32) {
            let time = self.clock.get();
            self.clock.set(time + 1);
            let cpu = match self.place {
                Place::Stays(cpu) => cpu,
                Place::Moves => time % 2,
            };
            (time.into(), cpu)
        }

        /// Not loom's yield, after which it would let the other side go first, always: no wait would sleep.
        fn give_way(&self) {}

        fn budget(&self) -> Budget {
            Budget { quick_looks: 1, looks: 1, spin: 0, awake: 0, patience: 3 }
        }
    }

    #[derive(Default)]
    struct Owned {
        word: Arc<AtomicU32>,
        sleeping: AtomicU32,
        cpu: AtomicU32,
        no_yield: AtomicU32,
        penalty: AtomicU32,
        pauses: AtomicU32,
        /// Stands for the registers in the mailbox: written before the word is passed, read after.
        payload: loom::cell::UnsafeCell<u32>,
    }

    // SAFETY: the payload is written before its half's word is passed and read after that is seen, which is what the
    // model checks.
    unsafe impl Sync for Owned {}
    // SAFETY: as above.
    unsafe impl Send for Owned {}

    impl Owned {
        fn half(&self) -> Half<'_, AtomicU32> {
            let Self { word, sleeping, cpu, no_yield, penalty, pauses, .. } = self;
            Half { word, sleeping, cpu, no_yield, penalty, pauses }
        }
    }

    struct Side {
        machine: Model,
        mine: Arc<Owned>,
        other: Arc<Owned>,
    }

    impl Side {
        fn wait(&self, seen: u32) -> u32 {
            super::wait(&self.machine, &self.mine.half(), &self.other.half(), seen, Passed::Quietly)
        }

        fn pass(&self, value: u32) -> Passed {
            super::pass(&self.machine, &self.mine.half(), &self.other.half(), value)
        }

        fn call(&self, value: u32, seen: u32) -> u32 {
            super::call(&self.machine, &self.mine.half(), &self.other.half(), value, seen)
        }

        fn write_payload(&self, value: u32) {
            self.mine.payload.with_mut(|payload| {
                // SAFETY: ours until the word is passed.
                unsafe { *payload = value }
            });
        }

        fn read_payload(&self) -> u32 {
            self.other.payload.with(|payload| {
                // SAFETY: passed to us.
                unsafe { *payload }
            })
        }
    }

    /// Where the two sides may be: what a wait does depends on it.
    const PLACES: [[Place; 2]; 3] = [
        [Place::Stays(0), Place::Stays(0)],
        [Place::Stays(0), Place::Stays(1)],
        [Place::Moves, Place::Stays(1)],
    ];

    /// Which words pass control: a service task's hand-off has two, an executor's one.
    #[derive(Clone, Copy)]
    enum Words {
        OneEach,
        Shared,
    }

    impl Words {
        fn halves(self) -> [Arc<Owned>; 2] {
            let [ours, theirs] = <[Owned; 2]>::default();
            let word = match self {
                Self::OneEach => theirs.word,
                Self::Shared => Arc::clone(&ours.word),
            };
            [ours, Owned { word, ..theirs }].map(Arc::new)
        }

        /// What is in the word that a side waits for, until control comes: what the other side wrote when it passed control
        /// last, or what this one has just written.
        fn seen(self, others_last: u32, own: u32) -> u32 {
            match self {
                Self::OneEach => others_last,
                Self::Shared => own,
            }
        }
    }

    /// The words of a round.
    fn command(round: u32) -> u32 {
        2 * round
    }

    /// None before the first.
    fn report(round: u32) -> u32 {
        if round == 0 { 0 } else { 2 * round + 1 }
    }

    /// Runs `test` with a supervisor's side and an executor's, in each interleaving.
    fn explore(test: fn(Words, Side, Side)) {
        for (places, words) in
            PLACES.iter().flat_map(|&places| [(places, Words::OneEach), (places, Words::Shared)])
        {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(3);
            builder.check(move || {
                let futexes = Arc::default();
                let halves = words.halves();
                let [ours, theirs] = [0, 1].map(|side: usize| {
                    let machine = Model {
                        futexes: Arc::clone(&futexes),
                        place: places[side],
                        is_over: None,
                        clock: Cell::new(0),
                    };
                    // As after a wait long ago.
                    halves[side].cpu.note(machine.now().1);
                    Side { machine, mine: Arc::clone(&halves[side]), other: Arc::clone(&halves[1 - side]) }
                });
                test(words, ours, theirs);
            });
        }
    }

    #[test]
    fn no_wake_up_is_lost_and_every_round_sees_the_others_registers() {
        explore(|words, ours, theirs| {
            const ROUNDS: u32 = 2;
            let executor = thread::spawn(move || {
                for round in 1..=ROUNDS {
                    let seen = words.seen(command(round - 1), report(round - 1));
                    assert_eq!(theirs.wait(seen), command(round));
                    theirs.write_payload(theirs.read_payload() + 1);
                    theirs.pass(report(round));
                }
            });
            for round in 1..=ROUNDS {
                ours.write_payload(10 * round);
                let seen = words.seen(report(round - 1), command(round));
                assert_eq!(ours.call(command(round), seen), report(round));
                assert_eq!(ours.read_payload(), 10 * round + 1);
            }
            executor.join().unwrap();
        });
    }

    const DEAD: u32 = u32::MAX;

    /// What [`Life::die`] does.
    ///
    /// [`Life::die`]: crate::executor::life::Life::die
    fn die(side: &Side, is_over: &AtomicU32) {
        is_over.store(1, Ordering::SeqCst);
        // loom takes sequentially consistent stores for weaker ones.
        fence(Ordering::SeqCst);
        side.mine.word.publish(DEAD);
        side.machine.wake(&side.mine.word);
    }

    #[test]
    fn the_death_of_the_other_side_ends_the_wait() {
        explore(|words, mut ours, theirs| {
            let is_over = Arc::<AtomicU32>::default();
            let seen = words.seen(report(0), command(1));
            let ends: &[u32] = match words {
                // The word alone says so.
                Words::OneEach => &[DEAD],
                Words::Shared => {
                    ours.machine.is_over = Some(Arc::clone(&is_over));
                    &[DEAD, seen]
                }
            };
            let reaper = thread::spawn(move || die(&theirs, &is_over));
            assert!(ends.contains(&ours.call(command(1), seen)));
            reaper.join().unwrap();
        });
    }

    /// Said once when it has been killed, and once more when the kernel says that it is dead.
    #[test]
    fn a_guest_that_is_about_to_die_does_not_hide_its_end() {
        explore(|words, mut ours, theirs| {
            let is_over = Arc::<AtomicU32>::default();
            ours.machine.is_over = Some(Arc::clone(&is_over));
            let seen = words.seen(report(0), command(1));
            let reaper = thread::spawn(move || {
                die(&theirs, &is_over);
                theirs.mine.word.note(seen);
                die(&theirs, &is_over);
            });
            assert!([DEAD, seen].contains(&ours.call(command(1), seen)));
            reaper.join().unwrap();
        });
    }

    #[test]
    fn a_sleeper_whose_flag_was_cleared_is_woken_when_the_other_waits() {
        explore(|words, ours, theirs| {
            let flags = Arc::clone(&theirs.mine);
            let executor = thread::spawn(move || {
                theirs.wait(words.seen(command(0), report(0)));
                theirs.pass(report(1));
            });
            // A hostile guest.
            flags.sleeping.store(0, Ordering::Relaxed);
            ours.call(command(1), words.seen(report(0), command(1)));
            executor.join().unwrap();
        });
    }
}

#[cfg(test)]
mod properties {
    //! Two real threads, real futexes, and whatever budgets and delays.

    use std::sync::atomic::AtomicU32;
    use std::thread;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::{Half, Passed};
    use crate::executor::machine::Host;

    #[derive(Default)]
    struct Owned([AtomicU32; 6]);

    impl Owned {
        fn half(&self) -> Half<'_> {
            let [word, sleeping, cpu, no_yield, penalty, pauses] = &self.0;
            Half { word, sleeping, cpu, no_yield, penalty, pauses }
        }
    }

    fn busy_for(ns: u64) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_nanos(ns) {
            std::hint::spin_loop();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Each side passes on what it got plus one, after a delay: the sum says that no round was lost or repeated.
        #[test]
        fn control_comes_back_as_often_as_it_is_passed(
            budgets in [0u64..100_000, 0u64..100_000],
            delays in proptest::collection::vec([0u64..80_000, 0u64..80_000], 1..60),
            one_word: bool,
        ) {
            let owned = <[Owned; 2]>::default();
            let [ours, theirs] = owned.each_ref().map(Owned::half);
            let theirs = Half { word: if one_word { ours.word } else { theirs.word }, ..theirs };
            let last = thread::scope(|scope| {
                scope.spawn(|| {
                    let machine = Host::new(budgets[1]);
                    let mut seen = 0;
                    for delay in &delays {
                        let word = super::wait(&machine, &theirs, &ours, seen, Passed::Quietly);
                        busy_for(delay[1]);
                        super::pass(&machine, &theirs, &ours, word + 1);
                        seen = if one_word { word + 1 } else { word };
                    }
                });
                let machine = Host::new(budgets[0]);
                let mut last = 0;
                for delay in &delays {
                    busy_for(delay[0]);
                    let seen = if one_word { last + 1 } else { last };
                    last = super::call(&machine, &ours, &theirs, last + 1, seen);
                }
                last
            });
            prop_assert_eq!(u64::from(last), 2 * delays.len() as u64);
        }
    }
}

#[cfg(test)]
mod waits {
    //! How waits go by, on a machine whose clock stands still between two looks at it.

    use std::cell::Cell;
    use std::sync::atomic::AtomicU32;

    use super::{
        Budget, FEWEST_WAITS_WITHOUT_YIELD, Half, MOST_PAUSES, MOST_WAITS_WITHOUT_YIELD, Machine, PAUSE,
        Passed, Word,
    };

    /// On processor 1. The other side answers when this one sleeps.
    #[derive(Default)]
    struct Script {
        answer: AtomicU32,
        /// It answers yields as well.
        answers_yields: bool,
        clock: Cell<u64>,
        /// How long a yield takes.
        yield_takes: Cell<u64>,
        /// When there was one.
        yields: Cell<Vec<u64>>,
        slept: Cell<u64>,
    }

    const BUDGET: Budget = Budget { quick_looks: 0, looks: 1, spin: 20, awake: 60, patience: 50 };
    const QUICK: u64 = BUDGET.patience / 2;
    const SLOW: u64 = BUDGET.patience + 1;

    impl Machine for Script {
        fn sleep(&self, _: &AtomicU32, _: u32) {
            self.slept.set(self.clock.get());
            self.answer.publish(self.answer.look() + 1);
        }

        fn wake(&self, _: &AtomicU32) {}

        fn now(&self) -> (u64, u32) {
            self.clock.update(|clock| clock + 1);
            (self.clock.get(), 1)
        }

        fn give_way(&self) {
            let mut yields = self.yields.take();
            yields.push(self.clock.get());
            self.yields.set(yields);
            self.clock.update(|clock| clock + self.yield_takes.get());
            if self.answers_yields {
                self.answer.publish(self.answer.look() + 1);
            }
        }

        fn budget(&self) -> Budget {
            BUDGET
        }
    }

    impl Script {
        fn with_yields_of(ticks: u64) -> Self {
            Self { yield_takes: Cell::new(ticks), ..Self::default() }
        }

        /// Waits for an answer of who last waited on processor `cpu`. Says when there were yields.
        fn wait(&self, mine: &[AtomicU32; 6], cpu: u32) -> Vec<u64> {
            self.clock.set(0);
            let seen = self.answer.look();
            assert_eq!(self.wait_for_other_than(seen, mine, cpu), seen + 1);
            self.yields.take()
        }

        /// Waits for an answer that is there, from another processor.
        fn find_an_answer(&self, mine: &[AtomicU32; 6]) {
            let answer = self.answer.look();
            assert_eq!(self.wait_for_other_than(answer - 1, mine, 2), answer);
        }

        fn wait_for_other_than(&self, seen: u32, mine: &[AtomicU32; 6], cpu: u32) -> u32 {
            let [word, sleeping, own_cpu, no_yield, penalty, pauses] = mine;
            let own = Half { word, sleeping, cpu: own_cpu, no_yield, penalty, pauses };
            let [unused, its_cpu] = [0, cpu].map(AtomicU32::new);
            let other = Half {
                word: &self.answer,
                sleeping: &unused,
                cpu: &its_cpu,
                no_yield: &unused,
                penalty: &unused,
                pauses: &unused,
            };
            super::wait(self, &own, &other, seen, Passed::Quietly)
        }

        /// The same, so often, with an answer to each yield. Says how many there were.
        fn yields_of(&self, mine: &[AtomicU32; 6], cpu: u32, waits: u32) -> usize {
            assert!(self.answers_yields);
            (0..waits).map(|_| self.wait(mine, cpu).len()).sum()
        }
    }

    #[test]
    fn a_side_that_has_slept_says_that_it_is_awake_and_where_it_was() {
        let (machine, mine) = (Script::default(), <[AtomicU32; 6]>::default());
        machine.wait(&mine, 2);
        let [_, sleeping, cpu, ..] = mine;
        assert_eq!((sleeping.look(), cpu.look()), (0, 1));
    }

    #[test]
    fn a_wait_spins_then_yields_and_then_sleeps_but_does_not_spin_where_the_other_has_to_run() {
        let (machine, mine) = (Script::default(), <[AtomicU32; 6]>::default());
        let yields = machine.wait(&mine, 2);
        let within = BUDGET.spin..=BUDGET.awake + 3;
        assert!(yields.len() > 5 && yields.iter().all(|at| within.contains(at)), "{yields:?}");
        assert!(machine.slept.get() > BUDGET.awake);
        let yields = machine.wait(&mine, 1);
        assert!(yields[0] < 5, "{yields:?}");
    }

    #[test]
    fn a_side_that_looks_too_early_pauses_for_longer_and_one_that_does_not_for_less() {
        let (machine, mine) = (Script::default(), <[AtomicU32; 6]>::default());
        let pauses = &mine[5];
        for wait in 1..20 {
            machine.wait(&mine, 2);
            assert_eq!(pauses.look(), (wait * PAUSE).min(MOST_PAUSES + PAUSE));
        }
        for wait in 1..2 * MOST_PAUSES {
            machine.find_an_answer(&mine);
            assert_eq!(pauses.look(), MOST_PAUSES.saturating_sub(wait));
        }
        machine.wait(&mine, 1);
        assert_eq!(pauses.look(), 0, "the other side is on the same processor");
    }

    #[test]
    fn after_a_yield_that_took_long_a_side_does_without_for_some_waits() {
        let [quick, slow] = [QUICK, SLOW].map(Script::with_yields_of);
        let mine = <[AtomicU32; 6]>::default();
        for _ in 0..3 {
            assert_ne!(quick.wait(&mine, 1).len(), 0);
        }
        for round in 0..2 {
            assert_eq!(slow.wait(&mine, 1).len(), 1);
            for wait in 0..FEWEST_WAITS_WITHOUT_YIELD << round {
                assert_eq!(slow.wait(&mine, 1), [], "wait {wait}");
            }
        }
    }

    #[test]
    fn what_takes_long_is_tried_ever_less_often() {
        let machine = Script { answers_yields: true, ..Script::with_yields_of(QUICK) };
        let mine = <[AtomicU32; 6]>::default();
        assert_eq!(machine.yields_of(&mine, 1, 1000), 1000, "alone on the processor");
        machine.yield_takes.set(SLOW);
        // 1, 64, 128, 256 and so on between them.
        assert_eq!(machine.yields_of(&mine, 1, 1000), 5);
        let rare = machine.yields_of(&mine, 1, 20 * MOST_WAITS_WITHOUT_YIELD);
        assert!((20..30).contains(&rare), "{rare}");
    }

    #[test]
    fn a_yield_that_takes_long_costs_the_same_each_time_if_the_other_side_is_elsewhere() {
        let machine = Script { answers_yields: true, ..Script::with_yields_of(SLOW) };
        let mine = <[AtomicU32; 6]>::default();
        assert_eq!(machine.yields_of(&mine, 2, 650), 10);
    }

    #[test]
    fn a_processor_that_others_have_left_is_found_and_used_again() {
        let machine = Script { answers_yields: true, ..Script::with_yields_of(SLOW) };
        let mine = <[AtomicU32; 6]>::default();
        machine.yields_of(&mine, 1, 20 * MOST_WAITS_WITHOUT_YIELD);
        machine.yield_takes.set(QUICK);
        machine.yields_of(&mine, 1, MOST_WAITS_WITHOUT_YIELD);
        assert_eq!(machine.yields_of(&mine, 1, 1000), 1000);
        machine.yield_takes.set(SLOW);
        assert_eq!(machine.yields_of(&mine, 1, 1000), 5, "as if nobody had ever been there");
    }
}
