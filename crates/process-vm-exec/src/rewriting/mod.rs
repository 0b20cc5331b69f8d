//! Rewriting of call sites, as a plan: what to write where, and what a guest's registers mean afterwards.
//!
//! The `rewrite` engine does this by itself, to text that is private to a space. A kernel whose guests' text is shared, or
//! whose own bookkeeping has to know of each change, creates its spaces with
//! [`Rewriting::Planned`](crate::Rewriting::Planned) and applies plans in its own way. A [`Planner`] is pure: it makes no system call, reads no
//! memory of a guest, and writes none. The engine is one of its users.
//!
//! What the kernel does:
//!
//! 1. After a call that has trapped ([`Calls::trapped`](crate::Calls::trapped) has grown), and has done so at this site before, it gives
//!    [`Planner::plan`] the text around the site and the registers of the context.
//! 2. If that needs a page of stubs, it chooses one of the [places](Places), maps [`STUBS_LEN`] bytes there, read and
//!    execute, private to the space, writes the first eight of them, and plans again.
//! 3. It writes the stub of the [`Plan`], then [changes](Plan::change) the text in steps, and [commits](Planner::commit) the plan.
//! 4. From then on it passes the registers that it reads through [`Planner::original`], and the RIP that it sets through
//!    [`Planner::present`]. To answer a call by [`Context::set_return`](crate::Context::set_return) takes neither. A fault whose vector is 3 is for
//!    [`Planner::breakpoint`].
//! 5. Before the mapping of text is changed, before the text itself is, and for good when a guest sets its GS base
//!    or is stepped through (`RFLAGS.TF`), it takes the plans there [back](Planner::take_back), and changes the text as
//!    [`Plan::undo`] says. Stubs stay mapped and as they are: a context may be in one. For good means also
//!    [`AddressSpace::stop_plans`](crate::AddressSpace::stop_plans). A site that has a plan is planned anew, in the other form, after that
//!    has been taken back.
//!
//! The text must not change between the moment when the planner sees it and the change: the engine takes a lease on its file first, if it is a file's.
//!
//! [`Space::write`](crate::Space::write) does not write where the guest may not: text and stubs are written through another mapping of the same file,
//! as here, or /proc/PID/mem of [`AddressSpace::pid`](crate::AddressSpace::pid).
//!
//! ```
//! use std::{fs::File, os::fd::AsFd, os::unix::fs::FileExt};
//!
//! use process_vm_exec::rewriting::{Forms, Planner, STUBS_LEN, Text, Unplanned};
//! use process_vm_exec::*;
//!
//! const TEXT: u64 = 0x40_0000;
//!
//! // Maps a new file of memory, which the guest may execute and the supervisor write.
//! fn map(space: &AddressSpace, addr: u64, len: u64) -> std::result::Result<File, Box<dyn std::error::Error>> {
//!     let file = File::from(rustix::fs::memfd_create("text", rustix::fs::MemfdFlags::CLOEXEC)?);
//!     file.set_len(len)?;
//!     let protection = Protection::READ | Protection::EXEC;
//!     space.map(Mapping::file(file.as_fd(), 0, len, protection).shared().at(addr))?;
//!     Ok(file)
//! }
//!
//! # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
//! let space = match AddressSpace::builder().rewriting(Rewriting::Planned).create() {
//!     Err(Error::Engine { why, .. }) => return Ok(println!("not here: {why}")),
//!     space => space?,
//! };
//! // push %rax, again and again; mov $39,%eax; syscall; jmp back to the mov
//! let mut text = [0x50; 4096];
//! text[256..265].copy_from_slice(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]);
//! let file = map(&space, TEXT, 4096)?;
//! file.write_all_at(&text, 0)?;
//!
//! let mut ctx = Context::new(TEXT + 256, 0);
//! space.run(&mut ctx, &SignalSet::all())?;
//! assert_eq!(ctx.calls(), Calls { trapped: 1, rewritten: 0 });
//!
//! let mut planner = Planner::new(space.region().start)?;
//! let seen = Text::new(TEXT, &text);
//! let Err(Unplanned::NoStubs(places)) = planner.plan(seen, ctx.registers(), Forms::All) else {
//!     panic!("there are no stubs yet")
//! };
//! // The guest has nothing but this text, so the first one is free.
//! let place = places.near(TEXT).next().ok_or("no place")?;
//! let stubs = map(&space, place, STUBS_LEN)?;
//! stubs.write_all_at(&planner.add_stubs(place).ok_or("one of the places")?, 0)?;
//!
//! let plan = planner.plan(seen, ctx.registers(), Forms::All)?;
//! stubs.write_all_at(&plan.stub().bytes, plan.stub().at - place)?;
//! for writes in plan.change().steps() {
//!     for write in writes {
//!         file.write_all_at(&write.bytes, write.at - TEXT)?;
//!     }
//!     // PRIVATE_EXPEDITED_SYNC_CORE, for which the library has registered the space.
//!     space.syscall(Sysno::membarrier, [1 << 5, 0, 0, 0, 0, 0])?;
//! }
//! planner.commit(plan);
//!
//! for _ in 0..10 {
//!     ctx.set_return(Ok(1));
//!     space.run(&mut ctx, &SignalSet::all())?;
//! }
//! assert_eq!(ctx.calls(), Calls { trapped: 1, rewritten: 10 });
//! assert_eq!(planner.original(*ctx.registers()).rip, TEXT + 263);
//! # Ok(()) }
//! ```

mod places;
mod site;
mod stub;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Once;
use std::thread;

pub(crate) use self::places::LOWEST;
pub use self::places::Places;
use self::site::Form;
pub(crate) use self::site::SYSCALL;
pub use self::site::{Text, WINDOW};
use self::stub::{Jump, Page, Stub};
use crate::arch::x86_64::{Registers, USER_END};
use crate::error::Result;
use crate::executor::region::Region;
use crate::signal::with_signals_blocked;

/// The breakpoint instruction.
pub(crate) const INT3: u8 = 0xcc;

/// Length of a page of stubs in bytes: room for some 1,500 sites.
pub const STUBS_LEN: u64 = stub::PAGE_LEN;

/// Which ways of rewriting a site are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forms {
    /// All. The one whose calls are the fastest comes first: a jump in place of an instruction before the `syscall`.
    All,
    /// A jump in place of the `syscall` itself: for sites that go on trapping because code jumps to their `syscall`.
    Behind,
}

impl Forms {
    fn include(self, form: &Form) -> bool {
        match self {
            Self::All => true,
            Self::Behind => matches!(form, Form::Behind { .. }),
        }
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unplanned {
    /// The site cannot be rewritten: it goes on trapping.
    #[error("the call site cannot be rewritten")]
    Unsuitable,
    /// It has a plan that is applied: that is [taken back](Planner::take_back) first.
    #[error("the call site has a plan, which has to be taken back first")]
    Planned,
    /// It can, but not with the pages of stubs that there are: one in one of these places is needed.
    #[error("no page of stubs is within reach of the call site")]
    NoStubs(Places),
}

/// Bytes for a place in a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The address of the first.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A site, a jump that takes its place, and the stub that this leads to.
#[derive(Clone, Debug)]
pub struct Plan {
    site: u64,
    at: u64,
    original: Vec<u8>,
    breakpoints: Vec<u64>,
    stub: Stub,
}

impl Plan {
    /// The address behind the site's `syscall`.
    pub fn site(&self) -> u64 {
        self.site
    }

    /// The addresses whose bytes change.
    pub fn range(&self) -> Range<u64> {
        self.at..self.at + self.original.len() as u64
    }

    /// What is to be written, where nobody executes it yet, before the text is changed.
    pub fn stub(&self) -> Write {
        Write { at: self.stub.start, bytes: self.stub.bytes.clone() }
    }

    /// What is at [`range`](Self::range) when the plan has been applied.
    pub fn replacement(&self) -> &[u8] {
        &self.stub.jump
    }

    /// What is there before, and again when the plan has been taken back.
    pub fn original(&self) -> &[u8] {
        &self.original
    }

    /// The change of text that applies the plan.
    pub fn change(&self) -> Change<'_> {
        Change { at: self.at, bytes: &self.stub.jump, breakpoints: &self.breakpoints }
    }

    /// The change of text that takes it back.
    pub fn undo(&self) -> Change<'_> {
        Change { at: self.at, bytes: &self.original, breakpoints: &self.breakpoints }
    }

    /// Is the instruction at `addr` in the stub while the plan is applied?
    pub fn moves(&self, addr: u64) -> bool {
        self.stub.moved.contains_key(&addr)
    }

    /// Does it change something in `range`?
    pub fn meets(&self, range: &Range<u64>) -> bool {
        overlap(&self.range(), range)
    }
}

/// A change of text that contexts may be executing, before and after which its instructions begin at different places.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    at: u64,
    bytes: &'a [u8],
    breakpoints: &'a [u64],
}

impl Change<'_> {
    /// The writes, in three steps. After each step, and before the next, all processors that may execute the text have to fetch
    /// their instructions anew: by membarrier(2), `PRIVATE_EXPEDITED_SYNC_CORE`, which a space executes for its
    /// supervisor, or because no context runs. Source: Intel SDM, volume 3, 9.1.3.
    ///
    /// First there are breakpoints wherever an instruction begins, then all other bytes become what they are to be, then
    /// those. A context that meets one of these breakpoints is sent on by [`Planner::breakpoint`].
    pub fn steps(&self) -> [Vec<Write>; 3] {
        let breakpoints = self.breakpoints.iter().map(|&at| Write { at, bytes: vec![INT3] }).collect();
        let byte = |(at, &byte)| if self.breakpoints.contains(&at) { INT3 } else { byte };
        let between = (self.at..).zip(self.bytes).map(byte).collect();
        let whole = |bytes| vec![Write { at: self.at, bytes }];
        [breakpoints, whole(between), whole(self.bytes.to_vec())]
    }
}

/// Has the decoder make its tables, once, on a stack of our own: that goes deep, and a supervisor's threads may have small ones.
pub(crate) fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        let decode = || Text::new(0, &[0x90]).decode(0).count();
        let thread = with_signals_blocked(|| thread::Builder::new().name("pvx-decoder".into()).spawn(decode));
        // Without a thread, whoever comes to a site first does it.
        let _ = thread.map(thread::JoinHandle::join);
    });
}

/// Do two ranges share an address?
pub(crate) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What a breakpoint is that a context has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakpoint {
    /// A plan's, whose [site](Plan::site) this is: the context goes on at the address of the breakpoint itself, of which
    /// [`Planner::present`] tells where its instruction is.
    Planned {
        /// Whose.
        site: u64,
    },
    /// The guest's own: it is told.
    Guests,
    /// No plan knows of it. It is the guest's own if the text still has it. Else a plan that has been taken back had one there,
    /// and the context goes on at the address of the breakpoint.
    Unknown,
}

/// The rewritten sites of one space.
#[derive(Clone, Debug)]
pub struct Planner {
    region: Region,
    pages: Vec<Page>,
    /// By the first address that changes.
    plans: BTreeMap<u64, Plan>,
    /// Addresses in stubs, and what they stand for in the original text.
    original: BTreeMap<u64, u64>,
    /// Addresses of overwritten instructions, and where they are now.
    moved: BTreeMap<u64, u64>,
}

impl Planner {
    /// A planner for a space whose [region](crate::Space::region) begins there, in which nothing has been rewritten.
    ///
    /// # Errors
    /// [`Error::Region`](crate::Error::Region) if no region begins there.
    pub fn new(region: u64) -> Result<Self> {
        Region::at(region).map(Self::of)
    }

    pub(crate) fn of(region: Region) -> Self {
        Self {
            region,
            pages: Vec::new(),
            plans: BTreeMap::new(),
            original: BTreeMap::new(),
            moved: BTreeMap::new(),
        }
    }

    pub(crate) fn region(&self) -> Region {
        self.region
    }

    /// Plans to rewrite the site of a call that has trapped. `registers` are those of the context, as
    /// [`original`](Self::original) tells them. `text` is what the space has now for [`WINDOW`] bytes on either
    /// side of RIP, or as far as its mapping goes. What it says of other sites that are rewritten is undone first.
    ///
    /// A guest may say that it has called from anywhere, so that nothing needs to be true of the text.
    ///
    /// The first plan of a process takes some 10 KiB of stack more, unless a space that rewrites has been created.
    ///
    /// # Errors
    /// [`Unplanned`], which says whether another page of stubs would help.
    pub fn plan(
        &mut self,
        text: Text<'_>,
        registers: &Registers,
        forms: Forms,
    ) -> std::result::Result<Plan, Unplanned> {
        let rip = registers.rip;
        let around = rip.saturating_sub(WINDOW)..rip.saturating_add(WINDOW);
        if rip >= USER_END || self.touches(&around) {
            return Err(Unplanned::Unsuitable);
        }
        if self.plans_in(around).any(|plan| plan.site == rip) {
            return Err(Unplanned::Planned);
        }
        let text = text.around(rip);
        let mut bytes = text.bytes.to_vec();
        self.undo_in(text.start, &mut bytes);
        let text = Text::new(text.start, &bytes);
        let mut unplaced = Vec::new();
        for form in site::recognise(text, registers).iter().filter(|form| forms.include(form)) {
            let jumps = Jump::all(form, text, rip).into_iter();
            let jumps: Vec<_> = jumps.filter(|jump| self.plans_in(jump.range()).next().is_none()).collect();
            for page in &mut self.pages {
                for jump in &jumps {
                    if let Some(stub) = page.stub(text, rip, jump)
                        && let Some(original) = text.get(jump.at..jump.at + stub.jump.len() as u64)
                    {
                        let breakpoints = jump.breakpoints.clone();
                        return Ok(Plan {
                            site: rip,
                            at: jump.at,
                            original: original.to_vec(),
                            breakpoints,
                            stub,
                        });
                    }
                }
            }
            unplaced.extend(jumps);
        }
        if unplaced.is_empty() {
            return Err(Unplanned::Unsuitable);
        }
        let taken = std::iter::once(self.region.range()).chain(self.stubs()).collect();
        Err(Unplanned::NoStubs(Places::new(unplaced, taken)))
    }

    /// From now on there is a page of stubs at `start`, which is one of the [`Places`]. It has to begin with the eight bytes that
    /// are returned. `None`, and there is none, if it cannot be there: see [`Places::near`].
    #[must_use]
    pub fn add_stubs(&mut self, start: u64) -> Option<[u8; 8]> {
        let page = start..start.checked_add(STUBS_LEN)?;
        if !start.is_multiple_of(4096) || !places::are_possible(&page) || self.touches(&page) {
            return None;
        }
        self.pages.push(Page::new(start));
        Some(Page::header(self.region))
    }

    /// The pages of stubs that there are.
    pub fn stubs(&self) -> impl ExactSizeIterator<Item = Range<u64>> {
        self.pages.iter().map(|page| page.start..page.end())
    }

    /// Does a range share an address with the executor's region or a page of stubs?
    pub fn touches(&self, range: &Range<u64>) -> bool {
        self.region.touches(range) || self.stubs().any(|stubs| overlap(&stubs, range))
    }

    /// A plan has been applied.
    pub fn commit(&mut self, plan: Plan) {
        self.original.extend(&plan.stub.original);
        self.moved.extend(&plan.stub.moved);
        self.plans.insert(plan.at, plan);
    }

    /// The plans that are applied.
    pub fn plans(&self) -> impl ExactSizeIterator<Item = &Plan> {
        self.plans.values()
    }

    /// Those that change something in `range`.
    pub fn plans_in(&self, range: Range<u64>) -> impl Iterator<Item = &Plan> {
        // They do not overlap: of those that begin before, the last one alone may reach into it.
        let before = self.plans.range(..range.start).next_back().map(|(_, plan)| plan);
        let before = before.filter(|plan| plan.meets(&range));
        before.into_iter().chain(self.plans.range(range).map(|(_, plan)| plan))
    }

    /// The plans of which `which` says so are to be taken back: none of their instructions has moved any more, and the
    /// caller [undoes](Plan::undo) the changes of text. What addresses in their stubs stand for stays known.
    pub fn take_back(&mut self, mut which: impl FnMut(&Plan) -> bool) -> Vec<Plan> {
        let starts: Vec<_> = self.plans().filter(|plan| which(plan)).map(|plan| plan.at).collect();
        let taken: Vec<_> = starts.iter().filter_map(|start| self.plans.remove(start)).collect();
        for moved in taken.iter().flat_map(|plan| plan.stub.moved.keys()) {
            self.moved.remove(moved);
        }
        taken
    }

    /// Makes `bytes`, which the space has at `start`, the guest's own: what it is to find when it reads its text.
    pub fn undo_in(&self, start: u64, bytes: &mut [u8]) {
        let range = start..start.saturating_add(bytes.len() as u64);
        for plan in self.plans_in(range.clone()) {
            for (addr, &byte) in (plan.at..).zip(&plan.original).filter(|(addr, _)| range.contains(addr)) {
                bytes[usize::try_from(addr - start).expect("an address in the bytes")] = byte;
            }
        }
    }

    /// What the registers of a context that has left would be in its own text.
    pub fn original(&self, registers: Registers) -> Registers {
        match self.original.get(&registers.rip) {
            // A `syscall` leaves RIP in `rcx`.
            Some(&rip) if registers.rcx == registers.rip => Registers { rip, rcx: rip, ..registers },
            Some(&rip) => Registers { rip, ..registers },
            None => registers,
        }
    }

    /// What an address that a fault tells is about, if that may be of an instruction: all but those of page faults.
    pub fn original_address(&self, addr: u64) -> u64 {
        self.original.get(&addr).copied().unwrap_or(addr)
    }

    /// Where a context goes that is to go on at `rip` of its own text.
    pub fn present(&self, rip: u64) -> u64 {
        self.moved.get(&rip).copied().unwrap_or(rip)
    }

    /// A context has faulted with vector 3, at the instruction before `rip`: whose breakpoint was that?
    pub fn breakpoint(&self, rip: u64) -> Breakpoint {
        let Some(at) = rip.checked_sub(1) else { return Breakpoint::Unknown };
        let planned = self.plans.range(..=at).next_back().filter(|(_, plan)| plan.breakpoints.contains(&at));
        match planned {
            Some((start, plan)) => {
                let is_own = usize::try_from(at - start).is_ok_and(|index| plan.original[index] == INT3);
                if is_own { Breakpoint::Guests } else { Breakpoint::Planned { site: plan.site } }
            }
            None => Breakpoint::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
