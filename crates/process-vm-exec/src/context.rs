//! The state of one flow of control: registers, segment bases, extended state.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};

use rustix::io::Errno;

use crate::arch::x86_64::{self, Registers, xstate};
use crate::engine::{Called, Event, Seat};
use crate::error::{Error, Result};
use crate::exit::{Arch, Syscall};
use crate::sync::lock;

/// Registers, segment bases and extended state of one flow of control in an address space.
///
/// After a run, what is not asked for stays where the guest left it: nobody pays for copying the extended state, or
/// even most registers, of a guest that only makes system calls. Therefore a context belongs to a task inside the
/// space in which it last ran, and gives it back when it is dropped or runs in another space.
///
/// ```
/// use process_vm_exec::Context;
/// let mut ctx = Context::new(0x1000, 0x8000);
/// ctx.registers_mut().rdi = 1;
/// assert_eq!(ctx.registers().rip, 0x1000);
/// ```
#[derive(Debug)]
pub struct Context {
    /// Empty while only the seat knows them.
    registers: OnceCell<Registers>,
    /// `rax`, always; the exit told it.
    rax: u64,
    /// The registers have been changed: the seat's are out of date, but for `rax`.
    changed: bool,
    xstate: Xstate,
    seat: Option<Seated>,
    interrupts: Arc<Interrupts>,
    syscall: Syscall,
    calls: Calls,
}

/// How many system calls a context has made, by how they reached the supervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// From rewritten sites, without a signal.
    pub rewritten: u64,
    /// By a signal or a stop.
    pub trapped: u64,
}

/// Where the valid extended state is.
#[derive(Debug)]
enum Xstate {
    /// Nowhere: that of a processor just initialised.
    Initial,
    /// In the seat.
    Seated,
    /// In the seat, and here is a copy.
    Copied(Vec<u8>),
    /// Here; the seat's is out of date.
    Set(Vec<u8>),
}

/// What a context needs of the space that it runs in.
pub(crate) trait Home: std::fmt::Debug + Send + Sync {
    /// A task for a context.
    fn seat(self: Arc<Self>) -> Result<Arc<dyn Seat>>;

    /// A context is done with its task.
    fn give_back(&self, seat: Arc<dyn Seat>);

    /// Kills the process.
    fn kill(&self);

    /// Do tasks have to be asked each time whether they are usable?
    fn is_particular(&self) -> bool;

    /// The registers of a context as they are in the guest's own text.
    fn original_registers(&self, registers: Registers) -> Registers;

    /// The registers with which to go where `registers` say, now that sites are rewritten.
    fn present_registers(&self, registers: Registers) -> Registers;
}

/// A seat, and the space it is in.
#[derive(Debug)]
struct Seated {
    space: Arc<dyn Home>,
    seat: Arc<dyn Seat>,
    /// Does it have to be asked each time whether it is usable?
    is_particular: bool,
}

/// Where a context runs.
#[derive(Debug, Default)]
enum Place {
    #[default]
    Nowhere,
    /// It has begun to run, and will get a seat in this space, if that lets it have one.
    OnItsWay(Arc<dyn Home>),
    In(Arc<dyn Seat>),
}

/// Whom an [`Interrupter`] is to interrupt.
#[derive(Debug, Default)]
struct Interrupts {
    place: Mutex<Place>,
    /// An interrupt that has not reached a seat: there is none, or somebody has the lock.
    pending: AtomicBool,
}

impl Interrupts {
    /// Interrupts the seat, if there is one. Never waits: a signal handler may have come while its own thread has the
    /// lock. Whoever has that delivers what came meanwhile.
    fn deliver(&self) {
        while self.pending.load(Ordering::SeqCst) {
            let place = match self.place.try_lock() {
                Ok(place) => place,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let Place::In(seat) = &*place else { return };
            if self.pending.swap(false, Ordering::SeqCst) {
                seat.interrupt();
            }
        }
    }

    /// From here on it is there that it is interrupted. An interrupt that the seat before had, and did not come to, stays.
    fn change(&self, place: Place) {
        let mut current = lock(&self.place);
        if let Place::In(before) = std::mem::replace(&mut *current, place)
            && before.take_interrupt()
        {
            self.pending.store(true, Ordering::SeqCst);
        }
        drop(current);
        self.deliver();
    }

    fn kill(&self) {
        match &*lock(&self.place) {
            Place::Nowhere => {}
            Place::OnItsWay(space) => space.kill(),
            Place::In(seat) => seat.kill(),
        }
    }
}

impl Context {
    /// A context that starts at `entry` with `stack_top` in RSP, zeroes in all other general registers and the
    /// extended state of a processor just initialised.
    pub fn new(entry: u64, stack_top: u64) -> Self {
        Self::with_registers(Registers { rip: entry, rsp: stack_top, ..Registers::default() })
    }

    /// A context that starts with these registers.
    pub fn with_registers(registers: Registers) -> Self {
        Self {
            registers: OnceCell::from(registers),
            rax: registers.rax,
            changed: true,
            xstate: Xstate::Initial,
            seat: None,
            interrupts: Arc::default(),
            syscall: Syscall { nr: 0, args: [0; 6], arch: Arch::X86_64 },
            calls: Calls::default(),
        }
    }

    /// The registers as they are now.
    pub fn registers(&self) -> &Registers {
        self.registers.get_or_init(|| {
            let Seated { space, seat, .. } = self.seat.as_ref().expect("registers are here or in the seat");
            Registers { rax: self.rax, ..space.original_registers(seat.registers()) }
        })
    }

    /// The registers, to change them.
    ///
    /// `cs` and `ss` must be user segments, and RIP an address that user space can have: [`run`] refuses others.
    /// Of RFLAGS, the bits that only the kernel may change are ignored.
    ///
    /// [`run`]: crate::Space::run
    pub fn registers_mut(&mut self) -> &mut Registers {
        self.registers();
        self.changed = true;
        self.registers.get_mut().expect("just read")
    }

    /// The system call with which the last run that returned [`Exit::Syscall`](crate::Exit::Syscall) ended.
    #[inline]
    pub fn syscall(&self) -> &Syscall {
        &self.syscall
    }

    /// Answers a system call: sets `rax`, to `-errno` for an error. Costs less than
    /// [`registers_mut`](Self::registers_mut).
    #[inline]
    pub fn set_return(&mut self, answer: std::result::Result<u64, Errno>) {
        let value = match answer {
            Ok(value) => value,
            Err(errno) => (-i64::from(errno.raw_os_error())).cast_unsigned(),
        };
        self.rax = value;
        if let Some(registers) = self.registers.get_mut() {
            registers.rax = value;
        }
    }

    /// The extended state as an XSAVE area in standard format (Intel SDM, volume 1, chapter 13): x87 and SSE in the
    /// first 512 bytes, then 64 bytes of header, then what the processor has. [`xstate_size`](crate::xstate_size)
    /// bytes.
    ///
    /// # Errors
    /// [`Error::Dead`](crate::Error::Dead) if the space that has it is gone.
    pub fn xstate(&mut self) -> Result<&[u8]> {
        match self.xstate {
            Xstate::Initial => self.xstate = Xstate::Set(xstate::initial()),
            Xstate::Seated => {
                let seated = self.seat.as_ref().expect("the state is in the seat");
                self.xstate = Xstate::Copied(seated.seat.xstate()?);
            }
            Xstate::Copied(_) | Xstate::Set(_) => {}
        }
        match &self.xstate {
            Xstate::Copied(area) | Xstate::Set(area) => Ok(area),
            Xstate::Initial | Xstate::Seated => unreachable!("just copied"),
        }
    }

    /// Replaces the extended state, with what [`xstate`](Self::xstate) returned or something of its form.
    ///
    /// # Errors
    /// [`Error::Context`](crate::Error::Context) for a wrong size, or bits that this processor does not know; the
    /// context is unchanged then.
    pub fn set_xstate(&mut self, area: &[u8]) -> Result<()> {
        xstate::validate(area)?;
        self.xstate = Xstate::Set(area.to_vec());
        Ok(())
    }

    /// How many system calls the context has made so far.
    pub fn calls(&self) -> Calls {
        self.calls
    }

    /// A handle that ends this context's runs, from any thread.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter(Arc::clone(&self.interrupts))
    }

    /// A context with the same state, which can run elsewhere: in a fork of the space, for example.
    ///
    /// # Errors
    /// [`Error::Dead`](crate::Error::Dead) if the space that has the extended state is gone.
    pub fn try_clone(&mut self) -> Result<Self> {
        let area = self.xstate()?.to_vec();
        let mut clone = Self::with_registers(*self.registers());
        clone.xstate = Xstate::Set(area);
        Ok(clone)
    }

    /// Goes to the guest in `space`, and comes back with what has happened.
    #[inline]
    pub(crate) fn enter<H: Home + 'static>(&mut self, space: &Arc<H>) -> Result<Event> {
        let is_seated = |seated: &Seated| {
            std::ptr::addr_eq(Arc::as_ptr(&seated.space), Arc::as_ptr(space))
                && (!seated.is_particular || seated.seat.is_usable())
        };
        if !self.seat.as_ref().is_some_and(is_seated) {
            self.sit(Arc::<H>::clone(space))?;
        }
        if !matches!(self.xstate, Xstate::Seated) {
            self.load_xstate()?;
        }
        if self.changed { self.load() } else { Ok(self.seat().answer(self.rax)) }
    }

    #[inline]
    fn seat(&self) -> &dyn Seat {
        &*self.seat.as_ref().expect("the context has a seat").seat
    }

    /// Makes `space` the one in which the context runs.
    #[cold]
    fn sit(&mut self, space: Arc<dyn Home>) -> Result<()> {
        self.interrupts.change(Place::OnItsWay(Arc::clone(&space)));
        let result = self.move_to(space);
        // Where it was, if it has not come away from there.
        self.interrupts.change(match &self.seat {
            Some(Seated { seat, .. }) => Place::In(Arc::clone(seat)),
            None => Place::Nowhere,
        });
        result
    }

    fn move_to(&mut self, space: Arc<dyn Home>) -> Result<()> {
        self.leave().map_err(|error| match error {
            // That was the other space's end, not this one's.
            Error::Dead => {
                Error::Context("its extended state went with its last space; set_xstate gives it another")
            }
            error => error,
        })?;
        let seat = Arc::clone(&space).seat()?;
        if matches!(self.xstate, Xstate::Initial) && seat.has_initial_xstate() {
            self.xstate = Xstate::Seated;
        }
        let is_particular = space.is_particular();
        self.seat = Some(Seated { space, seat, is_particular });
        Ok(())
    }

    /// Takes everything out of the seat and gives it back.
    fn leave(&mut self) -> Result<()> {
        if self.seat.is_some() {
            self.registers();
            self.changed = true;
            self.xstate()?;
        }
        if let Xstate::Copied(area) = &mut self.xstate {
            self.xstate = Xstate::Set(std::mem::take(area));
        }
        self.give_back_seat();
        Ok(())
    }

    fn give_back_seat(&mut self) {
        if let Some(Seated { space, seat, .. }) = self.seat.take()
            && seat.is_ours()
        {
            space.give_back(seat);
        }
    }

    /// The text at RIP may have been changed by `change`, which says so: RIP has to be loaded anew then.
    pub(crate) fn move_with_text(&mut self, change: impl FnOnce(&Registers) -> bool) {
        if change(self.registers()) {
            self.changed = true;
        }
    }

    /// Was there an interrupt that no run has reported?
    pub(crate) fn take_interrupt(&self) -> bool {
        self.seat.as_ref().is_some_and(|seated| seated.seat.take_interrupt())
    }

    /// Moves RIP, which is to stay where the fault was found to be.
    pub(crate) fn try_again_at(&mut self, rip: u64) {
        self.registers_mut().rip = rip;
    }

    /// Goes to the guest with registers that have been changed. Not inlined: it needs room that an answer does not.
    #[inline(never)]
    fn load(&mut self) -> Result<Event> {
        let registers = self.registers.get_mut().expect("changed registers are here");
        x86_64::validate(registers)?;
        let Seated { space, seat, .. } = self.seat.as_ref().expect("the context has a seat");
        Ok(seat.load(&space.present_registers(*registers)))
    }

    #[cold]
    fn load_xstate(&mut self) -> Result<()> {
        match &self.xstate {
            Xstate::Initial => self.seat().set_xstate(&xstate::initial())?,
            Xstate::Set(area) => self.seat().set_xstate(area)?,
            Xstate::Copied(_) | Xstate::Seated => {}
        }
        self.xstate = Xstate::Seated;
        Ok(())
    }

    /// The guest made a call.
    #[inline]
    pub(crate) fn count(&mut self, how: Called) {
        match how {
            Called::Rewritten => self.calls.rewritten += 1,
            Called::Trapped => self.calls.trapped += 1,
        }
    }

    /// The guest has run and made a call.
    #[inline]
    pub(crate) fn called(&mut self, arch: Arch) {
        let Seated { seat, .. } = self.seat.as_ref().expect("the context has a seat");
        seat.read_call(arch, &mut self.syscall);
        self.left(self.syscall.nr);
    }

    /// The guest has run: the seat has its state now.
    #[inline]
    pub(crate) fn left(&mut self, rax: u64) {
        self.rax = rax;
        self.registers.take();
        self.changed = false;
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.seat.as_ref().is_some_and(|seated| seated.seat.is_ours()) {
            // Before it is another context's.
            self.interrupts.change(Place::Nowhere);
        }
        self.give_back_seat();
    }
}

/// Ends the runs of one [`Context`], from any thread.
///
/// An interrupt is never lost: if the context is not running, its next run ends at once. Several before the run
/// comes back count as one.
///
/// With the engines `trap` and `rewrite`, [`interrupt`](Self::interrupt) takes no lock and no memory: a signal handler may call it
/// (signal-safety(7)), also one that has interrupted the thread which runs the context.
#[derive(Clone, Debug)]
pub struct Interrupter(Arc<Interrupts>);

impl Interrupter {
    /// Makes the run that goes on, or else the next one, return [`Exit::Interrupted`](crate::Exit::Interrupted). A
    /// run that is just coming back for another reason says that, and the next one is interrupted.
    pub fn interrupt(&self) {
        self.0.pending.store(true, Ordering::SeqCst);
        self.0.deliver();
    }

    /// Kills the process of the space in which the context runs, is about to, or last ran, with everything that runs there: for a guest that
    /// evades interrupts, which one may that jumps into the executor's code. Its run returns
    /// [`Exit::Died`](crate::Exit::Died). In a live process it removes the executor.
    pub fn kill(&self) {
        self.0.kill();
    }
}
