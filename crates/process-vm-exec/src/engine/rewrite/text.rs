//! The text of a space: reading it, changing it while contexts execute it, and making private copies of a file's pages go
//! away again.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::executor::service::{Entry, Service};
use crate::rewriting::Change;

/// Length of a page of memory.
const PAGE: u64 = 4096;

/// The memory of a space's process: `/proc/PID/mem`, which also writes where the guest must not.
#[derive(Debug)]
pub(super) struct Memory(File);

impl Memory {
    pub(super) fn open(service: &Service) -> Option<Self> {
        let held = service.life.pid();
        let pid = (*held)?;
        File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).ok().map(Self)
    }

    /// Reads `buffer.len()` bytes, all of them or none that counts.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> Option<()> {
        self.0.read_exact_at(buffer, at).ok()
    }

    pub(super) fn byte(&self, at: u64) -> Option<u8> {
        let mut byte = [0];
        self.read(at, &mut byte).map(|()| byte[0])
    }

    /// Writes what nobody executes yet.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Option<()> {
        self.0.write_all_at(bytes, at).ok()
    }

    /// Changes text that contexts may be executing. One that meets a breakpoint faults, and [`super::Rewriter::caused`] sends
    /// it on.
    pub(super) fn change(&self, service: &Service, changes: &[Change<'_>]) -> Option<()> {
        let steps: Vec<_> = changes.iter().map(Change::steps).collect();
        for step in 0..3 {
            for write in steps.iter().flat_map(|steps| &steps[step]) {
                self.write(write.at, &write.bytes)?;
            }
            synchronise(service)?;
        }
        Some(())
    }
}

/// Makes every processor that runs the guest fetch its instructions anew (membarrier(2)).
fn synchronise(service: &Service) -> Option<()> {
    const PRIVATE_EXPEDITED_SYNC_CORE: u64 = 1 << 5;
    let barrier = service.call(libc::SYS_membarrier, [PRIVATE_EXPEDITED_SYNC_CORE, 0, 0, 0, 0, 0]);
    matches!(barrier, Ok(Ok(_))).then_some(())
}

/// Is the page of a file at `addr` still the file's, so that a write makes a copy of it?
pub(super) fn is_of_file(service: &Service, addr: u64) -> Option<bool> {
    // Documentation/admin-guide/mm/pagemap.rst: the page is there, swapped out, a file's or shared.
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE_OR_SHARED: u64 = 1 << 61;
    let held = service.life.pid();
    let pid = (*held)?;
    let mut entry = [0; 8];
    File::open(format!("/proc/{pid}/pagemap")).ok()?.read_exact_at(&mut entry, addr / PAGE * 8).ok()?;
    let entry = u64::from_ne_bytes(entry);
    Some(entry & FILE_OR_SHARED != 0 || entry & (PRESENT | SWAPPED) == 0)
}

/// Makes private copies of a file's pages go away: what the file has is there again.
pub(super) fn drop_copies(service: &Service, pages: &BTreeSet<u64>) {
    // Only the second one works where memory is locked; it is younger (Linux 5.18).
    const DONTNEED_LOCKED: u64 = 24;
    let drop = |page| {
        [libc::MADV_DONTNEED as u64, DONTNEED_LOCKED]
            .map(|advice| Entry::new(libc::SYS_madvise, [page, PAGE, advice, 0, 0, 0]))
    };
    // A process that does not answer is dead, and its memory gone.
    let _ = service.request(&pages.iter().copied().flat_map(drop).collect::<Vec<_>>());
}

/// The pages that a range is in.
pub(super) fn pages(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    (range.start / PAGE..=(range.end - 1) / PAGE).map(|page| page * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_across_the_end_of_a_page_is_in_two_pages_and_no_other() {
        let of = |at: u64, len| pages(&(at..at + len)).collect::<Vec<_>>();
        assert_eq!(of(0x1ffb, 5), [0x1000]);
        assert_eq!(of(0x1ffc, 5), [0x1000, 0x2000]);
        assert_eq!(of(0x2000, 5), [0x2000]);
    }
}
