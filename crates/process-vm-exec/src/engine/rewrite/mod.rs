//! Call-site rewriting: what the `rewrite` engine adds to `trap`.
//!
//! A site that has trapped is replaced by a jump to a stub, which goes to the executor's trampoline; later calls
//! from there raise no signal. [`site`] says which sites can be, [`stub`] writes the stubs. Here is the bookkeeping:
//! text that the guest is about to change gets its old bytes back first, and no register ever shows an address
//! in a stub.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod site;
mod stub;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::site::{Form, SYSCALL, Text, WINDOW};
use self::stub::{PAGE_LEN, Page};
use crate::arch::x86_64::{RFLAGS_TF, Registers};
use crate::error::{Error, Result};
use crate::executor::service::{Entry, Service};
use crate::exit::{Arch, Fault};
use crate::maps::{self, Map};
use crate::space::Inner;

/// A site is rewritten when it traps for the second time: most calls of a program's start never come again.
const TRAPS_BEFORE_REWRITING: u32 = 2;

/// What the processor must have for the trampoline.
pub(crate) fn lacks() -> Option<String> {
    (!std::arch::is_x86_feature_detected!("bmi2")).then(|| "the processor lacks BMI2 (Haswell or Zen)".into())
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
    /// Addresses in stubs and padding, and what they stand for in the original text.
    original: BTreeMap<u64, u64>,
    /// Addresses of overwritten instructions, and where they are now.
    moved: BTreeMap<u64, u64>,
    /// `/proc/PID/mem`, which also writes where the guest must not.
    memory: Option<File>,
    maps: Option<Vec<Map>>,
    can_synchronise: bool,
}

/// One overwritten stretch of text.
#[derive(Clone, Debug)]
struct Patch {
    original: Vec<u8>,
    /// What it moved: forgotten with it.
    moved: Vec<u64>,
    site: u64,
}

impl Rewriter {
    /// A call has trapped; its site may be worth rewriting. Says whether the instruction at RIP has moved.
    pub(crate) fn after_trap(&self, space: &Inner, registers: &Registers, arch: Arch) -> bool {
        let mut sites = self.write();
        if sites.off || arch != Arch::X86_64 {
            return false;
        }
        if registers.gs_base != 0 {
            sites.turn_off(space);
            return false;
        }
        let traps = sites.traps.entry(registers.rip).or_default();
        *traps = traps.saturating_add(1);
        if *traps == TRAPS_BEFORE_REWRITING && registers.rflags & RFLAGS_TF == 0 {
            // A site that cannot be rewritten goes on trapping.
            let _ = sites.rewrite(space, registers);
        }
        sites.moved.contains_key(&registers.rip)
    }

    /// A fault that a site under change caused in another thread: that one tries again.
    pub(crate) fn caused(&self, registers: &Registers, fault: &Fault) -> Option<u64> {
        const BREAKPOINT: u32 = 3;
        let at = registers.rip.wrapping_sub(1);
        (fault.trapno == BREAKPOINT && self.read().patches.contains_key(&at)).then_some(at)
    }

    /// The guest is to find its own text from now on: somebody steps through it one instruction at a time, or it
    /// uses GS.
    pub(crate) fn stop(&self, space: &Inner) {
        if !self.read().off {
            self.write().turn_off(space);
        }
    }

    /// Where the guest is in its own text when it is at `rip`.
    pub(crate) fn original(&self, rip: u64) -> u64 {
        self.read().original.get(&rip).copied().unwrap_or(rip)
    }

    /// Where the instruction at `rip` of the guest's text is now.
    pub(crate) fn present(&self, rip: u64) -> u64 {
        self.read().moved.get(&rip).copied().unwrap_or(rip)
    }

    /// The guest is about to change the mapping of `range`: it is to find its own text there.
    pub(crate) fn before_change(&self, space: &Inner, range: Range<u64>) -> Result<()> {
        let mut sites = self.write();
        sites.maps = None;
        if sites.pages.iter().any(|page| page.start < range.end && range.start < page.end()) {
            return Err(Error::Reserved { addr: range.start, len: range.end - range.start });
        }
        sites.traps.retain(|site, _| !range.contains(site));
        sites.restore(space, range);
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
            ..Sites::default()
        };
        Ok((service, Self(RwLock::new(copy))))
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
    /// Rewrites the site that has just trapped with `registers`, if it can be; `None` if not.
    fn rewrite(&mut self, space: &Inner, registers: &Registers) -> Option<()> {
        let rip = registers.rip;
        let text_range = self.text_around(space, rip)?;
        let mut bytes = vec![0; usize::try_from(text_range.end - text_range.start).ok()?];
        self.memory(space)?.read_exact_at(&mut bytes, text_range.start).ok()?;
        self.undo_patches_in(&mut bytes, text_range.start);
        let text = Text { start: text_range.start, bytes: &bytes };
        let form = site::recognise(text, registers, space.has_one_executor())?;
        if self.meets_other_patch(&form, rip) {
            return None;
        }
        let page = self.page_for(space, rip)?;
        let stub = self.pages[page].stub(text, rip, &form)?;
        self.memory(space)?.write_all_at(&stub.bytes, stub.start).ok()?;
        self.original.extend(&stub.original);
        for (at, bytes) in stub.patches {
            let original = text.get(at..at + bytes.len() as u64)?.to_vec();
            let moved = stub.moved.keys().copied().collect();
            // Before the text changes: a thread that meets the change asks for it.
            self.patches.insert(at, Patch { original, moved, site: rip });
            if self.overwrite(space, at, &bytes).is_none() {
                self.patches.remove(&at);
                return None;
            }
        }
        self.moved.extend(stub.moved);
        Some(())
    }

    /// The part of a program's text around `addr` that is worth looking at.
    fn text_around(&mut self, space: &Inner, addr: u64) -> Option<Range<u64>> {
        let is_text = |map: &&Map| map.range.contains(&(addr - SYSCALL)) && map.is_private_text();
        let mut found =
            self.maps.as_deref().unwrap_or_default().iter().find(is_text).map(|map| map.range.clone());
        if found.is_none() {
            self.maps = Some(maps::of((*space.service().life.pid())?).ok()?);
            found = self.maps.as_deref()?.iter().find(is_text).map(|map| map.range.clone());
        }
        let text = found?;
        Some(text.start.max(addr.saturating_sub(WINDOW))..text.end.min(addr + WINDOW))
    }

    /// Makes `bytes`, read at `start`, the guest's own again: jumps to stubs would put the decoder out of step.
    fn undo_patches_in(&self, bytes: &mut [u8], start: u64) {
        for (&at, patch) in self.patches.range(start..) {
            let own = usize::try_from(at - start)
                .ok()
                .and_then(|from| bytes.get_mut(from..from + patch.original.len()));
            match own {
                Some(own) => own.copy_from_slice(&patch.original),
                None => break,
            }
        }
    }

    /// Would `form` overwrite or move bytes that another site has changed?
    fn meets_other_patch(&self, form: &Form, rip: u64) -> bool {
        let range = match form {
            Form::Before { moved, .. } => moved.start..rip,
            Form::Padding { padding } => *padding..padding + site::JUMP,
            Form::After { moved } => rip - SYSCALL..moved.last().map_or(rip, |last| last.end),
        };
        self.patches
            .iter()
            .any(|(&at, patch)| at < range.end && range.start < at + patch.original.len() as u64)
    }

    /// The index of a page of stubs within reach of `addr`.
    fn page_for(&mut self, space: &Inner, addr: u64) -> Option<usize> {
        if let Some(index) = self.pages.iter().position(|page| page.serves(addr)) {
            return Some(index);
        }
        let maps = maps::of((*space.service().life.pid())?).ok()?;
        let start = stub::place_for_page(&maps, addr)?;
        self.maps = Some(maps);
        let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let mapped = space.service().call(libc::SYS_mmap, [start, PAGE_LEN, protection, flags, u64::MAX, 0]);
        if !matches!(mapped, Ok(Ok(addr)) if addr == start) {
            return None;
        }
        self.memory(space)?.write_all_at(&Page::header(), start).ok()?;
        self.pages.push(Page::new(start));
        Some(self.pages.len() - 1)
    }

    /// Replaces text that other threads may be executing (Intel SDM, volume 3, 9.1.3): a breakpoint first, then the
    /// rest, then the first byte, and every processor is told in between. One that meets the breakpoint faults, and
    /// [`Rewriter::caused`] sends it back.
    fn overwrite(&mut self, space: &Inner, at: u64, bytes: &[u8]) -> Option<()> {
        const INT3: u8 = 0xcc;
        if space.has_one_executor() {
            return self.memory(space)?.write_all_at(bytes, at).ok();
        }
        self.memory(space)?.write_all_at(&[INT3], at).ok()?;
        self.synchronise(space)?;
        self.memory(space)?.write_all_at(&bytes[1..], at + 1).ok()?;
        self.synchronise(space)?;
        self.memory(space)?.write_all_at(&bytes[..1], at).ok()?;
        self.synchronise(space)
    }

    /// Makes every processor that runs the guest fetch its instructions anew (membarrier(2)).
    fn synchronise(&mut self, space: &Inner) -> Option<()> {
        const REGISTER_SYNC_CORE: u64 = 1 << 6;
        const SYNC_CORE: u64 = 1 << 5;
        let barrier = |command| Entry::new(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]);
        let entries = [barrier(REGISTER_SYNC_CORE), barrier(SYNC_CORE)];
        let entries = if self.can_synchronise { &entries[1..] } else { &entries[..] };
        let results = space.service().request(entries).ok()?;
        self.can_synchronise = results.iter().all(std::result::Result::is_ok);
        self.can_synchronise.then_some(())
    }

    /// Puts the old bytes back wherever something in `range` has been overwritten.
    fn restore(&mut self, space: &Inner, range: Range<u64>) {
        let touched: Vec<u64> = self
            .patches
            .iter()
            .filter(|&(&at, patch)| at < range.end && range.start < at + patch.original.len() as u64)
            .map(|(_, patch)| patch.site)
            .collect();
        let patches: Vec<(u64, Patch)> = self
            .patches
            .iter()
            .filter(|(_, patch)| touched.contains(&patch.site))
            .map(|(&at, patch)| (at, patch.clone()))
            .collect();
        // Last the padding, to which the site's own bytes lead.
        for (at, patch) in patches.into_iter().rev() {
            // Memory that is gone needs no restoring.
            let _ = self.overwrite(space, at, &patch.original);
            self.patches.remove(&at);
            // Padding is text again. What stands for a stub stays: a context may still be there.
            self.original.remove(&at);
            for moved in &patch.moved {
                self.moved.remove(moved);
            }
            self.traps.remove(&patch.site);
        }
    }

    fn turn_off(&mut self, space: &Inner) {
        self.off = true;
        self.restore(space, 0..u64::MAX);
    }

    fn memory(&mut self, space: &Inner) -> Option<&File> {
        if self.memory.is_none() {
            let pid = (*space.service().life.pid())?.as_raw_nonzero();
            let open = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
            self.memory = Some(open.ok()?);
        }
        self.memory.as_ref()
    }
}
