//! Where in a live process the bootstrap can lie: behind the end of some text, where its last page is empty.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::bootstrap;
use crate::error::Result;
use crate::maps::{self, Map};

/// A place in the target's text that nothing uses, written through /proc/PID/mem, which may write where the process
/// itself may not.
#[derive(Debug)]
pub(super) struct Place {
    memory: File,
    pub(super) addr: u64,
    /// A supervisor that died has left a bootstrap there.
    pub(super) is_left_over: bool,
}

impl Place {
    /// The first there is in the memory of a thread; the vDSO has one in most cases, and each process has that.
    pub(super) fn find(memory: File, thread: i32) -> Result<Option<Self>> {
        let mut maps = maps::of_task(thread)?;
        maps.retain(Map::is_private_text);
        maps.sort_by_key(|map| map.name != "[vdso]");
        let found = maps.iter().find_map(|map| free_end(&memory, map));
        Ok(found.map(|(addr, is_left_over)| Self { memory, addr, is_left_over }))
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.addr..self.addr + bootstrap::len()
    }

    pub(super) fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.write_at(self.addr, bytes)
    }

    /// Writes elsewhere in it.
    pub(super) fn write_at(&self, addr: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.memory.write_all_at(bytes, addr)
    }

    pub(super) fn clear(&self) -> std::io::Result<()> {
        self.write(&vec![0; usize::try_from(bootstrap::len()).expect("it is short")])
    }
}

/// Where the bootstrap fits at the end of `map`, if nothing is there, or a bootstrap that nobody could clear any more:
/// which of these it is.
fn free_end(memory: &File, map: &Map) -> Option<(u64, bool)> {
    /// Room between the last instruction and ours, which a processor may read ahead into.
    const DISTANCE: u64 = 64;
    let addr = (map.range.end - bootstrap::len()) & !15;
    let start = addr.checked_sub(DISTANCE)?;
    let mut bytes = vec![0; usize::try_from(map.range.end - start).ok()?];
    memory.read_exact_at(&mut bytes, start).ok()?;
    let (before, there) = bytes.split_at(usize::try_from(DISTANCE).ok()?);
    let (is_empty, is_left_over) =
        (there.iter().all(|&byte| byte == 0), there.starts_with(bootstrap::code()));
    (before.iter().all(|&byte| byte == 0) && (is_empty || is_left_over)).then_some((addr, is_left_over))
}
