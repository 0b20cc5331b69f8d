//! Call-site rewriting: what the `rewrite` engine adds to `trap`.
//!
//! A site that has trapped is replaced by a jump to a stub, which goes to the executor's trampoline; later calls
//! from there raise no signal. [`site`] says which sites can be, [`stub`] writes the stubs, [`text`] changes text that may
//! be running, and [`lease`] keeps files from changing meanwhile. Here is the bookkeeping: text that the guest is about to
//! change gets its old bytes back first, and no register ever shows an address in a stub.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod lease;
mod site;
mod stub;
mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::lease::Lease;
use self::site::{Form, SYSCALL, Text, WINDOW};
use self::stub::{Jump, PAGE_LEN, Page, Stub};
use self::text::{Change, Memory};
use crate::arch::x86_64::{RFLAGS_TF, Registers};
use crate::error::{Error, Result};
use crate::executor::region::Region;
use crate::executor::service::Service;
use crate::exit::{Arch, Fault};
use crate::maps::{self, FileId, Map};

/// The breakpoint instruction.
const INT3: u8 = 0xcc;
/// Its vector.
const BREAKPOINT: u32 = 3;
/// The vector of page faults.
const PAGE_FAULT: u32 = 14;

/// A site is rewritten when it traps for the second time: most calls of a program's start never come again.
const TRAPS_BEFORE_REWRITING: u32 = 2;
/// A rewritten site that has trapped so often is passed by: its calls come from elsewhere, and need another form.
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
pub(crate) fn lacks() -> Option<String> {
    (!std::arch::is_x86_feature_detected!("bmi2")).then(|| "the processor lacks BMI2 (Haswell or Zen)".into())
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
#[derive(Debug, Default)]
pub(crate) struct Rewriter(RwLock<Sites>);

#[derive(Debug, Default)]
struct Sites {
    /// Rewriting has stopped for good: the guest uses GS, or somebody single-steps it.
    off: bool,
    /// By the address behind the `syscall`: how often it has trapped.
    traps: HashMap<u64, u32>,
    /// What has been overwritten, by address.
    patches: BTreeMap<u64, Patch>,
    pages: Vec<Page>,
    /// Addresses in stubs, and what they stand for in the original text.
    original: BTreeMap<u64, u64>,
    /// Addresses of overwritten instructions, and where they are now.
    moved: BTreeMap<u64, u64>,
    /// Ranges whose mapping is being changed: no site there is rewritten.
    closed: Vec<Range<u64>>,
    /// Pages that were a file's until a site in them was rewritten.
    copies: BTreeSet<u64>,
    leases: HashMap<FileId, Arc<Lease>>,
    memory: Option<Memory>,
    maps: Option<Vec<Map>>,
}

/// One overwritten stretch of text.
#[derive(Clone, Debug)]
struct Patch {
    original: Vec<u8>,
    /// What is there instead.
    jump: Vec<u8>,
    /// Where the overwritten instructions begin.
    breakpoints: Vec<u64>,
    /// Which of them have moved: forgotten with the patch.
    moved: Vec<u64>,
    site: u64,
    file: Option<FileId>,
    breakpoints_met: u32,
}

impl Patch {
    fn meets(&self, at: u64, range: &Range<u64>) -> bool {
        at < range.end && range.start < at + self.original.len() as u64
    }
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
        if sites.may_be_text(space.service().life.slot.region(), registers.rip)
            && registers.rflags & RFLAGS_TF == 0
        {
            // A site that cannot be rewritten goes on trapping.
            let _ = match sites.count_trap(registers.rip) {
                TRAPS_BEFORE_REWRITING => sites.rewrite(space, registers, |_| true),
                TRAPS_BEFORE_REWRITING_AGAIN => {
                    sites.rewrite(space, registers, |form| matches!(form, Form::Behind { .. }))
                }
                _ => None,
            };
        }
        sites.moved.contains_key(&registers.rip)
    }

    /// Where a context is that met a breakpoint of ours: it goes on there. The site may have got its own bytes back since.
    pub(crate) fn caused(&self, space: &dyn Guest, registers: &Registers, fault: &Fault) -> Option<u64> {
        let at = registers.rip.checked_sub(1).filter(|_| fault.trapno == BREAKPOINT)?;
        let mut sites = self.write();
        let patch = sites.patches.range_mut(..=at).next_back();
        if let Some((&start, patch)) = patch.filter(|(_, patch)| patch.breakpoints.contains(&at)) {
            let is_own = usize::try_from(at - start).is_ok_and(|index| patch.original[index] == INT3);
            if is_own {
                return None;
            }
            if patch.moved.contains(&at) {
                patch.breakpoints_met += 1;
                if patch.breakpoints_met == MOST_BREAKPOINTS_MET {
                    let site = patch.site;
                    sites.restore(space, |_, patch| patch.site == site);
                    sites.traps.insert(site, u32::MAX);
                }
            }
            return Some(at);
        }
        sites.has_no_breakpoint(space, at).then_some(at)
    }

    /// What a fault in a stub tells is about the instruction that has moved there.
    pub(crate) fn place(&self, fault: &mut Fault) {
        if fault.trapno != PAGE_FAULT {
            fault.addr = self.read().original.get(&fault.addr).copied().unwrap_or(fault.addr);
        }
    }

    /// The guest is to find its own text from now on: somebody steps through it one instruction at a time, or it
    /// uses GS.
    pub(crate) fn stop(&self, space: &dyn Guest) {
        if !self.read().off {
            self.write().turn_off(space);
        }
    }

    /// What the guest's registers would be in its own text. A `syscall` leaves RIP in `rcx`.
    pub(crate) fn original_registers(&self, registers: Registers) -> Registers {
        match self.read().original.get(&registers.rip) {
            Some(&rip) if registers.rcx == registers.rip => Registers { rip, rcx: rip, ..registers },
            Some(&rip) => Registers { rip, ..registers },
            None => registers,
        }
    }

    /// Where the instruction at `rip` of the guest's text is now.
    pub(crate) fn present(&self, rip: u64) -> u64 {
        self.read().moved.get(&rip).copied().unwrap_or(rip)
    }

    /// The mapping of `range` is about to change: the guest is to find its own text there, until the change is done and
    /// the value is dropped.
    pub(crate) fn before_change(&self, space: &dyn Guest, range: Range<u64>) -> Result<Closed<'_>> {
        let mut sites = self.write();
        if sites.pages.iter().any(|page| page.start < range.end && range.start < page.end()) {
            return Err(Error::Reserved { addr: range.start, len: range.end - range.start });
        }
        sites.maps = None;
        sites.traps.retain(|site, _| !range.contains(site));
        sites.restore(space, |at, patch| patch.meets(at, &range));
        sites.closed.push(range.clone());
        Ok(Closed { rewriter: self, range })
    }

    /// Somebody is about to write to a file: its text is to be the file's.
    pub(crate) fn give_up(&self, space: &dyn Guest, file: FileId) {
        self.write().restore(space, |_, patch| patch.file == Some(file));
    }

    /// Has `unmap` remove all that the guest has, with the stubs; no site is known afterwards.
    pub(crate) fn clear(&self, unmap: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut sites = self.write();
        unmap()?;
        let (memory, closed) = (sites.memory.take(), std::mem::take(&mut sites.closed));
        *sites = Sites { memory, closed, ..Sites::default() };
        Ok(())
    }

    /// Forks a process with `fork` while no site changes; the copy has what this one has.
    pub(crate) fn fork(&self, fork: impl FnOnce() -> Result<Service>) -> Result<(Service, Self)> {
        let sites = self.write();
        let service = fork()?;
        let copy = Sites {
            off: sites.off,
            traps: sites.traps.clone(),
            patches: sites.patches.clone(),
            pages: sites.pages.clone(),
            original: sites.original.clone(),
            moved: sites.moved.clone(),
            copies: sites.copies.clone(),
            leases: sites.leases.clone(),
            ..Sites::default()
        };
        Ok((service, Self(RwLock::new(copy))))
    }

    /// A fork is `space` from now on. What has been written to its files since it was made, it did not give up in time; but
    /// nothing has run in it.
    pub(crate) fn adopt(&self, space: &Arc<impl Guest + 'static>) {
        let mut sites = self.write();
        let late: Vec<_> =
            sites.leases.iter().filter(|(_, lease)| !lease.join(space)).map(|(&file, _)| file).collect();
        sites.restore(space, |_, patch| patch.file.is_some_and(|file| late.contains(&file)));
    }

    /// Rewriting has stopped for good.
    pub(crate) fn is_off(&self) -> bool {
        self.read().off
    }

    /// How many stretches of text are rewritten now.
    pub(crate) fn count(&self) -> usize {
        self.read().patches.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, Sites> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Sites> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sites {
    /// Can text that we may change end at `rip`? A hostile guest can say that it called from anywhere.
    fn may_be_text(&self, region: Region, rip: u64) -> bool {
        let Some(start) = rip.checked_sub(WINDOW) else { return false };
        let range = start..rip.saturating_add(WINDOW);
        let meets = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        !region.touches(&range)
            && !self.pages.iter().any(|page| meets(&(page.start..page.end())))
            && !self.closed.iter().any(meets)
    }

    /// Rewrites the site that has just trapped with `registers` in one of the forms that are `wanted`, if it can be;
    /// `None` if not.
    fn rewrite(
        &mut self,
        space: &Arc<impl Guest + 'static>,
        registers: &Registers,
        wanted: impl Fn(&Form) -> bool,
    ) -> Option<()> {
        let rip = registers.rip;
        let map = self.map_of(space, rip.checked_sub(SYSCALL)?)?;
        let range =
            map.range.start.max(rip.saturating_sub(WINDOW))..map.range.end.min(rip.saturating_add(WINDOW));
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        self.memory(space)?.read(range.start, &mut bytes)?;
        self.undo_patches_in(&mut bytes, range.start);
        let text = Text { start: range.start, bytes: &bytes };
        let forms = site::recognise(text, registers);
        forms.iter().filter(|form| wanted(form)).find_map(|form| {
            let (jump, stub) = self.stub(space, text, rip, form)?;
            self.install(space, text, rip, &jump, stub)
        })
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

    /// Makes `bytes`, read at `start`, the guest's own again: jumps to stubs would put the decoder out of step.
    fn undo_patches_in(&self, bytes: &mut [u8], start: u64) {
        let range = start..start + bytes.len() as u64;
        for (&at, patch) in self.patches.iter().filter(|(at, patch)| patch.meets(**at, &range)) {
            for (addr, &byte) in (at..).zip(&patch.original).filter(|(addr, _)| range.contains(addr)) {
                bytes[usize::try_from(addr - start).expect("an address in the bytes")] = byte;
            }
        }
    }

    /// A stub for the site, and the jump to it.
    fn stub(&mut self, space: &dyn Guest, text: Text<'_>, rip: u64, form: &Form) -> Option<(Jump, Stub)> {
        let meets_another = |jump: &Jump| {
            let range = jump.range();
            self.patches.iter().any(|(&at, patch)| patch.site != rip && patch.meets(at, &range))
        };
        let jumps: Vec<_> =
            Jump::all(form, text, rip).into_iter().filter(|jump| !meets_another(jump)).collect();
        let mut pages = self.pages.iter_mut();
        let found = pages.find_map(|page| {
            jumps.iter().enumerate().find_map(|(index, jump)| Some((index, page.stub(text, rip, jump)?)))
        });
        let (index, stub) = match found {
            Some(found) => found,
            None => jumps.iter().enumerate().find_map(|(index, jump)| {
                Some((index, self.new_page(space, jump)?.stub(text, rip, jump)?))
            })?,
        };
        jumps.into_iter().nth(index).map(|jump| (jump, stub))
    }

    /// A new page of stubs, to one of which `jump` can lead.
    fn new_page(&mut self, space: &dyn Guest, jump: &Jump) -> Option<&mut Page> {
        if self.pages.len() == MOST_PAGES {
            return None;
        }
        let held = space.service().life.pid();
        let maps = maps::of((*held)?).ok()?;
        drop(held);
        let region = space.service().life.slot.region();
        let start = stub::place_for_page(&maps, region, jump)?;
        let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let mapped = space.service().call(libc::SYS_mmap, [start, PAGE_LEN, protection, flags, u64::MAX, 0]);
        if !matches!(mapped, Ok(Ok(addr)) if addr == start) {
            return None;
        }
        self.memory(space)?.write(start, &Page::header(region))?;
        self.pages.push(Page::new(start));
        self.pages.last_mut()
    }

    /// Puts `jump` in place of the site, or of what it is now.
    fn install(
        &mut self,
        space: &Arc<impl Guest + 'static>,
        text: Text<'_>,
        rip: u64,
        jump: &Jump,
        stub: Stub,
    ) -> Option<()> {
        self.restore(space, |_, patch| patch.site == rip);
        let file = self.prepare_pages(space, jump.at, stub.jump.len())?;
        let original = text.get(jump.at..jump.at + stub.jump.len() as u64)?.to_vec();
        self.memory(space)?.write(stub.start, &stub.bytes)?;
        let patch = Patch {
            original,
            jump: stub.jump,
            breakpoints: jump.breakpoints.clone(),
            moved: stub.moved.keys().copied().collect(),
            site: rip,
            file,
            breakpoints_met: 0,
        };
        let memory = self.memory(space)?;
        let change = Change { at: jump.at, bytes: &patch.jump, breakpoints: &patch.breakpoints };
        if memory.overwrite(space.service(), &[change]).is_none() {
            // The processors cannot be told: there are breakpoints, and nothing else is changed yet.
            return memory.write(jump.at, &patch.original).and(None);
        }
        self.original.extend(stub.original);
        self.moved.extend(stub.moved);
        self.patches.insert(jump.at, patch);
        Some(())
    }

    /// Sees that writing `len` bytes at `at` will not hide what somebody writes to a file. Says which file it is.
    fn prepare_pages(
        &mut self,
        space: &Arc<impl Guest + 'static>,
        at: u64,
        len: usize,
    ) -> Option<Option<FileId>> {
        let service = space.service();
        let held = service.life.pid();
        let pid = (*held)?;
        if self.leases.len() == MOST_FILES {
            self.drop_leases();
        }
        let map = self.maps.iter().flatten().find(|map| map.range.contains(&at))?;
        let Some(file) = map.file else { return Some(None) };
        if self.leases.len() == MOST_FILES && !self.leases.contains_key(&file) {
            return None;
        }
        let is_kept = match self.leases.entry(file) {
            hash_map::Entry::Occupied(lease) => !lease.get().is_broken(),
            hash_map::Entry::Vacant(place) => place.insert(lease::on(map, pid)?).join(space),
        };
        if !is_kept {
            return None;
        }
        for page in text::pages(at, len) {
            if !self.copies.contains(&page) && text::is_of_file(service, page)? {
                self.copies.insert(page);
            }
        }
        Some(Some(file))
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

    /// Puts the old bytes back wherever `which` says so, if what is there is ours.
    fn restore(&mut self, space: &dyn Guest, which: impl Fn(u64, &Patch) -> bool) {
        if !self.patches.iter().any(|(&at, patch)| which(at, patch)) {
            return;
        }
        let (taken, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.patches).into_iter().partition(|(at, patch)| which(*at, patch));
        self.patches = kept;
        if let Some(memory) = self.memory(space) {
            let is_ours = |&(&at, patch): &(&u64, &Patch)| {
                let mut present = vec![0; patch.jump.len()];
                memory.read(at, &mut present).is_some() && present == patch.jump
            };
            let changes: Vec<_> = taken
                .iter()
                .filter(is_ours)
                .map(|(&at, patch)| Change { at, bytes: &patch.original, breakpoints: &patch.breakpoints })
                .collect();
            // Memory that is gone needs no restoring.
            let _ = memory.overwrite(space.service(), &changes);
        }
        for patch in taken.values() {
            // What stands for a stub stays: a context may still be there.
            for moved in &patch.moved {
                self.moved.remove(moved);
            }
            self.traps.remove(&patch.site);
        }
        self.drop_copies(space);
        self.drop_leases();
    }

    /// Lets go of files in which nothing is rewritten any more.
    fn drop_leases(&mut self) {
        let patches = &self.patches;
        self.leases.retain(|&file, _| patches.values().any(|patch| patch.file == Some(file)));
    }

    /// Gives back the pages of files in which nothing is rewritten any more.
    fn drop_copies(&mut self, space: &dyn Guest) {
        let used: BTreeSet<u64> =
            self.patches.iter().flat_map(|(&at, patch)| text::pages(at, patch.jump.len())).collect();
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
        let mut sites = Sites::default();
        for rip in 0..50_000 {
            assert_eq!(sites.count_trap(rip), 1);
            assert_eq!(sites.count_trap(rip), 2);
            assert!(sites.traps.len() <= 20_000);
        }
    }

    #[test]
    fn text_is_decoded_as_it_was_before_its_neighbours_were_rewritten() {
        let patch = Patch {
            original: vec![1, 2, 3, 4, 5],
            jump: vec![0xe9; 5],
            breakpoints: Vec::new(),
            moved: Vec::new(),
            site: 0x1009,
            file: None,
            breakpoints_met: 0,
        };
        let sites = Sites { patches: BTreeMap::from([(0x1002, patch)]), ..Sites::default() };
        for (start, expected) in [(0x1000, [0, 0, 1, 2]), (0x1004, [3, 4, 5, 0]), (0x1007, [0; 4])] {
            let mut bytes = [0; 4];
            sites.undo_patches_in(&mut bytes, start);
            assert_eq!(bytes, expected, "{start:#x}");
        }
    }

    #[test]
    fn calls_from_our_own_pages_or_from_nowhere_are_no_sites() {
        let mut sites = Sites { pages: vec![Page::new(0x10_0000)], ..Sites::default() };
        sites.closed.push(0x20_0000..0x20_1000);
        let region = Region::DEFAULT;
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
            assert!(!sites.may_be_text(region, rip), "{rip:#x}");
        }
        assert!(sites.may_be_text(region, 0x40_0000));
    }
}
