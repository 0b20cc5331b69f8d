//! Call-site rewriting: what the `rewrite` engine adds to `trap`.
//!
//! A site that has trapped is replaced by a jump to a stub, which goes to the executor's trampoline; later calls
//! from there raise no signal. [`rewriting`](crate::rewriting) plans that. Here the plans are applied to text that is
//! private to a space: [`place`] finds room for stubs, [`text`] changes text that may be running, and [`lease`] keeps files
//! from changing meanwhile. Text that the guest is about to change gets its old bytes back first.

mod lease;
mod place;
mod text;

use std::collections::{BTreeSet, HashMap, hash_map};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::lease::Lease;
use self::text::Memory;
use crate::arch::x86_64::{RFLAGS_TF, Registers};
use crate::error::{Error, Result};
use crate::executor::region::Region;
use crate::executor::service::Service;
use crate::exit::{Arch, Fault};
use crate::maps::{self, FileId, Map};
use crate::refusal::EngineError;
use crate::rewriting::{
    self, Breakpoint, Forms, INT3, Places, Plan, Planner, STUBS_LEN, SYSCALL, Text, Unplanned, WINDOW,
    overlap,
};

/// The vector of breakpoints.
const BREAKPOINT: u32 = 3;
/// The vector of page faults.
const PAGE_FAULT: u32 = 14;

/// A site is rewritten when it traps for the second time: most calls of a program's start never come again.
const TRAPS_BEFORE_REWRITING: u32 = 2;
/// A rewritten site that has trapped so often is passed by: its calls come from elsewhere, and need another form. One that could not be
/// rewritten gets a second try.
const TRAPS_BEFORE_REWRITING_AGAIN: u32 = 32;
/// A site whose breakpoints have been met so often costs more than it saves.
const MOST_BREAKPOINTS_MET: u32 = 64;
/// Stubs are never given back, so text that changes all the time would take ever more of them.
const MOST_PAGES: usize = 128;

/// How many addresses' traps are counted, whoever says that there were any.
const MOST_TRAPS: usize = 1 << 14;
/// How many files' text is rewritten in one space. Each is open meanwhile.
const MOST_FILES: usize = 64;

/// What the processor must have for the trampoline.
pub(crate) fn lacks() -> Option<EngineError> {
    (!std::arch::is_x86_feature_detected!("bmi2")).then_some(EngineError::Bmi2)
}

/// What rewriting needs of a space.
pub(crate) trait Guest: std::fmt::Debug + Send + Sync {
    /// Who executes calls in it.
    fn service(&self) -> &Service;

    /// Has it not yet restored the text of a file that somebody wanted to write to? See [`Self::give_up_text_of`].
    fn is_late(&self) -> &AtomicBool;

    /// Somebody is about to write to a file, which waits until this is done.
    fn give_up_text_of(&self, file: FileId);
}

impl<G: Guest> Guest for Arc<G> {
    fn service(&self) -> &Service {
        (**self).service()
    }

    fn is_late(&self) -> &AtomicBool {
        (**self).is_late()
    }

    fn give_up_text_of(&self, file: FileId) {
        (**self).give_up_text_of(file);
    }
}

/// The rewritten sites of one space.
#[derive(Debug)]
pub(crate) struct Rewriter(RwLock<Sites>);

#[derive(Debug)]
struct Sites {
    /// Rewriting has stopped for good: the guest uses GS, or somebody single-steps it.
    off: bool,
    /// By the address behind the `syscall`: how often it has trapped.
    traps: HashMap<u64, u32>,
    planner: Planner,
    /// What else is known of each plan that is applied, by its site.
    applied: HashMap<u64, Applied>,
    /// Ranges whose mapping is being changed: no site there is rewritten.
    closed: Vec<Range<u64>>,
    /// Pages that were a file's until a site in them was rewritten.
    copies: BTreeSet<u64>,
    leases: HashMap<FileId, Arc<Lease>>,
    memory: Option<Memory>,
    maps: Option<Vec<Map>>,
}

#[derive(Clone, Copy, Debug)]
struct Applied {
    file: Option<FileId>,
    breakpoints_met: u32,
}

/// A range that is closed to rewriting, while its mapping is changed.
#[derive(Debug)]
pub(crate) struct Closed<'a> {
    rewriter: &'a Rewriter,
    range: Range<u64>,
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut sites = self.rewriter.write();
        sites.maps = None;
        if let Some(index) = sites.closed.iter().position(|range| *range == self.range) {
            sites.closed.swap_remove(index);
        }
    }
}

impl Rewriter {
    /// For a space in which nothing is rewritten.
    pub(crate) fn new(region: Region) -> Self {
        Self(RwLock::new(Sites::new(Planner::of(region))))
    }

    /// A call has trapped; its site may be worth rewriting. Says whether the instruction at RIP has moved.
    pub(crate) fn after_trap(
        &self,
        space: &Arc<impl Guest + 'static>,
        registers: &Registers,
        arch: Arch,
    ) -> bool {
        let mut sites = self.write();
        if sites.off || arch != Arch::X86_64 {
            return false;
        }
        if registers.gs_base != 0 {
            sites.turn_off(space);
            return false;
        }
        if sites.may_be_text(registers.rip) && registers.rflags & RFLAGS_TF == 0 {
            // A site that cannot be rewritten goes on trapping.
            let _ = match sites.count_trap(registers.rip) {
                TRAPS_BEFORE_REWRITING => sites.rewrite(space, registers, Forms::All),
                TRAPS_BEFORE_REWRITING_AGAIN => sites.rewrite_again(space, registers),
                _ => None,
            };
        }
        sites.planner.present(registers.rip) != registers.rip
    }

    /// Where a context is that met a breakpoint of ours: it goes on there. The site may have got its own bytes back since.
    pub(crate) fn caused(&self, space: &dyn Guest, registers: &Registers, fault: &Fault) -> Option<u64> {
        let at = registers.rip.checked_sub(1).filter(|_| fault.trapno == BREAKPOINT)?;
        let mut sites = self.write();
        match sites.planner.breakpoint(registers.rip) {
            Breakpoint::Guests => None,
            Breakpoint::Unknown => sites.has_no_breakpoint(space, at).then_some(at),
            Breakpoint::Planned { site } => {
                if sites.planner.present(at) != at {
                    sites.count_breakpoint(space, site);
                }
                Some(at)
            }
        }
    }

    /// What a fault in a stub tells is about the instruction that has moved there.
    pub(crate) fn place(&self, fault: &mut Fault) {
        if fault.trapno != PAGE_FAULT {
            fault.addr = self.read().planner.original_address(fault.addr);
        }
    }

    /// The guest is to find its own text from now on: somebody steps through it one instruction at a time, or it
    /// uses GS.
    pub(crate) fn stop(&self, space: &dyn Guest) {
        if !self.read().off {
            self.write().turn_off(space);
        }
    }

    /// What the guest's registers would be in its own text.
    pub(crate) fn original_registers(&self, registers: Registers) -> Registers {
        self.read().planner.original(registers)
    }

    /// Where the instruction at `rip` of the guest's text is now.
    pub(crate) fn present(&self, rip: u64) -> u64 {
        self.read().planner.present(rip)
    }

    /// The mapping of `range` is about to change: the guest is to find its own text there, until the change is done and
    /// the value is dropped.
    pub(crate) fn before_change(&self, space: &dyn Guest, range: Range<u64>) -> Result<Closed<'_>> {
        let mut sites = self.write();
        if sites.planner.stubs().any(|stubs| overlap(&stubs, &range)) {
            return Err(Error::Reserved { addr: range.start, len: range.end - range.start });
        }
        sites.maps = None;
        sites.traps.retain(|site, _| !range.contains(site));
        sites.restore(space, |plan, _| plan.meets(&range));
        sites.closed.push(range.clone());
        Ok(Closed { rewriter: self, range })
    }

    /// Somebody is about to write to a file: its text is to be the file's.
    pub(crate) fn give_up(&self, space: &dyn Guest, file: FileId) {
        self.write().restore(space, |_, applied| applied.file == Some(file));
    }

    /// Has `unmap` remove all that the guest has, with the stubs; no site is known afterwards.
    pub(crate) fn clear(&self, unmap: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut sites = self.write();
        unmap()?;
        let (memory, closed) = (sites.memory.take(), std::mem::take(&mut sites.closed));
        let region = sites.planner.region();
        *sites = Sites { memory, closed, ..Sites::new(Planner::of(region)) };
        Ok(())
    }

    /// Forks a process with `fork` while no site changes; the copy has what this one has.
    pub(crate) fn fork(&self, fork: impl FnOnce() -> Result<Service>) -> Result<(Service, Self)> {
        let sites = self.write();
        let service = fork()?;
        let copy = Sites {
            off: sites.off,
            traps: sites.traps.clone(),
            applied: sites.applied.clone(),
            copies: sites.copies.clone(),
            leases: sites.leases.clone(),
            ..Sites::new(sites.planner.clone())
        };
        Ok((service, Self(RwLock::new(copy))))
    }

    /// A fork is `space` from now on. What has been written to its files since it was made, it did not give up in time; but
    /// nothing has run in it.
    pub(crate) fn adopt(&self, space: &Arc<impl Guest + 'static>) {
        let mut sites = self.write();
        let late: Vec<_> =
            sites.leases.iter().filter(|(_, lease)| !lease.join(space)).map(|(&file, _)| file).collect();
        sites.restore(space, |_, applied| applied.file.is_some_and(|file| late.contains(&file)));
    }

    /// Rewriting has stopped for good.
    pub(crate) fn is_off(&self) -> bool {
        self.read().off
    }

    /// How many stretches of text are rewritten now.
    pub(crate) fn count(&self) -> usize {
        self.read().planner.plans().len()
    }

    fn read(&self) -> RwLockReadGuard<'_, Sites> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Sites> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sites {
    fn new(planner: Planner) -> Self {
        Self {
            off: false,
            traps: HashMap::new(),
            planner,
            applied: HashMap::new(),
            closed: Vec::new(),
            copies: BTreeSet::new(),
            leases: HashMap::new(),
            memory: None,
            maps: None,
        }
    }

    /// Can text that we may change end at `rip`? A hostile guest can say that it called from anywhere.
    fn may_be_text(&self, rip: u64) -> bool {
        let Some(start) = rip.checked_sub(WINDOW) else { return false };
        let range = start..rip.saturating_add(WINDOW);
        !self.planner.touches(&range) && !self.closed.iter().any(|closed| overlap(closed, &range))
    }

    /// Rewrites a site whose calls still trap: in the form that takes them wherever they come from, or as it was.
    fn rewrite_again(&mut self, space: &Arc<impl Guest + 'static>, registers: &Registers) -> Option<()> {
        let traps = self.traps.get(&registers.rip).copied();
        self.restore(space, |plan, _| plan.site() == registers.rip);
        self.traps.extend(traps.map(|traps| (registers.rip, traps)));
        let behind = self.rewrite(space, registers, Forms::Behind);
        behind.or_else(|| self.rewrite(space, registers, Forms::All))
    }

    /// Rewrites the site that has just trapped with `registers`, if it can be; `None` if not.
    fn rewrite(
        &mut self,
        space: &Arc<impl Guest + 'static>,
        registers: &Registers,
        forms: Forms,
    ) -> Option<()> {
        rewriting::prepare();
        let map = self.map_of(space, registers.rip.checked_sub(SYSCALL)?)?.clone();
        // Before the text is looked at: nobody writes to it from now on.
        let rewritten = self.keep_file(space, &map).and_then(|file| {
            let plan = self.plan(space, registers, forms, &map)?;
            self.install(space, plan, file)
        });
        if rewritten.is_none() {
            // Breakpoints may have been there already.
            self.drop_copies(space);
            self.drop_leases();
        }
        rewritten
    }

    /// Plans to rewrite a site in `map`.
    fn plan(&mut self, space: &dyn Guest, registers: &Registers, forms: Forms, map: &Map) -> Option<Plan> {
        let rip = registers.rip;
        let range =
            map.range.start.max(rip.saturating_sub(WINDOW))..map.range.end.min(rip.saturating_add(WINDOW));
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        self.memory(space)?.read(range.start, &mut bytes)?;
        let text = Text::new(range.start, &bytes);
        match self.planner.plan(text, registers, forms) {
            Err(Unplanned::NoStubs(places)) => {
                self.map_stubs(space, &places, rip)?;
                self.planner.plan(text, registers, forms).ok()
            }
            plan => plan.ok(),
        }
    }

    /// The text of a program at `addr`.
    fn map_of(&mut self, space: &dyn Guest, addr: u64) -> Option<&Map> {
        let is_text = |map: &Map| map.range.contains(&addr) && map.is_private_text();
        if !self.maps.iter().flatten().any(is_text) {
            let held = space.service().life.pid();
            self.maps = Some(maps::of((*held)?).ok()?);
        }
        self.maps.iter().flatten().find(|map| is_text(map))
    }

    /// Maps a new page of stubs in one of these places, for text at `at`.
    fn map_stubs(&mut self, space: &dyn Guest, places: &Places, at: u64) -> Option<()> {
        if self.planner.stubs().len() == MOST_PAGES {
            return None;
        }
        let held = space.service().life.pid();
        let maps = maps::of((*held)?).ok()?;
        drop(held);
        let start = place::find(places, &maps, self.planner.region(), at)?;
        let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let mapped = space.service().call(libc::SYS_mmap, [start, STUBS_LEN, protection, flags, u64::MAX, 0]);
        if !matches!(mapped, Ok(Ok(addr)) if addr == start) {
            return None;
        }
        let first_bytes = self.planner.add_stubs(start)?;
        self.memory(space)?.write(start, &first_bytes)
    }

    /// Applies a plan for text that is `file`'s, if any's.
    fn install(&mut self, space: &dyn Guest, plan: Plan, file: Option<FileId>) -> Option<()> {
        if file.is_some() {
            self.note_copies(space.service(), &plan.range())?;
        }
        let (site, stub) = (plan.site(), plan.stub());
        let memory = self.memory(space)?;
        memory.write(stub.at, &stub.bytes)?;
        if memory.change(space.service(), &[plan.change()]).is_none() {
            // The processors cannot be told: there are breakpoints, and nothing else is changed yet.
            return memory.write(plan.range().start, plan.original()).and(None);
        }
        self.planner.commit(plan);
        self.applied.insert(site, Applied { file, breakpoints_met: 0 });
        Some(())
    }

    /// Sees that writing to text will not hide what somebody writes to its file. Says which file it is, if it is one's.
    fn keep_file(&mut self, space: &Arc<impl Guest + 'static>, map: &Map) -> Option<Option<FileId>> {
        let held = space.service().life.pid();
        let pid = (*held)?;
        if self.leases.len() == MOST_FILES {
            self.drop_leases();
        }
        let Some(file) = map.file else { return Some(None) };
        if self.leases.len() == MOST_FILES && !self.leases.contains_key(&file) {
            return None;
        }
        let is_kept = match self.leases.entry(file) {
            hash_map::Entry::Occupied(lease) => !lease.get().is_broken(),
            hash_map::Entry::Vacant(place) => place.insert(lease::on(map, pid)?).join(space),
        };
        is_kept.then_some(Some(file))
    }

    /// Notes which pages of a range are a file's now.
    fn note_copies(&mut self, service: &Service, range: &Range<u64>) -> Option<()> {
        for page in text::pages(range) {
            if !self.copies.contains(&page) && text::is_of_file(service, page)? {
                self.copies.insert(page);
            }
        }
        Some(())
    }

    /// How often the site whose `syscall` ends at `rip` has trapped. Guests can say so of any address: when there are too
    /// many, counting begins anew.
    fn count_trap(&mut self, rip: u64) -> u32 {
        if self.traps.len() == MOST_TRAPS && !self.traps.contains_key(&rip) {
            self.traps.clear();
        }
        let traps = self.traps.entry(rip).or_default();
        *traps = traps.saturating_add(1);
        *traps
    }

    /// A context has met a breakpoint in place of an instruction that has moved.
    fn count_breakpoint(&mut self, space: &dyn Guest, site: u64) {
        let Some(applied) = self.applied.get_mut(&site) else { return };
        applied.breakpoints_met += 1;
        if applied.breakpoints_met == MOST_BREAKPOINTS_MET {
            self.restore(space, |plan, _| plan.site() == site);
            self.traps.insert(site, u32::MAX);
        }
    }

    /// Takes back the plans of which `which` says so, and puts the old bytes back, if what is there is ours.
    fn restore(&mut self, space: &dyn Guest, which: impl Fn(&Plan, &Applied) -> bool) {
        let applied = &self.applied;
        let taken = self.planner.take_back(|plan| which(plan, &applied[&plan.site()]));
        if taken.is_empty() {
            return;
        }
        if let Some(memory) = self.memory(space) {
            let is_ours = |plan: &&Plan| {
                let mut present = vec![0; plan.replacement().len()];
                memory.read(plan.range().start, &mut present).is_some() && present == plan.replacement()
            };
            let changes: Vec<_> = taken.iter().filter(is_ours).map(Plan::undo).collect();
            // Memory that is gone needs no restoring.
            let _ = memory.change(space.service(), &changes);
        }
        for plan in &taken {
            self.applied.remove(&plan.site());
            self.traps.remove(&plan.site());
        }
        self.drop_copies(space);
        self.drop_leases();
    }

    /// Lets go of files in which nothing is rewritten any more.
    fn drop_leases(&mut self) {
        let applied = &self.applied;
        self.leases.retain(|&file, _| applied.values().any(|applied| applied.file == Some(file)));
    }

    /// Gives back the pages of files in which nothing is rewritten any more.
    fn drop_copies(&mut self, space: &dyn Guest) {
        let used: BTreeSet<u64> = self.planner.plans().flat_map(|plan| text::pages(&plan.range())).collect();
        let unused: BTreeSet<u64> = self.copies.difference(&used).copied().collect();
        if !unused.is_empty() {
            text::drop_copies(space.service(), &unused);
            self.copies.retain(|page| !unused.contains(page));
        }
    }

    fn turn_off(&mut self, space: &dyn Guest) {
        self.off = true;
        self.restore(space, |_, _| true);
    }

    /// Is there, as far as can be seen, no breakpoint instruction that ends behind `at`?
    fn has_no_breakpoint(&mut self, space: &dyn Guest, at: u64) -> bool {
        /// `int $3`, the longer form.
        const INT_3: [u8; 2] = [0xcd, 3];
        let Some(memory) = self.memory(space) else { return false };
        match memory.byte(at) {
            Some(INT3) => false,
            Some(last) => {
                at.checked_sub(1).and_then(|before| memory.byte(before)) != Some(INT_3[0]) || last != INT_3[1]
            }
            // It is gone, and what comes there now finds so.
            None => true,
        }
    }

    fn memory(&mut self, space: &dyn Guest) -> Option<&Memory> {
        if self.memory.is_none() {
            self.memory = Memory::open(space.service());
        }
        self.memory.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traps_at_ever_new_addresses_do_not_take_ever_more_memory() {
        let mut sites = Sites::new(Planner::of(Region::DEFAULT));
        for rip in 0..50_000 {
            assert_eq!(sites.count_trap(rip), 1);
            assert_eq!(sites.count_trap(rip), 2);
            assert!(sites.traps.len() <= 20_000);
        }
    }

    #[test]
    fn calls_from_our_own_pages_or_from_nowhere_are_no_sites() {
        let region = Region::DEFAULT;
        let mut sites = Sites::new(Planner::of(region));
        sites.planner.add_stubs(0x10_0000).expect("a place");
        sites.closed.push(0x20_0000..0x20_1000);
        let ours = [
            0,
            1,
            region.start(),
            region.start() + 0x1300,
            region.range().end,
            0x10_0000,
            0x10_ffff,
            0x20_1000,
        ];
        for rip in ours {
            assert!(!sites.may_be_text(rip), "{rip:#x}");
        }
        assert!(sites.may_be_text(0x40_0000));
    }
}
